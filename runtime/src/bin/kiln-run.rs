//! `kiln-run`: makes a picture with a compiled model, on the device that it was compiled for.

use std::process::ExitCode;

use clap::Parser;
use kiln_runtime::cli::{self, RunArgs};

/// Makes a picture from a prompt with a compiled model
#[derive(Parser)]
#[command(name = "kiln-run", version)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn main() -> ExitCode {
    match cli::run(&Cli::parse().run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
