//! The OpenCL runtime: executes a compiled plan on a device inside the plan's memory.
//!
//! [`session`] is the entry: it opens a bundle, then makes images or evaluates single networks. It
//! rests on:
//!
//! - [`executor`], which walks the steps of a network;
//! - [`stream`], which reads weight blocks into slots on a thread of its own, and [`reading`],
//!   which keeps those reads out of the page cache;
//! - [`memory`], which holds every device allocation;
//! - [`binding`], which resolves kernel arguments;
//! - [`program`], which builds kernels;
//! - [`device`], which finds devices.
//!
//! [`pipeline`] is everything around the networks: tokenizer, samplers, PNG. [`cli`] is the
//! command, [`ffi`] the C interface, [`os`] the calls into the operating system. [`probe`] runs
//! single kernels for self-tests of devices.
//!
//! **Invariant**: nothing is allocated on the device after load. **Invariant**: the runtime makes
//! no decision that a plan can make. `unsafe` is confined to [`memory`], [`program`], `launch`,
//! `recording`, [`executor`], [`probe`], [`ffi`] and [`os`].
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
pub mod os;
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
