//! `kiln run`: the same command as `kiln-run` on the device.

use anyhow::Result;

/// Make a picture from a prompt with a compiled model.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln run emoji.kiln --prompt 'a red heart' -o heart.png
  kiln run sd21.kiln --prompt 'a lighthouse at dusk' --negative-prompt blurry \\
      --seed 7 --steps 25 --guidance 8 --report report.json -o out.png")]
pub struct Args {
    #[command(flatten)]
    run: kiln_runtime::cli::RunArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<()> {
    Ok(kiln_runtime::cli::run(&args.run, &[super::prepare::NAME])?)
}
