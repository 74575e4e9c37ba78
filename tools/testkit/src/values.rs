//! Values for tests in storage types, and the results of references on them.

use kiln_ir::{DType, Tensor, TensorType};
use kiln_kernels::Problem;
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

/// [`random`] values over `[-spread, spread)` for a type, as it stores them.
pub fn random_stored(seed: u64, ty: &TensorType, spread: f32) -> Vec<f32> {
    let values = random(seed, ty.elem_count()).into_iter();
    stored(ty.dtype, &values.map(|v| v * spread).collect::<Vec<_>>())
}

/// The result of the op's reference on values.
pub fn reference(problem: &Problem, values: &[Vec<f32>]) -> Vec<f32> {
    let inputs = problem.inputs.iter().zip(values);
    let tensors: Vec<Tensor> =
        inputs.map(|(input, v)| Tensor::new(&input.ty.shape, v.clone())).collect();
    problem.op.eval(&tensors.iter().collect::<Vec<_>>()).data
}

/// `|found - expected| / |expected|`.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "element count");
    let error: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
    (error / norm.max(f64::MIN_POSITIVE)).sqrt()
}

/// The cases of a list that a test runs: the first of [`every`]`(default)`.
pub fn sampled<T>(cases: &[T], default: usize) -> impl Iterator<Item = &T> {
    cases.iter().step_by(every(default))
}

/// A test runs one of so many cases: `KILN_EVERY`, or the default. `make test-full` sets 1.
///
/// Panics if the variable is not a positive number.
pub fn every(default: usize) -> usize {
    std::env::var("KILN_EVERY").map_or(default, |n| n.parse().expect("KILN_EVERY=N"))
}
