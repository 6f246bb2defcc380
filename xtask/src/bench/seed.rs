//! What is drawn for a run.

use fastrand::Rng;

/// The same for the same seed and index.
pub(super) fn rng(seed: u64, index: usize) -> Rng {
    let mut rng = Rng::with_seed(seed);
    for _ in 0..index {
        rng.u64(..);
    }
    rng.fork()
}
