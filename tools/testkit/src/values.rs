//! Values for tests, as storage types hold them, and their comparison.

use kiln_ir::DType;
use kiln_kernels::packing::encode;

/// The values of an array as a device stores it.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F16 => bytes
            .chunks_exact(2)
            .map(|b| ::half::f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// `values` rounded to a storage type.
pub fn stored(dtype: DType, values: &[f32]) -> Vec<f32> {
    match dtype {
        DType::F16 => decode(dtype, &encode(dtype, values.iter().copied())),
        _ => values.to_vec(),
    }
}

/// `count` values spread evenly over `[-1, 1)`, the same for a seed on every machine.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Allowed difference `abs + rel * |reference|` of the arithmetic in `f32`; rounding of a 16-bit
/// output is added by [`compare`].
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f32,
    /// Relative part.
    pub rel: f32,
}

/// Panics with the worst element if any differs by more than the tolerance.
pub fn compare(found: &[f32], expected: &[f32], dtype: DType, tolerance: Tolerance, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: element count");
    let (half_abs, half_rel) =
        if dtype == DType::F16 { (3e-8, 4.9e-4) } else { (f32::MIN_POSITIVE, 0.0) };
    let excess = |i: usize| {
        let allowed = tolerance.abs + half_abs + (tolerance.rel + half_rel) * expected[i].abs();
        let ratio = (found[i] - expected[i]).abs() / allowed;
        if ratio.is_nan() { f32::INFINITY } else { ratio }
    };
    let worst = (0..found.len()).max_by(|a, b| excess(*a).total_cmp(&excess(*b)));
    if let Some(i) = worst.filter(|i| excess(*i) > 1.0) {
        let bad = (0..found.len()).filter(|i| excess(*i) > 1.0).count();
        panic!(
            "{what}: {bad} of {} elements differ, worst {i}: {}, expected {} ({} times allowed)",
            found.len(),
            found[i],
            expected[i],
            excess(i)
        );
    }
}

/// Which cases of a list a test runs: the first of every `KILN_EVERY`, or of every `default` where
/// the variable is not set. `make test-full` sets 1, which is all of them.
///
/// Panics if the variable is no positive number.
pub fn sampled<T>(cases: &[T], default: usize) -> impl Iterator<Item = &T> {
    let every = std::env::var("KILN_EVERY").map_or(default, |n| n.parse().expect("KILN_EVERY=N"));
    cases.iter().step_by(every)
}
