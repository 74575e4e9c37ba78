//! Compiles the programs of a bundle into a cache, in worker processes.
//!
//! A driver compiles on one thread, in memory that it may never release. Each worker is therefore a
//! process. Their number is limited by the processors and by the plan's budget. Workers take
//! programs one at a time, in the plan's order, and end when none is left.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread;

use kiln_bundle::BundleFile;
use kiln_bundle::plan::Plan;
use opencl3::context::Context;

use super::cache::ProgramCache;
use super::pocl;
use super::warm::Warmer;
use super::{Spec, binary, build, create_kernels, specs};
use crate::device::{self, DeviceFacts, lock_driver};
use crate::error::{At, RuntimeError};

/// Memory of one worker, somewhat above the need of PoCL 3.1 for all programs of emoji-256.
const WORKER_BYTES: u64 = 400 << 20;

/// A command that runs [`work`].
///
/// The bundle, `--worker`, `--device INDEX` and `--cache FOLDER` follow its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrepareCommand {
    /// The program to run.
    pub program: PathBuf,
    /// The first arguments.
    pub args: Vec<OsString>,
}

/// The programs of a bundle that a cache lacks.
pub(super) struct Missing<'a> {
    pub bundle: &'a Path,
    pub plan: &'a Plan,
    pub device: &'a DeviceFacts,
    pub cache: &'a ProgramCache,
    /// Positions among the bundle's programs.
    pub programs: Vec<usize>,
    /// Number of programs in the bundle.
    pub count: usize,
}

impl<'a> Missing<'a> {
    pub(super) fn of(
        (bundle, plan): (&'a Path, &'a Plan),
        device: &'a DeviceFacts,
        cache: &'a ProgramCache,
        specs: &[Spec],
    ) -> Missing<'a> {
        let missing = specs.iter().enumerate().filter(|(_, spec)| !cache.contains(&spec.key));
        let programs = missing.map(|(index, _)| index).collect();
        Missing { bundle, plan, device, cache, programs, count: specs.len() }
    }

    /// One worker for each processor, within the plan's budget, and at least one.
    fn worker_count(&self) -> usize {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let fit = (self.plan.memory.budget_bytes / WORKER_BYTES) as usize;
        processors.min(fit).min(self.programs.len()).max(1)
    }
}

impl PrepareCommand {
    /// The program of this process with other arguments; `None` if it cannot be found.
    pub fn this_program(args: &[&str]) -> Option<PrepareCommand> {
        let program = std::env::current_exe().ok()?;
        Some(PrepareCommand { program, args: args.iter().map(OsString::from).collect() })
    }

    /// Lets workers compile the missing programs. `progress` receives the number of programs that
    /// are compiled, and of all programs of the bundle.
    ///
    /// Errors: a worker cannot be started or fails. Messages of workers are discarded: a later
    /// build of the same program reports the same error.
    pub(super) fn run(
        &self,
        missing: &Missing,
        progress: &mut dyn FnMut(usize, usize),
    ) -> io::Result<()> {
        let queue = Mutex::new(missing.programs.iter().copied());
        let (sender, compiled) = mpsc::channel();
        thread::scope(|scope| {
            let start = |_| {
                let (queue, sender) = (&queue, sender.clone());
                scope.spawn(move || self.start(missing)?.serve(queue, &sender))
            };
            let workers: Vec<_> = (0..missing.worker_count()).map(start).collect();
            drop(sender);
            let mut done = missing.count - missing.programs.len();
            progress(done, missing.count);
            for () in compiled {
                done += 1;
                progress(done, missing.count);
            }
            let panicked = |_| Err(io::Error::other("a thread panicked"));
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(panicked))
        })
    }

    fn start(&self, missing: &Missing) -> io::Result<Worker> {
        // PoCL's cache folder is the worker's own, so that it holds nothing else.
        let is_pocl = missing.device.lazy_compiler;
        let folder = is_pocl.then(|| missing.cache.create_temporary_folder()).transpose()?;
        let folder = DriverFolder(folder);
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(missing.bundle)
            .args(["--worker", "--device", &missing.device.index.to_string(), "--cache"])
            .arg(missing.cache.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .envs(folder.0.iter().map(|folder| (pocl::FOLDER, folder)))
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(io::Error::other("a worker has no pipes"));
        };
        let answers = BufReader::new(output).lines();
        Ok(Worker { child, input, answers, _folder: folder })
    }
}

/// A worker as the process that started it sees it.
struct Worker {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    /// Removed after the worker's end.
    _folder: DriverFolder,
}

/// The driver's own cache folder, if the worker has one. It is removed with this value.
struct DriverFolder(Option<PathBuf>);

impl Drop for DriverFolder {
    fn drop(&mut self) {
        // What stays behind is evicted later.
        let _ = self.0.as_ref().map(fs::remove_dir_all);
    }
}

impl Worker {
    /// Hands out programs until none is left, then waits for the worker's end.
    fn serve(
        mut self,
        queue: &Mutex<impl Iterator<Item = usize>>,
        compiled: &mpsc::Sender<()>,
    ) -> io::Result<()> {
        let next = || queue.lock().ok().and_then(|mut queue| queue.next());
        while let Some(program) = next() {
            // If the worker has ended, its exit status says why.
            if writeln!(self.input, "{program}").is_err() || self.answers.next().is_none() {
                break;
            }
            let _ = compiled.send(());
        }
        drop(self.input);
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("a worker ends with {status}"))),
        }
    }
}

/// Compiles the programs of a bundle that a cache lacks, then evicts old programs beyond its limit.
///
/// `device` as in [`device::select`]. Without a command, or if its workers fail, the programs are
/// compiled in this process, which then has the compiler's memory. `progress` receives the number
/// of programs that are compiled, and of all programs. Errors: those of the device; `Build`; `Io`
/// if the cache cannot be written.
pub fn prepare(
    bundle: &Path,
    device: &str,
    cache: &ProgramCache,
    command: Option<&PrepareCommand>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), RuntimeError> {
    let file = BundleFile::open(bundle)?;
    let (plan, device) = (file.plan(), device::select(device)?);
    device.meets(plan)?;
    let specs = specs(plan, &device)?;
    let missing = || Missing::of((bundle, plan), &device, cache, &specs);
    if let Some(command) = command.filter(|_| !missing().programs.is_empty()) {
        // Programs that the workers left are compiled below, which reports errors.
        let _ = command.run(&missing(), progress);
    }
    let Missing { programs, count, .. } = missing();
    if !programs.is_empty() {
        let _driver = lock_driver();
        let context = context(&device)?;
        let compiler = Compiler::new(&context, &device, plan, cache, None)?;
        for (done, program) in (count - programs.len()..).zip(programs) {
            progress(done, count);
            compiler.compile(&specs[program])?;
        }
    }
    progress(count, count);
    cache.evict().or(Ok(()))
}

/// The body of a worker. Reads positions of programs, one a line. Compiles each program into the
/// cache and answers with the same line.
///
/// Errors: those of [`prepare`]; `Input` if a line is not the position of a program.
pub fn work(
    bundle: &Path,
    device: &str,
    cache: &ProgramCache,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<(), RuntimeError> {
    let file = BundleFile::open(bundle)?;
    let (plan, device) = (file.plan(), device::select(device)?);
    device.meets(plan)?;
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
        self.cache.write(&spec.key, &binary(&program, spec)?).map_err(|source| RuntimeError::Io {
            action: "write a program into",
            path: self.cache.folder().to_owned(),
            source,
        })
    }
}
