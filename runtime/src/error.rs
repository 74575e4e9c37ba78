//! Errors of running a bundle. Each message names the fault, its place and a remedy.

use kiln_bundle::BundleError;
use kiln_bundle::lora::LoraError;
use opencl3::error_codes::{ClError, error_text};
use thiserror::Error;

use crate::os::library::{Attempt, CANDIDATES};
use crate::pipeline::png::PngError;
use crate::pipeline::sampler::SamplerError;
use crate::pipeline::tokenizer::TokenizerError;

/// A bundle that cannot be run, or a run that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// There is no OpenCL library.
    #[error("{}", no_loader(tried))]
    NoLoader {
        /// The attempts, in order.
        tried: Vec<Attempt>,
    },
    /// The loader knows no driver.
    #[error(
        "the OpenCL library finds no platform; install a driver (Debian: pocl-opencl-icd runs on \
         any CPU) or check OCL_ICD_VENDORS"
    )]
    NoPlatform,
    /// The drivers list no device.
    #[error("no OpenCL device: {} lists none; kiln doctor says what to do", platforms.join(", "))]
    NoDevices {
        /// Names of the platforms.
        platforms: Vec<String>,
    },
    /// PoCL lists no device without a cache folder of its own.
    #[error(
        "PoCL cannot write its cache folder {}: {source}; make it writable, or set POCL_CACHE_DIR",
        folder.display()
    )]
    PoclFolder {
        /// The folder.
        folder: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// No device has this index or name.
    #[error("no OpenCL device {asked:?}; there are: {}", available.join(", "))]
    NoDevice {
        /// The requested index or name.
        asked: String,
        /// Names of the available devices.
        available: Vec<String>,
    },
    /// The device does not meet a requirement of the bundle.
    #[error(
        "device {device:?} has {found} of {what}, the bundle needs {needed}; \
         compile it for this device"
    )]
    Requirement {
        /// Name of the device.
        device: String,
        /// The requirement.
        what: &'static str,
        /// The bundle's need.
        needed: String,
        /// The device's value.
        found: String,
    },
    /// The device lacks an OpenCL extension of the bundle.
    #[error(
        "device {device:?} lacks the OpenCL extension {extension}, which the bundle needs; compile \
         it for this device, or with --fp32-arithmetic"
    )]
    Extension {
        /// Name of the device.
        device: String,
        /// Name of the extension.
        extension: String,
    },
    /// The processor lacks instructions of the bundle.
    #[error(
        "device {device:?} lacks the instructions {instructions}, which the bundle needs; compile \
         it on this machine, or with --device cpu-avx512 or cpu-avx2"
    )]
    Instructions {
        /// Name of the device.
        device: String,
        /// Name of the instructions.
        instructions: String,
    },
    /// An OpenCL call failed.
    #[error("{call} failed with {} ({code}) at {at}", error_text(*code))]
    OpenCl {
        /// The function.
        call: &'static str,
        /// Its error code.
        code: i32,
        /// The step, buffer or kernel of the call.
        at: String,
    },
    /// A kernel source does not compile.
    #[error("{at} does not compile ({}):\n{log}", error_text(*code))]
    Build {
        /// Kernel and options.
        at: String,
        /// The error code.
        code: i32,
        /// Output of the driver's compiler.
        log: String,
    },
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The plan contradicts itself: a fault of its compiler.
    #[error("the plan cannot be run: {0}; compile the bundle again")]
    Plan(String),
    /// The bundle lacks a network, or a network lacks an input.
    #[error("{0}")]
    Input(String),
    /// A LoRA cannot be read, or does not fit the bundle.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The bundle's tokenizer is unusable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The sampler is unknown, or cannot fulfil the request.
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    /// The image does not fit its size, or its file cannot be written.
    #[error(transparent)]
    Png(#[from] PngError),
    /// The thread that reads weights has ended early.
    #[error("the thread that reads weights stopped; see the error before this one")]
    StreamStopped,
    /// The plan needs more than the caller allows.
    #[error(
        "the bundle takes {peak_bytes} bytes, {budget_bytes} are allowed; compile it for this \
         budget"
    )]
    Budget {
        /// The plan's peak.
        peak_bytes: u64,
        /// The caller's limit.
        budget_bytes: u64,
    },
    /// The error of one line of a batch.
    #[error("{place}: {error}")]
    Line {
        /// The file and the number of its line.
        place: String,
        /// The error, which the message says.
        error: Box<RuntimeError>,
    },
    /// A network gives infinities or NaN.
    #[error(
        "{network} gives numbers that are not finite{}; lower the guidance, or compile the bundle \
         with --precision fp32; kiln doctor FILE.kiln looks for the op",
        step.map(|step| format!(" at step {step}")).unwrap_or_default()
    )]
    NotFinite {
        /// Name of the network.
        network: String,
        /// Number of the sampler's step, from 1; `None` outside of the sampler.
        step: Option<usize>,
    },
    /// The caller stopped the run.
    #[error("cancelled")]
    Cancelled,
    /// A file that is not the bundle cannot be written or read.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The failed action.
        action: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// The process's exit code: 1 for a damaged bundle, 2 for an invalid request, 3 for the device,
    /// 130 (the shell's code for Ctrl-C) if it was stopped.
    pub fn exit_code(&self) -> u8 {
        match self {
            RuntimeError::Bundle(
                BundleError::Io { .. }
                | BundleError::NotABundle { .. }
                | BundleError::NoSuchSize { .. },
            )
            | RuntimeError::Input(_)
            | RuntimeError::Sampler(_)
            | RuntimeError::Png(_)
            | RuntimeError::Lora(_)
            | RuntimeError::Io { .. }
            | RuntimeError::Budget { .. } => 2,
            RuntimeError::Line { error, .. } => error.exit_code(),
            RuntimeError::Cancelled => 130,
            RuntimeError::Bundle(_)
            | RuntimeError::Plan(_)
            | RuntimeError::NotFinite { .. }
            | RuntimeError::Tokenizer(_) => 1,
            _ => 3,
        }
    }
}

fn no_loader(tried: &[Attempt]) -> String {
    let is_named = !tried.iter().map(|attempt| &*attempt.library).eq(CANDIDATES.iter().copied());
    let tried = tried.iter().map(Attempt::to_string).collect::<Vec<_>>().join(", ");
    if is_named {
        return format!(
            "cannot open the OpenCL library {tried}; check --opencl, OPENCL_DYLIB_PATH"
        );
    }
    format!(
        "no OpenCL library on this machine; tried {tried}; install one (Debian: ocl-icd-libopencl1 \
         and pocl-opencl-icd) or name the vendor's in OPENCL_DYLIB_PATH"
    )
}

/// Adds the call and the place to an OpenCL error.
pub(crate) trait At<T> {
    /// Evaluates `at` only if there is an error.
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
