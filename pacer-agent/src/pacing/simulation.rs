//! A guest, QEMU and a link as models, with the real bucket and the real
//! session between them. Time jumps in steps; nothing sleeps.

mod guest;
mod run;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod synthetic;

pub use guest::Guest;
pub use run::{Run, Scenario, Sight, steady};
