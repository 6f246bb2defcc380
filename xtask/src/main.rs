//! `cargo xtask`: set up, build, run, test.
fn main() {}
