//! Relative L2 errors that are allowed of whole outputs: `|found - expected| / |expected|`.
//!
//! A rounding to a storage type is off by a value of random sign, `ulp / sqrt(12)` in the mean.
//! Errors of ops that follow one another add up as independent ones: their squares do.

/// A network in FP32 against the original implementation. Both round sums of up to 17280 products,
/// whose errors grow with the root of that, 131 times 2^-24 or 8e-6; some 100 such ops follow one
/// another, which is ten times as much.
pub const NETWORK_FP32: f64 = 1e-4;
/// A network whose weights and feature maps are stored in FP16: 2^-11 / sqrt(3) or 2.8e-4 for each
/// tensor that is stored, some 800 of which follow one another.
pub const NETWORK_FP16: f64 = 8e-3;
/// A network with INT8 weights: 1 / (127 sqrt(12)) or 2.3e-3 of the largest weight of a scale
/// group, which is about four times the mean one; some 30 such ops are passed one after the other.
pub const NETWORK_INT8: f64 = 5e-2;
/// Latents of FP32 runs of several steps: guidance multiplies the error of a pass by up to its
/// scale, 7.5, and the sampler adds those of the steps before.
pub const RUN_FP32: f64 = 1e-3;
/// Steps of an FP32 run and the errors of their latents: each step multiplies the error of the one
/// before by what guidance does with it.
pub const LATENTS_FP32: [(usize, f64); 3] = [(1, NETWORK_FP32), (10, RUN_FP32), (20, RUN_FP32)];

/// One kernel with an output in FP32: as much as a network.
pub const KERNEL_FP32: f64 = NETWORK_FP32;
/// One kernel with an output in FP16: four roundings of 2^-11, half arithmetic included.
pub const KERNEL_FP16: f64 = 2e-3;
