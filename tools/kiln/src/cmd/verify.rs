//! `kiln verify`: compares a bundle with its checksums and its signature.

use anyhow::Result;
use kiln_bundle::BundleFile;
use kiln_bundle::sign::PublicKey;
use std::path::PathBuf;

use super::{byte_bar, open_bundle, print};

/// Compare all bytes of a bundle with its checksums and its signature.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln verify sd21.kiln
  kiln verify sd21.kiln \\
      --trust 19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1")]
pub struct Args {
    /// Compiled model
    #[arg(value_name = "FILE.kiln")]
    pub bundle: PathBuf,
    /// Refuse a bundle that this key has not signed: 64 hexadecimal digits, which kiln key prints
    #[arg(long, value_name = "KEY")]
    pub trust: Option<PublicKey>,
}

/// Verifies the bundle.
pub fn run(args: Args) -> Result<()> {
    let bundle = match args.trust {
        Some(key) => BundleFile::open_signed(&args.bundle, key)?,
        None => open_bundle(&args.bundle)?,
    };
    // Without --trust, a signature must be that of the signer that the bundle names.
    let signer = bundle.signer()?;
    let bundle = signer.map(|key| bundle.signed_by(key)).transpose()?.unwrap_or(bundle);
    let bar = byte_bar(bundle.weights_len_bytes(), "reading weights")?;
    bundle.verify_all(|done_bytes| bar.set_position(done_bytes))?;
    bar.finish_and_clear();
    let path = args.bundle.display();
    match signer {
        Some(signer) => print::line(format_args!("{path}: whole; signed by {signer}")),
        None => print::line(format_args!("{path}: whole; not signed")),
    }
}
