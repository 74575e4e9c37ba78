//! Arguments about compiled programs, and the command that compiles them ahead.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use super::Bar;
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
    fn cache(&self) -> Option<ProgramCache> {
        self.cache.clone().map(ProgramCache::new).or_else(ProgramCache::of_user)
    }

    /// For a session. `prepare` are the arguments with which this program runs [`prepare()`].
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
    /// Where to
    #[cfg_attr(feature = "clap", command(flatten))]
    pub cache: CacheArgs,
}

/// Compiles what the cache lacks.
///
/// A bar on a terminal; a line `DONE COUNT` for each program where standard output is a pipe.
/// Errors: those of [`prepare::prepare`]; `Input` if there is no folder for a cache.
pub fn prepare(args: &PrepareArgs) -> Result<(), RuntimeError> {
    let Some(cache) = args.cache.cache() else {
        let message = "no folder for compiled kernels: give --cache, KILN_CACHE or HOME";
        return Err(RuntimeError::Input(message.into()));
    };
    let bar = Bar::new();
    let lines = !io::stdout().is_terminal();
    let heard = Cell::new(true);
    let result = prepare::prepare(&args.bundle, &args.device, &cache, &mut |done, count| {
        bar.show("compiling kernels", done, count);
        // Whoever asked may have gone; what is compiled is still of use.
        if lines && heard.get() {
            heard.set(writeln!(io::stdout(), "{done} {count}").is_ok());
        }
    });
    bar.clear();
    result
}
