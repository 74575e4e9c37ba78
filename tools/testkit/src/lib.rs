//! Runs lowerings of ops on an OpenCL device and compares them with the references in `f32`.
//!
//! [`Loaded`] is one lowering with its memory, for tests, `kiln doctor` and `kiln bench`. [`Check`]
//! compares the variants of an op with its reference. [`Tolerance`] and [`bounds`] are the allowed
//! errors. [`native`] builds and runs the programs in C and Java.
#![forbid(unsafe_code)]

pub mod bounds;
mod check;
pub mod half;
mod loaded;
pub mod native;
mod pairs;
mod runner;
mod tolerance;
mod values;

pub use check::{Check, Lowered, check, check_values, targets};
pub use loaded::{Loaded, Source};
pub use pairs::Pairs;
pub use runner::{Runner, device};
pub use tolerance::{Comparison, Tolerance, assert_close, compare};
pub use values::{decode, every, random, random_stored, reference, relative_l2, sampled, stored};
