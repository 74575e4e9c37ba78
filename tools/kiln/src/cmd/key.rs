//! `kiln key`: makes a key that signs bundles.

use anyhow::{Context, Result};
use ed25519_compact::{KeyPair, SecretKey};
use kiln_bundle::sign::SigningKey;
use kiln_bundle::whole::WholeFile;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Longest file that is read as a key.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Make a key that signs bundles, and print its public half.
///
/// The file is the secret: who has it can sign in your name. Its format is the one of
/// `openssl genpkey -algorithm ed25519`. The public half, 64 hexadecimal digits, is what --trust
/// takes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln key signer.pem
  kiln key --public signer.pem")]
pub struct Args {
    /// Print the public half of a key that is there
    #[arg(long)]
    pub public: bool,
    /// File of the secret key
    #[arg(value_name = "FILE.pem")]
    pub file: PathBuf,
}

/// Makes the key, or reads it.
pub fn run(args: Args) -> Result<()> {
    let key = match args.public {
        true => read(&args.file)?,
        false => make(&args.file)?,
    };
    super::print::line(key.public())
}

fn make(path: &Path) -> Result<SigningKey> {
    let pair = KeyPair::generate();
    let write = || -> io::Result<()> {
        if path.exists() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it exists"));
        }
        let mut file = WholeFile::create(path)?;
        file.for_owner_alone()?;
        file.write_all(pair.sk.to_pem().as_bytes())?;
        file.finish()
    };
    write().with_context(|| format!("cannot make the key {}", path.display()))?;
    read(path)
}

/// Reads a secret key.
///
/// Errors: the file cannot be read, or is no Ed25519 key in PKCS#8 as PEM.
pub fn read(path: &Path) -> Result<SigningKey> {
    let text =
        read_short(path).with_context(|| format!("cannot read the key {}", path.display()))?;
    let secret = SecretKey::from_pem(&text).ok().map(|key| *key.seed());
    secret.and_then(SigningKey::from_secret).with_context(|| {
        format!("{} is no secret Ed25519 key in PEM; kiln key makes one", path.display())
    })
}

fn read_short(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    fs::File::open(path)?.take(MAX_KEY_BYTES).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
