//! Compiles a bundle's programs into a cache, in a process made for that.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_bundle::BundleFile;
use opencl3::context::Context;

use super::cache::ProgramCache;
use super::warm::Warmer;
use super::{binary, build, create_kernels, specs};
use crate::device::{self, DeviceFacts, lock_driver};
use crate::error::{At, RuntimeError};

/// A command that does what [`prepare`] does.
///
/// To its arguments are added the bundle, `--device INDEX` and `--cache FOLDER`. It writes a line
/// `DONE COUNT` for each program to standard output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrepareCommand {
    /// What is run.
    pub program: PathBuf,
    /// Its first arguments.
    pub args: Vec<OsString>,
}

impl PrepareCommand {
    /// The program of this process with other arguments; `None` if it cannot be found.
    pub fn this_program(args: &[&str]) -> Option<PrepareCommand> {
        let program = std::env::current_exe().ok()?;
        Some(PrepareCommand { program, args: args.iter().map(OsString::from).collect() })
    }

    /// Runs it. `progress` hears how many programs are compiled, and of how many.
    ///
    /// Errors: it cannot be started or fails. What it says is lost: whoever builds what is still
    /// missing will meet the same error.
    pub fn run(
        &self,
        bundle: &Path,
        device: &DeviceFacts,
        cache: &ProgramCache,
        progress: &mut dyn FnMut(usize, usize),
    ) -> io::Result<()> {
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(bundle)
            .args(["--device", &device.index.to_string()])
            .arg("--cache")
            .arg(cache.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines());
        for line in lines.map_while(Result::ok) {
            let mut numbers = line.split(' ').map_while(|number| number.parse().ok());
            if let (Some(done), Some(count)) = (numbers.next(), numbers.next()) {
                progress(done, count);
            }
        }
        match child.wait()? {
            status if status.success() => Ok(()),
            status => {
                Err(io::Error::other(format!("{} ends with {status}", self.program.display())))
            }
        }
    }
}

/// Compiles what a cache lacks of a bundle's programs, and evicts what is too much.
///
/// `device` as in [`device::select`]. `progress` hears how many programs are there, and of how
/// many. Takes the memory of the driver's compiler, which it may never give back.
/// Errors: those of the device; `Build`; `Io` if the cache cannot be written.
pub fn prepare(
    bundle: &Path,
    device: &str,
    cache: &ProgramCache,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), RuntimeError> {
    let bundle = BundleFile::open(bundle)?;
    let plan = bundle.plan();
    let device = device::select(device)?;
    device.meets(plan)?;
    let _driver = lock_driver();
    let context =
        Context::from_device(&device.device).at("clCreateContext", || device.name.as_str())?;
    let warmer = Warmer::new(&context, &device, plan)?;
    let specs = specs(plan, &device)?;
    for (index, spec) in specs.iter().enumerate() {
        progress(index, specs.len());
        if cache.contains(&spec.key) {
            continue;
        }
        let program = build(&context, spec)?;
        for (kernel_index, kernel) in create_kernels(&program, plan, spec)? {
            if let Some(warmer) = &warmer {
                warmer.launch(kernel_index, &kernel)?;
            }
        }
        cache.write(&spec.key, &binary(&program, spec)?).map_err(|source| RuntimeError::Io {
            action: "write a program into",
            path: cache.folder().to_owned(),
            source,
        })?;
    }
    progress(specs.len(), specs.len());
    cache.evict().or(Ok(()))
}
