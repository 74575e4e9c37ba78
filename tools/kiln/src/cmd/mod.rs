//! The subcommands, one file each.

pub mod arena;
pub mod bench;
pub mod compile;
pub mod completions;
pub mod devices;
pub mod doctor;
pub mod eval;
pub mod explain;
pub mod files;
pub mod graph;
pub mod inspect;
pub mod key;
pub mod lora;
pub mod man;
pub mod prepare;
pub mod print;
pub mod run;
pub mod serve;
pub mod show;
pub mod sign;
pub mod tokenize;
pub mod tune;
pub mod verify;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use kiln_bundle::error::BundleError;
use kiln_bundle::format::BundleFile;
use kiln_runtime::RuntimeError;
use std::path::Path;
use std::process::ExitCode;

/// Opens and checks a bundle.
pub fn open_bundle(path: &Path) -> Result<BundleFile> {
    Ok(BundleFile::open(path)?)
}

/// The exit code of an error: 1 does not fit or is unsound, 2 usage or input, 3 device.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<kiln_compiler::DoesNotFit>().is_some()
        || error.downcast_ref::<Refused>().is_some()
    {
        return ExitCode::from(1);
    }
    if matches!(
        error.downcast_ref::<BundleError>(),
        Some(
            BundleError::Unsound { .. }
                | BundleError::Unsigned { .. }
                | BundleError::OtherSigner { .. }
                | BundleError::Forged { .. }
        )
    ) {
        return ExitCode::from(1);
    }
    if error.downcast_ref::<Unfit>().is_some() {
        return ExitCode::from(3);
    }
    match error.downcast_ref::<RuntimeError>() {
        Some(error) => ExitCode::from(error.exit_code()),
        None => ExitCode::from(2),
    }
}

/// A negative answer: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// No device is fit: exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

/// A progress bar in bytes. Hidden unless standard error is a terminal.
pub fn byte_bar(total_bytes: u64, what: &str) -> Result<ProgressBar> {
    let bar = ProgressBar::new(total_bytes);
    let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).context("a constant template")?);
    bar.set_message(what.to_string());
    Ok(bar)
}
