//! `kiln prepare`: compiles the kernels of a bundle ahead.

use anyhow::Result;

/// Name of this command, by which the others run it.
pub const NAME: &str = "prepare";

/// Compile the kernels of a bundle for this machine's driver, as its first run does.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln prepare sd21.kiln")]
pub struct Args {
    #[command(flatten)]
    prepare: kiln_runtime::cli::PrepareArgs,
}

/// Compiles.
pub fn run(args: Args) -> Result<()> {
    Ok(kiln_runtime::cli::prepare(&args.prepare, &[NAME])?)
}
