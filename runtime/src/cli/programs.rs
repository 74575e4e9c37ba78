//! Arguments about compiled programs, and the command that compiles them ahead.

use std::io;
use std::path::{Path, PathBuf};

use kiln_bundle::sign::PublicKey;
use kiln_bundle::{BundleError, BundleFile};

use super::bar::{Bar, COMPILING};
use crate::error::RuntimeError;
use crate::program::ProgramOptions;
use crate::program::cache::ProgramCache;
use crate::program::prepare::{self, PrepareCommand};

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct CacheArgs {
    /// Folder of compiled kernels [default: $KILN_CACHE, else kiln/programs in the user's cache]
    #[cfg_attr(feature = "clap", arg(long, value_name = "DIR"))]
    pub cache: Option<PathBuf>,
}

impl CacheArgs {
    /// The folder, or the user's. `None` if there is neither.
    pub fn cache(&self) -> Option<ProgramCache> {
        self.cache.clone().map(ProgramCache::new).or_else(ProgramCache::of_user)
    }

    /// Program options of a session. `prepare`: the arguments with which this program runs
    /// [`prepare()`].
    pub fn programs(&self, prepare: &[&str]) -> ProgramOptions {
        ProgramOptions { cache: self.cache(), prepare: PrepareCommand::this_program(prepare) }
    }
}

/// Compiles the kernels of a bundle ahead, so that its first run starts at once.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct PrepareArgs {
    /// Compiled model
    #[cfg_attr(feature = "clap", arg(value_name = "FILE.kiln"))]
    pub bundle: PathBuf,
    /// OpenCL device: auto, an index, or part of a name
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "auto|INDEX|NAME", default_value = "auto")
    )]
    pub device: String,
    /// Folder of compiled kernels
    #[cfg_attr(feature = "clap", command(flatten))]
    pub cache: CacheArgs,
    /// Refuse a bundle that this key has not signed: 64 hexadecimal digits, which kiln key prints
    #[cfg_attr(feature = "clap", arg(long, value_name = "KEY"))]
    pub trust: Option<PublicKey>,
    /// Compile the programs that standard input names, as one of several processes
    #[cfg_attr(feature = "clap", arg(long, hide = true))]
    pub worker: bool,
}

/// Opens a bundle, which `trust` must have signed if it is given.
pub(super) fn open(path: &Path, trust: Option<PublicKey>) -> Result<BundleFile, BundleError> {
    match trust {
        Some(key) => BundleFile::open_signed(path, key),
        None => BundleFile::open(path),
    }
}

/// Compiles the programs that the cache lacks.
///
/// `command`: the arguments with which this program runs this function.
/// Errors: those of [`prepare::prepare`]; `Input` if there is no folder for a cache.
pub fn prepare(args: &PrepareArgs, command: &[&str]) -> Result<(), RuntimeError> {
    let Some(cache) = args.cache.cache() else {
        let message = "no folder for compiled kernels: give --cache, KILN_CACHE or HOME";
        return Err(RuntimeError::Input(message.into()));
    };
    let bundle = open(&args.bundle, args.trust)?;
    if args.worker {
        let (input, output) = (io::stdin().lock(), io::stdout().lock());
        return prepare::work(&bundle, &args.device, &cache, input, output);
    }
    let bar = Bar::new();
    let command = PrepareCommand::this_program(command);
    let mut show = |done, count| bar.show(COMPILING, done, count);
    let result = prepare::prepare(&bundle, &args.device, &cache, command.as_ref(), &mut show);
    bar.clear();
    result
}
