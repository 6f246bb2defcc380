//! What Pacer's eBPF programs and its user space share.
#![no_std]
