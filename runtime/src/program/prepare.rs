//! Compiles the programs of a bundle into a cache, by workers or in this process.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use kiln_bundle::BundleFile;
use kiln_bundle::plan::Plan;
use opencl3::context::Context;

use super::cache::ProgramCache;
use super::pocl;
use super::warm::Warmer;
pub use super::workers::PrepareCommand;
use super::{Spec, binary, build, create_kernels, missing, specs};
use crate::device::{self, DeviceFacts, lock_driver};
use crate::error::{At, RuntimeError};

/// Compiles the programs of a bundle that a cache lacks, then evicts old programs beyond its limit.
///
/// `device` as in [`device::select`]. Without a command, or if its workers fail, the programs are
/// compiled in this process, which then has the compiler's memory. `progress` receives the number
/// of programs that are compiled, and of all programs. Errors: those of the device; `Build`; `Io`
/// if the cache cannot be written.
pub fn prepare(
    bundle: &BundleFile,
    device: &str,
    cache: &ProgramCache,
    command: Option<&PrepareCommand>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), RuntimeError> {
    let (plan, device) = (bundle.plan(), device::select(device)?);
    device.meets(plan)?;
    usable(cache)?;
    let specs = specs(plan, &device)?;
    let lacking = || missing(bundle, &device, cache, &specs, &|spec| cache.contains(&spec.key));
    if lacking().len() > 0 {
        cache.check().map_err(|source| unwritable(cache, source))?;
    }
    if let Some(command) = command.filter(|_| lacking().len() > 0) {
        // Programs that the workers left are compiled below, which reports errors.
        let _ = command.start(lacking()).finish(progress);
    }
    let programs = lacking().programs.concat();
    if !programs.is_empty() {
        let _driver = lock_driver();
        let context = context(&device)?;
        let compiler = Compiler::new(&context, &device, plan, cache, None)?;
        for (done, &program) in (specs.len() - programs.len()..).zip(&programs) {
            progress(done, specs.len());
            compiler.compile(&specs[program])?;
        }
    }
    progress(specs.len(), specs.len());
    cache.evict().or(Ok(()))
}

/// Writes a copy of a bundle with the compiled programs of a device, which the cache has.
///
/// Programs of other devices that the bundle carries stay in it; its signature does not. `into` may
/// be the bundle itself.
/// Errors: those of the device; `Input` if a program has left the cache; those of writing a bundle.
pub fn write_into(
    bundle: &BundleFile,
    device: &str,
    cache: &ProgramCache,
    into: &Path,
) -> Result<(), RuntimeError> {
    let device = device::select(device)?;
    let mut programs = Vec::new();
    for spec in specs(bundle.plan(), &device)? {
        let program = cache.read_file(&spec.key).ok_or_else(|| {
            RuntimeError::Input(format!("{} has left the cache of compiled kernels", spec.at))
        })?;
        programs.push((spec.key.name(), program));
    }
    for name in bundle.program_names() {
        if programs.iter().all(|(other, _)| *other != name)
            && let Some(program) = bundle.read_program(name)?
        {
            programs.push((name, program));
        }
    }
    bundle.write_with_programs(into, &programs)?;
    Ok(())
}

/// The body of a worker. Reads positions of programs, one a line. Compiles each program into the
/// cache and answers with the same line.
///
/// Errors: those of [`prepare`]; `Input` if a line is not the position of a program.
pub fn work(
    bundle: &BundleFile,
    device: &str,
    cache: &ProgramCache,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<(), RuntimeError> {
    let (plan, device) = (bundle.plan(), device::select(device)?);
    device.meets(plan)?;
    usable(cache)?;
    let specs = specs(plan, &device)?;
    let _driver = lock_driver();
    let context = context(&device)?;
    let pocl = std::env::var_os(pocl::FOLDER).map(PathBuf::from);
    let compiler = Compiler::new(&context, &device, plan, cache, pocl)?;
    for line in input.lines().map_while(Result::ok) {
        let spec = line.parse().ok().and_then(|program: usize| specs.get(program));
        let spec = spec.ok_or_else(|| RuntimeError::Input(format!("no program {line:?}")))?;
        compiler.compile(spec)?;
        if writeln!(output, "{line}").and_then(|()| output.flush()).is_err() {
            // The process that asked has ended.
            break;
        }
    }
    Ok(())
}

fn context(device: &DeviceFacts) -> Result<Context, RuntimeError> {
    Context::from_device(&device.device).at("clCreateContext", || device.name.as_str())
}

/// The driver's compiler, for the programs of a plan.
struct Compiler<'a> {
    context: &'a Context,
    plan: &'a Plan,
    warmer: Option<Warmer<'a>>,
    cache: &'a ProgramCache,
    /// The cache folder of PoCL, if nobody else uses it.
    pocl: Option<PathBuf>,
}

impl<'a> Compiler<'a> {
    fn new(
        context: &'a Context,
        device: &DeviceFacts,
        plan: &'a Plan,
        cache: &'a ProgramCache,
        pocl: Option<PathBuf>,
    ) -> Result<Compiler<'a>, RuntimeError> {
        let pocl = pocl.filter(|_| device.lazy_compiler);
        let warmer = Warmer::new(context, device, plan)?;
        Ok(Compiler { context, plan, warmer, cache, pocl })
    }

    /// Compiles a program into the cache.
    fn compile(&self, spec: &Spec) -> Result<(), RuntimeError> {
        let program = build(self.context, spec)?;
        for (index, kernel) in create_kernels(&program, self.plan, spec)? {
            if let Some(warmer) = &self.warmer {
                warmer.launch(index, &kernel)?;
            }
            if let Some(folder) = &self.pocl {
                // Without effect, the program is only compiled more slowly.
                let _ = pocl::omit_general_version(folder, &self.plan.kernels[index].entry);
            }
        }
        let written = self.cache.write(&spec.key, &binary(&program, spec)?);
        written.map_err(|source| unwritable(self.cache, source))
    }
}

/// Errors: `Io` if others can write the cache.
fn usable(cache: &ProgramCache) -> Result<(), RuntimeError> {
    cache.check_private().map_err(|source| RuntimeError::Io {
        action: "use the folder of compiled kernels",
        path: cache.folder().to_owned(),
        source,
    })
}

fn unwritable(cache: &ProgramCache, source: io::Error) -> RuntimeError {
    RuntimeError::Io { action: "write a program into", path: cache.folder().to_owned(), source }
}
