//! Allowed relative L2 errors of whole outputs: `|found - expected| / |expected|`.
//!
//! The error of rounding to a storage type has a random sign and is `ulp / sqrt(12)` on average.
//! Errors of consecutive ops are independent: their squares add up.

/// A network in FP32 compared with the original implementation. Both round sums of up to 17280
/// products, whose errors grow with the square root of this number: 131 times 2^-24, or 8e-6. About
/// 100 such ops follow one another, which gives ten times as much.
pub const NETWORK_FP32: f64 = 1e-4;
/// A network whose weights and feature maps are stored in FP16: 2^-11 / sqrt(3), or 2.8e-4, for
/// each stored tensor. About 800 of them follow one another.
pub const NETWORK_FP16: f64 = 8e-3;
/// A network with INT8 weights: 1 / (127 sqrt(12)), or 2.3e-3, of the largest weight of a scale
/// group, which is about four times the mean one. About 30 such ops follow one another.
pub const NETWORK_INT8: f64 = 5e-2;
/// Latents of FP32 runs of several steps. Guidance multiplies the error of a pass by up to its
/// scale, 7.5, and the sampler adds the errors of earlier steps.
pub const RUN_FP32: f64 = 1e-3;
/// Steps of an FP32 run and the errors of their latents. Guidance amplifies the previous step's
/// error at each step.
pub const LATENTS_FP32: [(usize, f64); 3] = [(1, NETWORK_FP32), (10, RUN_FP32), (20, RUN_FP32)];

/// One kernel with an output in FP32: as much as a network.
pub const KERNEL_FP32: f64 = NETWORK_FP32;
/// One kernel with an output in FP16: four roundings of 2^-11, half arithmetic included.
pub const KERNEL_FP16: f64 = 2e-3;
