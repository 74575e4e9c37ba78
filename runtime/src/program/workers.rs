//! Worker processes that compile programs into a cache.
//!
//! A driver compiles on one thread, in memory that it may never release. Each worker is therefore a
//! process. Their number is limited by the processors and by the plan's budget. Workers take
//! programs one at a time, in the plan's order, and end when none is left for them.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Lines, Write};
use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::{fs, mem};

use kiln_bundle::plan::MemoryPlan;
use kiln_bundle::sign::PublicKey;

use super::cache::ProgramCache;
use super::pocl;
use crate::device::DeviceFacts;

/// Memory of one worker: a quarter above the need of PoCL for all programs of a model.
const WORKER_BYTES: u64 = 320 << 20;

/// A command that runs [`work`](super::prepare::work).
///
/// The bundle, `--worker`, `--device INDEX`, `--cache FOLDER` and, for a signed bundle,
/// `--trust KEY` follow its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrepareCommand {
    /// The program to run.
    pub program: PathBuf,
    /// The first arguments.
    pub args: Vec<OsString>,
}

/// The programs of a bundle that a cache lacks.
pub(super) struct Missing {
    pub bundle: PathBuf,
    /// Who must have signed the bundle.
    pub trusted: Option<PublicKey>,
    pub memory: MemoryPlan,
    pub device: DeviceFacts,
    pub cache: ProgramCache,
    /// Positions among the bundle's programs of those that a picture begins with, and of those
    /// that it ends with.
    pub programs: [Vec<usize>; 2],
    /// Number of programs in the bundle.
    pub count: usize,
}

impl Missing {
    /// Number of programs that are missing.
    pub(super) fn len(&self) -> usize {
        self.programs.iter().map(Vec::len).sum()
    }

    /// One worker for each processor, within `bytes`.
    fn workers_within(&self, bytes: u64) -> usize {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        processors.min(self.len()).min((bytes / WORKER_BYTES) as usize)
    }
}

impl PrepareCommand {
    /// The program of this process with other arguments; `None` if it cannot be found.
    pub fn this_program(args: &[&str]) -> Option<PrepareCommand> {
        let program = std::env::current_exe().ok()?;
        Some(PrepareCommand { program, args: args.iter().map(OsString::from).collect() })
    }

