//! `kiln prepare`: compiles the kernels of a bundle ahead of its first run.

use std::path::PathBuf;

use anyhow::Result;
use kiln_runtime::program::prepare;

use super::{files, print};

/// Name of this command. Other commands run it under this name.
pub const NAME: &str = "prepare";

/// Compile the kernels of a bundle for this machine's driver ahead of the first run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln prepare sd21.kiln
  kiln prepare sd21.kiln --into sd21.kiln")]
pub struct Args {
    #[command(flatten)]
    prepare: kiln_runtime::cli::PrepareArgs,
    /// Write a copy of the bundle with the compiled kernels in it, for devices with this driver.
    /// It may be the bundle itself. Compiled kernels of other drivers in it are kept. The copy is
    /// not signed; sign it afterwards
    #[arg(long, value_name = "FILE.kiln")]
    into: Option<PathBuf>,
}

/// Compiles the kernels.
pub fn run(args: Args) -> Result<()> {
    if let Some(into) = &args.into {
        files::check([], "--into", into, Some("kiln"))?;
    }
    kiln_runtime::cli::prepare(&args.prepare, &[NAME])?;
    if args.prepare.worker {
        return Ok(());
    }
    let bundle = &args.prepare.bundle;
    print::line(format_args!("the kernels of {} are compiled", bundle.display()))?;
    if let (Some(into), Some(cache)) = (&args.into, args.prepare.cache.cache()) {
        let file = super::open_bundle(bundle)?;
        prepare::write_into(&file, &args.prepare.device, &cache, into)?;
        let unsigned = match file.signer()? {
            Some(_) => "; it is not signed any more, kiln sign signs it again",
            None => "",
        };
        print::line(format_args!("wrote {} with them{unsigned}", into.display()))?;
    }
    Ok(())
}
