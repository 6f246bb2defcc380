//! A guest, QEMU and a link as models, with the real bucket and the real
//! session between them. Time jumps in steps; nothing sleeps.

#[cfg(test)]
mod disturbances;
mod guest;
#[cfg(test)]
mod holding;
mod run;
#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod synthetic;

pub use guest::Guest;
pub use run::{Order, Run, Scenario, Sight, steady};
