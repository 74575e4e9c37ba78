//! The bundle: one file that holds a compiled model, and the contract between compiler and runtime.
//!
//! [`plan`] says what a program is, [`rationale`] why. [`check`] decides whether a plan keeps its
//! promises; it shares no code with the planner. [`mod@format`] lays sections out in a file,
//! [`codec`] turns a plan into bytes, [`whole`] gives a file its name when it is complete, and
//! [`paths`] compares the files of a command, [`sign`] has the keys of signers, and [`lora`] is a LoRA
//! beside a bundle. This crate knows nothing of OpenCL, graphs or checkpoints.
#![forbid(unsafe_code)]

pub mod check;
pub mod codec;
pub mod error;
pub mod format;
pub mod lora;
pub mod paths;
pub mod plan;
pub mod rationale;
pub mod sign;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod whole;

pub use error::BundleError;
pub use format::{BundleFile, BundleWriter, hash};
