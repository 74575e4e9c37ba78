//! `kiln sign`: signs a bundle.

use anyhow::Result;
use std::path::PathBuf;

use super::{files, key, open_bundle, print};

/// Sign a bundle: plans, kernels, tokenizer, compiled kernels in it, and weights.
///
/// With --trust, a run then refuses bundles of others.
#[derive(clap::Args)]
#[command(after_help = "Example:
  kiln sign sd21.kiln --key signer.pem -o sd21.kiln")]
pub struct Args {
    /// Compiled model
    #[arg(value_name = "FILE.kiln")]
    pub bundle: PathBuf,
    /// Secret key, from kiln key
    #[arg(long, value_name = "FILE.pem")]
    pub key: PathBuf,
    /// Signed copy to write. It may be the bundle itself
    #[arg(short, long, value_name = "FILE.kiln")]
    pub output: PathBuf,
}

/// Signs the bundle.
pub fn run(args: Args) -> Result<()> {
    files::check([("--key", args.key.as_path())], "--output", &args.output, Some("kiln"))?;
    let key = key::read(&args.key)?;
    let bundle = open_bundle(&args.bundle)?;
    let file_bytes = bundle.file().metadata().map_or(0, |found| found.len());
    files::check_room(&args.output, file_bytes)?;
    bundle.write_signed(&args.output, &key)?;
    print::line(format_args!("{}: signed by {}", args.output.display(), key.public()))
}
