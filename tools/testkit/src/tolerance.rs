//! Allowed errors of single elements.

use kiln_ir::DType;
use kiln_kernels::Rounding;

/// Allowed difference of an element: `abs + rel * |reference|`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f32,
    /// Relative part.
    pub rel: f32,
}

/// Tolerances of ops in FP32, for the stated inputs. Other inputs need bounds of their own.
impl Tolerance {
    /// Values that are only moved.
    pub const EXACT: Self = Self { abs: 0.0, rel: 0.0 };
    /// One rounding, 2^-24.
    pub const ROUNDED: Self = Self { abs: 0.0, rel: 6e-8 };
    /// An exponential within 5e-7, of which the quotient keeps at most half if it is large, and a
    /// division.
    pub const SILU: Self = Self { abs: 1e-7, rel: 6e-7 };
    /// An erf within 3e-7, times at most half the largest input, 8.
    pub const GELU: Self = Self { abs: 1.5e-6, rel: 6e-7 };
    /// A tanh within 5 units in the last place, the most that OpenCL allows.
    pub const TANH: Self = Self { abs: 0.0, rel: 6e-7 };
    /// [`Tolerance::GELU`] times an input of up to 4.
    pub const GEGLU: Self = Self { abs: 4.0 * Self::GELU.abs, ..Self::GELU };
    /// An angle of up to 1, rounded a few times, and its sine.
    pub const TIMESTEP_EMBEDDING: Self = Self { abs: 4e-7, rel: 0.0 };
    /// Sums of some hundred terms under 1, in any order, divided by their number.
    pub const MEAN: Self = Self { abs: 2e-6, rel: 2e-7 };
    /// An exponential of at most 6 - (-6), a sum of some hundreds of them and a division.
    pub const SOFTMAX: Self = Self { abs: 0.0, rel: 3e-6 };
    /// Some roundings of a normal value of at most about 6.
    pub const LAYER_NORM: Self = Self { abs: 2e-6, rel: 2e-6 };
    /// Some roundings of a normal value of at most about 10.
    pub const GROUP_NORM: Self = Self { abs: 3e-6, rel: 3e-6 };
    /// Scales of up to 2 / 0.5 standard deviations, shifts of up to 2 and a few of their roundings.
    pub const GROUP_AFFINE: Self = Self { abs: 5e-6, rel: 5e-6 };
    /// Scores of `d` products have errors of `d` roundings, and so have weights. Values are at most
    /// 1.
    pub const ATTENTION: Self = Self { abs: 4e-6, rel: 4e-6 };

    /// A sum of `k` products of values of at most `largest` and weights of up to `2 / sqrt(k)`,
    /// with its epilogue. Rounding errors grow with the square root of `k`: two units in the last
    /// place for the sum of about 1 and its partial sums. 16 units are for the epilogue.
    pub fn contraction(k: usize, largest: f32) -> Self {
        let abs = largest * (16.0 + 2.0 * (k as f32).sqrt()) * f32::EPSILON;
        Self { abs, rel: 16.0 * f32::EPSILON }
    }

    /// Adds the errors of a variant to those of sums in FP32.
    pub fn rounded(self, rounding: Rounding) -> Self {
        Self { abs: rounding.scale * self.abs + rounding.abs, ..self }
    }

    /// Adds the rounding of an output's storage type: in FP16, half a unit in the last place,
    /// 2^-11, and half the smallest subnormal, 2^-25.
    pub fn stored_as(self, dtype: DType) -> Self {
        let (abs, rel) = if dtype == DType::F16 { (3e-8, 4.9e-4) } else { (0.0, 0.0) };
        Self { abs: self.abs + abs, rel: self.rel + rel }
    }

    /// The error of an element as a multiple of the allowed difference; infinite for NaN.
    fn excess(&self, found: f32, expected: f32) -> f32 {
        let allowed = self.abs + f32::MIN_POSITIVE + self.rel * expected.abs();
        let ratio = (found - expected).abs() / allowed;
        if ratio.is_nan() { f32::INFINITY } else { ratio }
    }
}

/// The result of a comparison.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Comparison {
    /// Number of elements whose errors exceed the allowed difference.
    pub wrong: usize,
    /// Index of the element with the largest error relative to the allowed difference.
    pub worst: usize,
    /// This element's error as a multiple of the allowed difference.
    pub of_allowed: f32,
    /// The largest difference of all.
    pub worst_error: f32,
}

/// Compares element by element. NaN is an infinite error.
pub fn compare(found: &[f32], expected: &[f32], tolerance: Tolerance) -> Comparison {
    let mut all = Comparison { wrong: 0, worst: 0, of_allowed: 0.0, worst_error: 0.0 };
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let excess = tolerance.excess(*found, *expected);
        let error = (found - expected).abs();
        let error = if error.is_nan() { f32::INFINITY } else { error };
        all.worst_error = all.worst_error.max(error);
        all.wrong += usize::from(excess > 1.0);
        if excess > all.of_allowed {
            (all.worst, all.of_allowed) = (index, excess);
        }
    }
    all
}

/// Panics with the worst element if any differs by more than the tolerance.
pub fn assert_close(found: &[f32], expected: &[f32], tolerance: Tolerance, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: element count");
    let Comparison { wrong, worst, of_allowed, .. } = compare(found, expected, tolerance);
    assert!(
        wrong == 0,
        "{what}: {wrong} of {} elements differ, worst {worst}: {}, expected {} ({of_allowed} times \
         allowed)",
        found.len(),
        found[worst],
        expected[worst],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_and_unwritten_elements_are_told() {
        let compare = |found: &[f32]| compare(found, &[0.25, 0.5], Tolerance::SOFTMAX);
        assert_eq!(compare(&[0.25, 0.5]).wrong, 0);
        let wrong = compare(&[0.25, 0.51]);
        assert_eq!((wrong.wrong, wrong.worst), (1, 1));
        assert!(wrong.of_allowed > 1.0 && (wrong.worst_error - 0.01).abs() < 1e-6);
        assert_eq!(compare(&[f32::NAN, 0.5]).wrong, 1);
    }
}
