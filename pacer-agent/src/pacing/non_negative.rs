//! Non-negative least squares by coordinate descent.
//!
//! The problem has a fixed, small number of unknowns. Coordinate descent on its
//! normal equations has bounded work and no step that can fail, whatever the
//! input; active-set solvers have neither property (the published crate panics
//! where its Fortran original jumps).

/// Unknowns of the problem.
pub(super) const COLUMNS: usize = 19;

/// Sweeps over all unknowns at most. Neighbouring columns are alike, so the
/// unknowns settle slowly, but the fitted values do so within tens of sweeps.
const SWEEPS: usize = 400;

/// The normal equations of a weighted least-squares problem.
#[derive(Clone, Debug)]
pub(super) struct NormalEquations {
    gram: [[f64; COLUMNS]; COLUMNS],
    right: [f64; COLUMNS],
}

impl NormalEquations {
    /// No rows yet.
    pub(super) const fn new() -> Self {
        Self {
            gram: [[0.0; COLUMNS]; COLUMNS],
            right: [0.0; COLUMNS],
        }
    }

    /// Adds `weight × (row · x − value)²`. What is not finite is left out.
    pub(super) fn add(&mut self, row: &[f64; COLUMNS], value: f64, weight: f64) {
        let usable = |x: f64| x.is_finite();
        if !usable(value) || !usable(weight) || !row.iter().copied().all(usable) {
            return;
        }
        for (i, &left) in row.iter().enumerate() {
            self.right[i] += weight * left * value;
            for (j, &other) in row.iter().enumerate() {
                self.gram[i][j] += weight * left * other;
            }
        }
    }

    /// Improves `x`, which may hold the last solution, in place. Unknowns that
    /// no row touches become 0.
    pub(super) fn solve(&self, x: &mut [f64; COLUMNS]) {
        for _ in 0..SWEEPS {
            let mut moved = 0.0_f64;
            for i in 0..COLUMNS {
                let diagonal = self.gram[i][i];
                let before = x[i];
                let others: f64 = (0..COLUMNS).map(|j| self.gram[i][j] * x[j]).sum();
                let step = (self.right[i] - others) / diagonal;
                let next = if diagonal > 0.0 && step.is_finite() {
                    (before + step).max(0.0)
                } else {
                    0.0
                };
                x[i] = next;
                moved = moved.max((next - before).abs() * diagonal.sqrt());
            }
            if moved < 1e-7 {
                break;
            }
        }
    }
}
