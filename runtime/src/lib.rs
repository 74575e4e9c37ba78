//! The OpenCL runtime: walks a compiled plan on a device inside the memory it was promised.
//!
//! [`session`] is the entry: it opens a bundle and makes pictures or evaluates single networks.
//! Under it, [`executor`] walks a network's steps, [`stream`] reads blocks into slots on a
//! thread of its own, [`reading`] reads them past the page cache, [`memory`] holds every device allocation, [`binding`] resolves arguments,
//! [`program`] builds kernels and [`device`] finds devices. [`pipeline`] is what surrounds the
//! networks, and [`cli`] the command. [`probe`] runs single kernels, for self-tests of devices.
//!
//! **Invariant**: nothing is allocated on the device after load. **Invariant**: nothing is
//! decided here that a plan can decide. `unsafe` is in [`memory`], [`program`], `launch`,
//! `recording`, [`executor`], [`probe`] and [`ffi`], the C interface.
#![deny(unsafe_code)]

pub mod binding;
#[cfg(feature = "cli")]
pub mod cli;
pub mod device;
pub mod error;
pub mod executor;
pub mod ffi;
mod launch;
pub mod memory;
pub mod npy;
pub mod pipeline;
pub mod probe;
pub mod program;
pub mod reading;
mod recording;
pub mod report;
pub mod session;
pub mod stream;
pub mod tensor;

pub use error::RuntimeError;
pub use session::{
    Canceller, ExecutorOptions, Picture, Progress, Request, Session, SessionOptions,
};
pub use tensor::{Tensor, Values};
