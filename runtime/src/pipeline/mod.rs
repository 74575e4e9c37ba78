//! The parts around the networks: tokenizer, noise, sampler and image file.
//!
//! Everything here runs on the CPU, gives the same numbers on every device, and knows nothing of
//! OpenCL, of bundles or of the plan.

#![forbid(unsafe_code)]

pub mod emphasis;
pub mod fast;
pub mod mask;
pub mod png;
pub mod preview;
pub mod resize;
pub mod rng;
pub mod sampler;
pub mod tokenizer;
