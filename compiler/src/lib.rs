//! The ahead-of-time compiler.

pub mod plan;
pub mod weights;
