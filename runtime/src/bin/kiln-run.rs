//! `kiln-run`: makes a picture with a compiled model, on the device that it was compiled for.

use std::io::{self, Write};
use std::process::ExitCode;

use kiln_runtime::RuntimeError;
use kiln_runtime::cli::{self, Command, HELP, Png};

/// Compiles kernels ahead, in place of a run.
const PREPARE: &str = "--prepare";

fn main() -> ExitCode {
    let command = Command::parse(std::env::args_os().skip(1)).map_err(RuntimeError::Input);
    let done = command.and_then(|command| match command {
        Command::Run(args) => cli::run(&args, &[PREPARE], &Png),
        Command::Prepare(args) => cli::prepare(&args, &[PREPARE]),
        Command::Help => print(HELP),
        Command::Version => print(concat!("kiln-run ", env!("CARGO_PKG_VERSION"), "\n")),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error is no failure of its own.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &str) -> Result<(), RuntimeError> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let message = format!("cannot write to standard output: {error}");
            Err(RuntimeError::Input(message))
        }
        _ => Ok(()),
    }
}
