//! End-to-end tests of Pacer on real QEMU, and what they stand on.
