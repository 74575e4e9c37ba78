//! `kiln-run`: makes a picture with a compiled model, on the device that it was compiled for.

use std::process::ExitCode;

use clap::Parser;
use kiln_runtime::cli::{self, PrepareArgs, RunArgs};

/// What compiles kernels ahead, instead of a run.
const PREPARE: &str = "--prepare";

/// Makes a picture from a prompt with a compiled model
#[derive(Parser)]
#[command(name = "kiln-run", version)]
#[command(
    after_help = "kiln-run --prepare FILE.kiln compiles the kernels ahead, as the first run does."
)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

/// Compiles the kernels of a model ahead
#[derive(Parser)]
#[command(name = "kiln-run", version)]
struct PrepareCli {
    /// Compile the kernels instead of making a picture
    #[arg(long, required = true)]
    prepare: bool,
    #[command(flatten)]
    args: PrepareArgs,
}

fn main() -> ExitCode {
    let done = match std::env::args_os().any(|argument| argument == PREPARE) {
        true => cli::prepare(&PrepareCli::parse().args),
        false => cli::run(&Cli::parse().run, &[PREPARE]),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
