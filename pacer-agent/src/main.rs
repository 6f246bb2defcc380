//! The `pacer` binary.
fn main() {}
