//! A guest, as far as a migration is concerned.

/// Pages of a chunk of QEMU's dirty log: 1 GiB.
const CHUNK_PAGES: f64 = 262_144.0;

/// What a guest does to its memory. Seconds are of the simulation's clock.
pub trait Guest {
    /// Pages of 4 KiB it has.
    fn total_pages(&self) -> f64;

    /// Those of them that are not zero when the migration begins.
    fn normal_pages(&self) -> f64;

    /// Distinct pages written from `from` to `to`.
    fn dirtied(&self, from: f64, to: f64) -> f64;

    /// The same after a sweep of QEMU's over RAM whose chunks of 1 GiB were
    /// cleared one after the other.
    fn dirtied_by_chunk(&self, from: f64, to: f64) -> f64 {
        let chunks = (self.total_pages() / CHUNK_PAGES).ceil().max(1.0);
        let mut sum = 0.0;
        let mut chunk = 0.0;
        while chunk < chunks {
            sum += self.dirtied(from + (to - from) * chunk / chunks, to);
            chunk += 1.0;
        }
        sum / chunks
    }
}
