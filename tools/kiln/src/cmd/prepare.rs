//! `kiln prepare`: compiles the kernels of a bundle ahead of its first run.

use anyhow::Result;

/// Name of this command. Other commands run it under this name.
pub const NAME: &str = "prepare";

/// Compile the kernels of a bundle for this machine's driver ahead of the first run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln prepare sd21.kiln")]
pub struct Args {
    #[command(flatten)]
    prepare: kiln_runtime::cli::PrepareArgs,
}

/// Compiles the kernels.
pub fn run(args: Args) -> Result<()> {
    Ok(kiln_runtime::cli::prepare(&args.prepare, &[NAME])?)
}
