//! The guests: what runs in the machines that are moved, and how its memory is
//! checked afterwards.

pub mod bare;
pub mod content;
pub mod disk_load;
mod initramfs;
pub mod linux;
pub mod memory;
pub mod program;
