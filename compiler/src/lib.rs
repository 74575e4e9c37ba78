//! The ahead-of-time compiler: graphs and a checkpoint in, one bundle out.
//!
//! [`plan_model`] decides everything and [`emit::emit`] writes it. The compiler knows no
//! architecture (it receives a [`Model`]) and no OpenCL (a device is a [`device::DeviceProfile`]).
//!
//! The modules below stand in the order of the pipeline: each uses modules above it only.
#![forbid(unsafe_code)]

pub mod size;

pub mod device;
pub mod model;
pub mod strategy;
pub mod weights;

pub mod passes;

pub mod constants;
pub mod quantize;
pub mod storage;

pub mod request;

pub mod plan;

pub mod emit;

pub use model::Model;
pub use plan::{DoesNotFit, plan_model};
