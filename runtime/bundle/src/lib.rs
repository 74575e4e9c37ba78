//! The bundle: one file that holds a compiled model, and the contract between compiler and runtime.
//!
//! [`plan`] says what a program is, [`check`] decides, independently of the planner, whether a plan
//! keeps its promises, [`rationale`] why it is as it is, [`mod@format`] lays sections out in a
//! file, [`codec`] turns a plan into bytes and [`whole`] writes files that are whole. This crate
//! knows nothing of OpenCL, of graphs or of checkpoints.
#![forbid(unsafe_code)]

pub mod check;
pub mod codec;
pub mod error;
pub mod format;
pub mod plan;
pub mod rationale;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod whole;

pub use error::BundleError;
pub use format::{BundleFile, BundleWriter, hash};
