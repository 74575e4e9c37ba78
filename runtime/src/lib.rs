//! The OpenCL runtime.

pub mod npy;
pub mod pipeline;