    /// Starts workers that compile the missing programs.
    ///
    /// While nothing else runs, as many work as the budget has room for. Those for which it has
    /// room beside the plan's peak also compile the programs that a picture ends with.
    pub(super) fn start(&self, mut missing: Missing) -> Preparation {
        let MemoryPlan { budget_bytes, .. } = missing.memory;
        let alone = missing.workers_within(budget_bytes).max(1);
        let free_bytes = budget_bytes.saturating_sub(missing.memory.peak_bytes());
        let beside = missing.workers_within(free_bytes);
        if beside == 0 {
            let [first, last] = &mut missing.programs;
            first.append(last);
        }
        let done = missing.count - missing.len();
        let (count, first) = (missing.count, missing.programs[0].len());
        let mut programs = mem::take(&mut missing.programs);
        programs.iter_mut().for_each(|programs| programs.reverse());
        let worker_count = alone.max(beside);
        let state = State { programs, answers: 0, running: worker_count };
        let command = self.clone();
        let shared =
            Shared { command, missing, beside, state: Mutex::new(state), changed: Condvar::new() };
        let shared = Arc::new(shared);
        let work = |index| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.work(index))
        };
        let workers = (0..worker_count).map(work).collect();
        Preparation { workers, ended: Ok(()), shared, first, done, count }
    }

    fn worker(&self, missing: &Missing) -> io::Result<Worker> {
        // PoCL's cache folder is the worker's own, so that it holds nothing else.
        let is_pocl = missing.device.lazy_compiler;
        let folder = is_pocl.then(|| missing.cache.create_temporary_folder()).transpose()?;
        let folder = DriverFolder(folder);
        let trust = missing.trusted.map(|key| ["--trust".into(), key.to_string()]);
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(&missing.bundle)
            .args(["--worker", "--device", &missing.device.index.to_string(), "--cache"])
            .arg(missing.cache.folder())
            .args(trust.iter().flatten())
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

/// What the threads that serve the workers share.
struct Shared {
    command: PrepareCommand,
    missing: Missing,
    /// Number of workers that stay to the end.
    beside: usize,
    state: Mutex<State>,
    /// Notified of each answer and each end.
    changed: Condvar,
}

struct State {
    /// Programs that no worker has taken, in reverse: those that a picture begins with, and the
    /// rest.
    programs: [Vec<usize>; 2],
    /// Number of programs that a worker has compiled, or failed to, and nobody has heard of.
    answers: usize,
    /// Number of workers that have not ended.
    running: usize,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one worker to its end.
    fn work(&self, index: usize) -> io::Result<()> {
        let next = || {
            let [first, last] = &mut self.state().programs;
            first.pop().or_else(|| if index < self.beside { last.pop() } else { None })
        };
        let answered = || {
            self.state().answers += 1;
            self.changed.notify_all();
        };
        let worker = self.command.worker(&self.missing);
        let end = worker.and_then(|worker| worker.serve(&next, &answered));
        self.state().running -= 1;
        self.changed.notify_all();
        end
    }
}

/// Workers at work. If this value is dropped, they end after the program that they compile.
pub(super) struct Preparation {
    workers: Vec<JoinHandle<io::Result<()>>>,
    /// The end of those that did not stay.
    ended: io::Result<()>,
    shared: Arc<Shared>,
    /// Number of programs that a picture begins with and that are not yet compiled.
    first: usize,
    /// Number of programs that are compiled, and of all programs of the bundle.
    done: usize,
    count: usize,
}

/// Receives the number of programs that are compiled, and of all programs.
pub(super) type Observer<'a> = dyn FnMut(usize, usize) + 'a;

impl Preparation {
    /// Waits for the programs that a picture begins with, and for the end of the workers that do
    /// not stay.
    pub(super) fn wait_for_first(&mut self, progress: &mut Observer) {
        progress(self.done, self.count);
        while self.first > 0 && self.answer(progress).is_some() {
            self.first -= 1;
        }
        let staying = self.workers.drain(..self.shared.beside.min(self.workers.len())).collect();
        let ending = mem::replace(&mut self.workers, staying);
        self.ended = join(ending);
    }

    /// Whether workers compile the programs that a picture ends with.
    pub(super) fn is_at_work(&self) -> bool {
        self.first == 0 && self.done < self.count && !self.workers.is_empty()
    }

    /// Waits for all programs.
    ///
    /// Errors: a worker cannot be started or fails. Messages of workers are discarded: a later
    /// build of the same program reports the same error.
    pub(super) fn finish(mut self, progress: &mut Observer) -> io::Result<()> {
        progress(self.done, self.count);
        while self.answer(progress).is_some() {}
        let ended = mem::replace(&mut self.ended, Ok(()));
        join(mem::take(&mut self.workers)).and(ended)
    }

    /// `None` if all workers have ended.
    fn answer(&mut self, progress: &mut Observer) -> Option<()> {
        let mut state = self.shared.state();
        while state.answers == 0 {
            if state.running == 0 {
                return None;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.answers -= 1;
        drop(state);
        self.done += 1;
        progress(self.done, self.count);
        Some(())
    }
}

/// Waits for the ends of workers, and returns the first error.
fn join(workers: Vec<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    let panicked = |_| Err(io::Error::other("a thread panicked"));
    let ends = workers.into_iter().map(|worker| worker.join().unwrap_or_else(panicked));
    ends.fold(Ok(()), io::Result::and)
}

impl Drop for Preparation {
    fn drop(&mut self) {
        self.shared.state().programs = Default::default();
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
    fn serve(mut self, next: &dyn Fn() -> Option<usize>, answered: &dyn Fn()) -> io::Result<()> {
        while let Some(program) = next() {
            let asked = writeln!(self.input, "{program}").is_ok();
            let compiled = asked && self.answers.next().is_some();
            answered();
            if !compiled {
                // The worker has ended. Its exit status says why.
                break;
            }
        }
        drop(self.input);
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => Err(io::Error::other(format!("a worker ends with {status}"))),
        }
    }
}
