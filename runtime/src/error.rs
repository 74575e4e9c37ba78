//! What can go wrong on the device: each message says what, where and what to do.

use kiln_bundle::BundleError;
use opencl3::error_codes::{ClError, error_text};
use thiserror::Error;

use crate::os::library::Attempt;
use crate::pipeline::png::PngError;
use crate::pipeline::sampler::SamplerError;
use crate::pipeline::tokenizer::TokenizerError;

/// A bundle that cannot be run, or a run that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// There is no OpenCL library.
    #[error(
        "no OpenCL library on this machine; tried {}; install one (Debian: ocl-icd-libopencl1 \
         and pocl-opencl-icd) or name the vendor's in OPENCL_DYLIB_PATH",
        tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoLoader {
        /// What was tried, in order.
        tried: Vec<Attempt>,
    },
    /// The loader knows no driver.
    #[error(
        "the OpenCL library finds no platform; install a driver (Debian: pocl-opencl-icd runs on \
         any CPU) or check OCL_ICD_VENDORS"
    )]
    NoPlatform,
    /// No device has that index or name.
    #[error("no OpenCL device {asked:?}; there are: {}", available.join(", "))]
    NoDevice {
        /// What was asked for.
        asked: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The device is less than the bundle was compiled for.
    #[error(
        "device {device:?} has {found} of {what}, the bundle needs {needed}; \
         compile it for this device"
    )]
    Requirement {
        /// Name of the device.
        device: String,
        /// Which requirement.
        what: &'static str,
        /// What the bundle needs.
        needed: String,
        /// What the device has.
        found: String,
    },
    /// An OpenCL call failed.
    #[error("{call} failed with {} ({code}) at {at}", error_text(*code))]
    OpenCl {
        /// The function.
        call: &'static str,
        /// Its error code.
        code: i32,
        /// The step, buffer or kernel it was called for.
        at: String,
    },
    /// A kernel source does not compile.
    #[error("{at} does not compile ({}):\n{log}", error_text(*code))]
    Build {
        /// Kernel and options.
        at: String,
        /// The error code.
        code: i32,
        /// What the driver's compiler said.
        log: String,
    },
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The plan contradicts itself: a fault of the compiler that made it.
    #[error("the plan cannot be run: {0}; compile the bundle again")]
    Plan(String),
    /// The bundle has no such network, or the network no such input.
    #[error("{0}")]
    Input(String),
    /// The bundle's tokenizer is unusable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// There is no such sampler, or it cannot do what is asked for.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The picture does not fit its size, or its file cannot be written.
    #[error(transparent)]
    Png(#[from] PngError),
    /// The thread that reads weights ended early.
    #[error("the thread that reads weights stopped; see the error before this one")]
    StreamStopped,
    /// The plan takes more than the caller allows.
    #[error(
        "the bundle takes {peak_bytes} bytes, {budget_bytes} are allowed; compile it for this \
         budget"
    )]
    Budget {
        /// The plan's peak.
        peak_bytes: u64,
        /// What is allowed.
        budget_bytes: u64,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A file that is not the bundle cannot be written or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: std::path::PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// The process's exit code: 1 for a damaged bundle, 2 for a wrong request, 3 for the device,
    /// 130 (what shells say of Ctrl-C) if it was stopped.
    pub fn exit_code(&self) -> u8 {
        match self {
            RuntimeError::Bundle(BundleError::Io { .. } | BundleError::NotABundle { .. })
            | RuntimeError::Input(_)
            | RuntimeError::Sampler(_)
            | RuntimeError::Png(_)
            | RuntimeError::Io { .. }
            | RuntimeError::Budget { .. } => 2,
            RuntimeError::Cancelled => 130,
            RuntimeError::Bundle(_) | RuntimeError::Plan(_) | RuntimeError::Tokenizer(_) => 1,
            _ => 3,
        }
    }
}

/// Adds the call and the place to an OpenCL error.
pub(crate) trait At<T> {
    /// `at` is evaluated only when there is an error.
    fn at<S: Into<String>>(
        self,
        call: &'static str,
        at: impl FnOnce() -> S,
    ) -> Result<T, RuntimeError>;
}

impl<T> At<T> for Result<T, ClError> {
    fn at<S: Into<String>>(
        self,
        call: &'static str,
        at: impl FnOnce() -> S,
    ) -> Result<T, RuntimeError> {
        self.map_err(|ClError(code)| RuntimeError::OpenCl { call, code, at: at().into() })
    }
}
