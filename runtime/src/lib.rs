//! The OpenCL runtime: walks a compiled plan on a device inside the memory it was promised.
//!
//! [`session`] is the entry: it opens a bundle and makes pictures or evaluates single networks.
//! Under it, [`executor`] walks a network's steps, [`stream`] reads blocks into slots on a
//! thread of its own, [`reading`] reads them past the page cache, [`memory`] holds every device
//! allocation, [`binding`] resolves arguments, [`program`] builds kernels and [`device`] finds
//! devices. [`pipeline`] is what surrounds the networks, and [`cli`] the command. [`probe`] runs
//! single kernels, for self-tests of devices.
//!
//! **Invariant**: nothing is allocated on the device after load. **Invariant**: nothing is
//! decided here that a plan can decide. `unsafe` is in [`memory`], [`program`], `launch`,
//! `recording`, [`executor`], [`probe`] and [`ffi`], the C interface.
#![deny(unsafe_code)]
// Nobody is there to read why a program on a device ended: failures are errors, never panics.
// Modules that work on the host's own arrays may index.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub mod binding;
#[cfg(feature = "cli")]
#[allow(clippy::indexing_slicing)]
pub mod cli;
pub mod device;
pub mod error;
pub mod executor;
pub mod ffi;
mod launch;
pub mod memory;
#[allow(clippy::indexing_slicing)]
pub mod npy;
#[allow(clippy::indexing_slicing)]
pub mod pipeline;
pub mod probe;
#[allow(clippy::indexing_slicing)]
pub mod program;
pub mod reading;
mod recording;
#[allow(clippy::indexing_slicing)]
pub mod report;
#[allow(clippy::indexing_slicing)]
pub mod session;
pub mod stream;
#[allow(clippy::indexing_slicing)]
pub mod tensor;

pub use error::RuntimeError;
pub use session::{
    Canceller, ExecutorOptions, Picture, Progress, Request, Session, SessionOptions,
};
pub use tensor::{Tensor, Values};
