//! `kiln-run`: makes a picture with a compiled model, on the device that it was compiled for.

use std::process::ExitCode;

use clap::Parser;
use kiln_runtime::cli::{self, RunArgs};

/// Makes pictures from prompts with a compiled model
#[derive(Parser)]
#[command(name = "kiln-run", version)]
#[command(after_help = "Examples:
  kiln-run sd21.kiln --prompt 'a lighthouse at dusk' -o out.png
  kiln-run sd21.kiln -p 'a lighthouse' --sampler dpm++2m --count 4 -o 'out-{seed}.png'
  kiln-run sd21.kiln --prompts prompts.jsonl -o out.png         lines: {\"prompt\": \"a lighthouse\"}
  kiln-run sd21.kiln -p 'at night' --init-image day.png --strength 0.6 --preview-every 5 -o out.png")]
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
