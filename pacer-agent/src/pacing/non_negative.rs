//! Non-negative least squares by active sets (Lawson and Hanson, "Solving Least
//! Squares Problems", 1974, chapter 23), on the normal equations.
//!
//! The problem has a fixed, small number of unknowns, whose columns are much alike:
//! a little is added to the diagonal so that no step can fail, and steps are counted
//! so that there is an end, whatever the input. (The published crate panics where
//! its Fortran original jumps.)

use nalgebra::{Cholesky, SMatrix, SVector};

/// Unknowns of the problem.
pub(super) const COLUMNS: usize = 32;

/// Sets of unknowns tried at most; a handful is usual.
const STEPS: usize = 3 * COLUMNS;
/// Added to the diagonal, each column's being 1.
const RIDGE: f64 = 1e-9;
/// An unknown is let in if the error then falls at least so fast: below that it is
/// rounding.
const LEAST_GAIN: f64 = 1e-9;

type Matrix = SMatrix<f64, COLUMNS, COLUMNS>;
type Vector = SVector<f64, COLUMNS>;

/// The normal equations of a weighted least-squares problem.
#[derive(Clone, Debug)]
pub(super) struct NormalEquations {
    gram: Matrix,
    right: Vector,
}

impl NormalEquations {
    /// No rows yet.
    pub(super) fn new() -> Self {
        Self {
            gram: Matrix::zeros(),
            right: Vector::zeros(),
        }
    }

    /// Adds `weight × (row · x − value)²`. What is not finite is left out.
    pub(super) fn add(&mut self, row: &[f64; COLUMNS], value: f64, weight: f64) {
        let usable = |x: f64| x.is_finite();
        if !usable(value) || !usable(weight) || !row.iter().copied().all(usable) {
            return;
        }
        let row = Vector::from_column_slice(row);
        self.right += row * (weight * value);
        self.gram += row * row.transpose() * weight;
    }

    /// Adds `cost × x[column]`: what fits as well without it does.
    pub(super) fn charge(&mut self, column: usize, cost: f64) {
        if cost.is_finite()
            && let Some(right) = self.right.get_mut(column)
        {
            *right -= cost / 2.0;
        }
    }

    /// The unknown of this column is to be 0.
    pub(super) fn leave_out(&mut self, column: usize) {
        if column < COLUMNS {
            self.gram.fill_row(column, 0.0);
            self.gram.fill_column(column, 0.0);
            self.right[column] = 0.0;
        }
    }

    /// The unknowns, none negative. Those that no row touches are 0.
    pub(super) fn solve(&self) -> [f64; COLUMNS] {
        // Each column of the same length.
        let scale = self.gram.diagonal().map(|square| {
            if square > 0.0 {
                square.sqrt().recip()
            } else {
                0.0
            }
        });
        let scale = scale.map(|factor| if factor.is_finite() { factor } else { 0.0 });
        let scaled = Matrix::from_diagonal(&scale);
        let gram = scaled * self.gram * scaled + Matrix::identity() * RIDGE;
        let right = self.right.component_mul(&scale);
        let solution = solve(&gram, &right).component_mul(&scale);
        solution.into()
    }
}

fn solve(gram: &Matrix, right: &Vector) -> Vector {
    let least = LEAST_GAIN * right.amax();
    let mut is_in = [false; COLUMNS];
    let mut x = Vector::zeros();
    for _ in 0..STEPS {
        let gain = right - gram * x;
        let best = (0..COLUMNS)
            .filter(|&i| !is_in[i] && gain[i] > least)
            .max_by(|&i, &j| gain[i].total_cmp(&gain[j]));
        let Some(best) = best else { break };
        is_in[best] = true;
        // Until all that are in are positive.
        for _ in 0..COLUMNS {
            let Some(free) = unbounded(gram, right, &is_in) else {
                return x;
            };
            let blocked = (0..COLUMNS)
                .filter(|&i| is_in[i] && free[i] <= 0.0)
                .map(|i| (i, x[i] / (x[i] - free[i]).max(f64::MIN_POSITIVE)))
                .min_by(|one, other| one.1.total_cmp(&other.1));
            let Some((first, share)) = blocked else {
                x = free;
                break;
            };
            x += (free - x) * share.clamp(0.0, 1.0);
            is_in[first] = false;
            for i in 0..COLUMNS {
                if !is_in[i] || x[i] <= 0.0 {
                    is_in[i] = is_in[i] && x[i] > 0.0;
                    x[i] = 0.0;
                }
            }
        }
    }
    x
}

/// The solution with those that are in alone, whatever its signs.
fn unbounded(gram: &Matrix, right: &Vector, is_in: &[bool; COLUMNS]) -> Option<Vector> {
    let masked = Matrix::from_fn(|i, j| {
        if is_in[i] && is_in[j] {
            gram[(i, j)]
        } else {
            f64::from(u8::from(i == j))
        }
    });
    let right = Vector::from_fn(|i, _| if is_in[i] { right[i] } else { 0.0 });
    Some(Cholesky::new(masked)?.solve(&right))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_fits_exactly_is_found() {
        let mut equations = NormalEquations::new();
        for step in 1..20_u32 {
            let row = std::array::from_fn(|i| match i {
                0 => f64::from(step),
                1 => f64::from(step).sqrt(),
                2 => -1.0,
                _ => 0.0,
            });
            equations.add(&row, 3.0 * row[0] + 5.0 * row[1], 1.0);
        }
        let x = equations.solve();
        assert!(
            (x[0] - 3.0).abs() < 1e-3 && (x[1] - 5.0).abs() < 1e-3,
            "{x:?}"
        );
        assert!(x[2..].iter().all(|x| x.abs() < 1e-3));
    }

    proptest! {
        #[test]
        fn never_negative_and_no_worse_than_nothing(
            rows in proptest::collection::vec(
                (proptest::array::uniform::<_, COLUMNS>(-1e3_f64..1e6), -1e6_f64..1e9, 0.0_f64..1e6), 0..40,
            ),
        ) {
            let mut equations = NormalEquations::new();
            for (row, value, weight) in &rows {
                equations.add(row, *value, *weight);
            }
            let x = equations.solve();
            prop_assert!(x.iter().all(|x| x.is_finite() && *x >= 0.0));
            let error = |x: &[f64; COLUMNS]| -> f64 {
                rows.iter()
                    .map(|(row, value, weight)| {
                        let fitted: f64 = row.iter().zip(x).map(|(a, b)| a * b).sum();
                        weight * (fitted - value).powi(2)
                    })
                    .sum()
            };
            prop_assert!(error(&x) <= error(&[0.0; COLUMNS]) * (1.0 + 1e-6) + 1e-6);
        }
    }
}
