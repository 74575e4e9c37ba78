//! The OpenCL runtime.

pub mod pipeline;
