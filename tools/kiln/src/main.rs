//! The `kiln` command: compile a checkpoint into a bundle, run it, and look inside.
//!
//! Standard output is written by `cmd::print`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod cmd;
mod pictures;
use kiln_models as model;
mod size;

use anyhow::Result;
use clap::error::ContextKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::{self, Write};
use std::process::ExitCode;

use cmd::print::OutputError;

/// Makes pictures with Stable Diffusion 1 or 2 on any OpenCL device, inside a memory budget.
///
/// `compile` turns a checkpoint into one file, a bundle, for one device and one memory budget.
/// `run` makes pictures with it, `serve` does so for a browser. `inspect` shows where its memory goes.
#[derive(Parser)]
#[command(name = "kiln", version, arg_required_else_help = true)]
#[command(after_help = "Examples:
  Check this machine; the report says what to install:
    kiln doctor
  A first picture, with the small model that comes with kiln:
    kiln compile --model emoji-256 -o emoji.kiln
    kiln run emoji.kiln --prompt 'a red heart' -o heart.png
  Stable Diffusion 2.1-base from its checkpoint, in 1 GiB of memory:
    kiln compile --model sd21-base --weights v2-1_512-ema-pruned.safetensors \\
        --budget 1GiB -o sd21.kiln
    kiln run sd21.kiln --prompt 'a lighthouse at dusk' -o lighthouse.png
  Where the memory goes:
    kiln inspect sd21.kiln

Options of a command: kiln COMMAND --help")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum Command {
    Compile(cmd::compile::Args),
    Run(cmd::run::Args),
    Inspect(cmd::inspect::Args),
    Serve(cmd::serve::Args),
    Explain(cmd::explain::Args),
    Bench(cmd::bench::Args),
    Tune(cmd::tune::Args),
    Show(cmd::show::Args),
    Doctor(cmd::doctor::Args),
    Devices(cmd::devices::Args),
    Prepare(cmd::prepare::Args),
    Key(cmd::key::Args),
    Sign(cmd::sign::Args),
    Verify(cmd::verify::Args),
    Lora(cmd::lora::Args),
    Eval(cmd::eval::Args),
    Tokenize(cmd::tokenize::Args),
    Graph(cmd::graph::Args),
    Arena(cmd::arena::Args),
    Completions(cmd::completions::Args),
    Man(cmd::man::Args),
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Compile(args) => cmd::compile::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::Serve(args) => cmd::serve::run(args),
        Command::Prepare(args) => cmd::prepare::run(args),
        Command::Key(args) => cmd::key::run(args),
        Command::Sign(args) => cmd::sign::run(args),
        Command::Verify(args) => cmd::verify::run(args),
        Command::Lora(args) => cmd::lora::run(args),
        Command::Eval(args) => cmd::eval::run(args),
        Command::Tokenize(args) => cmd::tokenize::run(args),
        Command::Show(args) => cmd::show::run(args),
        Command::Inspect(args) => cmd::inspect::run(args),
        Command::Doctor(args) => cmd::doctor::run(args),
        Command::Explain(args) => cmd::explain::run(args),
        Command::Bench(args) => cmd::bench::run(args),
        Command::Tune(args) => cmd::tune::run(args),
        Command::Devices(args) => cmd::devices::run(args),
        Command::Graph(args) => cmd::graph::run(args),
        Command::Arena(args) => cmd::arena::run(args),
        Command::Completions(args) => cmd::completions::run(args, Cli::command()),
        Command::Man(args) => cmd::man::run(args, Cli::command()),
    }
}

/// An error and its causes in one line, without a cause that the text before it says already.
fn explain(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let add = |text: String, cause: String| match text.contains(&cause) {
        true => text,
        false => format!("{text}: {cause}"),
    };
    causes.reduce(add).unwrap_or_default()
}

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        // Help goes to standard output, a wrong argument to standard error.
        Err(mut answer) => {
            // It advises to pass an unknown option as a value, which is never meant here.
            answer.remove(ContextKind::Suggested);
            match answer.print() {
                Err(error) if !answer.use_stderr() => Err(OutputError(error).into()),
                _ => return ExitCode::from(answer.exit_code() as u8),
            }
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref().is_some_and(OutputError::is_closed) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error is no failure of its own.
            let _ = writeln!(io::stderr(), "error: {}", explain(&error));
            cmd::exit_code(&error)
        }
    }
}
