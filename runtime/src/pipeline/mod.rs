//! What surrounds the networks: text to tokens, noise, the sampler's steps, and the picture file.
//!
//! Everything here runs on the CPU, gives the same numbers on every device, and knows nothing of
//! OpenCL, of bundles or of the plan.

#![forbid(unsafe_code)]

pub mod png;
pub mod preview;
pub mod rng;
pub mod sampler;
pub mod tokenizer;
