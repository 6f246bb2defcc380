//! A guest, QEMU and a link as models, with the real bucket and the real
//! session between them. Time jumps in steps; nothing sleeps.

mod guest;
mod run;
mod scenarios;
