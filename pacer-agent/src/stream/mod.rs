//! QEMU's migration stream, read in passing. Pure: bytes go in, what was seen
//! comes out; the bytes themselves are never held back or altered.
#![deny(clippy::disallowed_methods)]

pub mod reader;
pub mod return_path;
