//! The guests: what runs in the machines that are moved, and how its memory is
//! checked afterwards.

pub mod bare;
pub mod content;
mod initramfs;
pub mod linux;
pub mod memory;
