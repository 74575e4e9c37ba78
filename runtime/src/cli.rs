//! The command that makes a picture: its arguments, and what it does.
//!
//! Lives in the library so that `kiln run` is the same command as `kiln-run`.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::error::RuntimeError;
use crate::ffi::library;
use crate::npy::{self, NpyArray};
use crate::pipeline::png;
use crate::report::Report;
use crate::session::{Picture, Progress, Request, Session, SessionOptions};
use crate::tensor::{Tensor, Values};

/// Makes a picture from a prompt with a compiled model.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Compiled model
    #[arg(value_name = "FILE.kiln")]
    pub bundle: PathBuf,
    /// What the picture shows
    #[arg(long, short = 'p')]
    pub prompt: OsString,
    /// What the picture does not show
    #[arg(long, short = 'n', default_value = "")]
    pub negative_prompt: OsString,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Steps of the sampler
    #[arg(long, default_value_t = 20)]
    pub steps: usize,
    /// Scale of classifier-free guidance; 1 turns it off
    #[arg(long, default_value_t = 7.5)]
    pub guidance: f32,
    /// Name of the sampler
    #[arg(long, default_value = "ddim")]
    pub sampler: String,
    /// Noise each step adds, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    pub eta: f32,
    /// Initial latent instead of the seed's noise, float32 [1, C, H, W]
    #[arg(long, value_name = "FILE.npy")]
    pub latent: Option<PathBuf>,
    /// Writes tokens, embeddings, latents and the decoded tensor as .npy into a folder
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Writes memory and times, planned and measured, as JSON
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, value_name = "auto|INDEX|NAME", default_value = "auto")]
    pub device: String,
    /// OpenCL library, instead of a search for it
    #[arg(long, value_name = "LIBRARY")]
    pub opencl: Option<PathBuf>,
    /// Picture to write
    #[arg(long, short = 'o', value_name = "FILE.png")]
    pub output: PathBuf,
}

/// Makes the picture and writes what was asked for.
///
/// Says how far it is and what it took on standard error. Errors: those of a session;
/// [`RuntimeError::exit_code`] is the exit code.
pub fn run(args: &RunArgs) -> Result<(), RuntimeError> {
    let dump = |name: &str, tensor: &Tensor| match &args.dump {
        Some(folder) => write_tensor(&folder.join(format!("{name}.npy")), tensor),
        None => Ok(()),
    };
    let request = Request {
        prompt: text(&args.prompt, "prompt")?,
        negative_prompt: text(&args.negative_prompt, "negative prompt")?,
        seed: args.seed,
        steps: args.steps,
        guidance: args.guidance,
        sampler: args.sampler.clone(),
        eta: args.eta,
        initial_latent: args.latent.as_deref().map(read_latent).transpose()?,
        dump: args.dump.as_ref().map(|_| &dump as _),
    };
    if let Some(folder) = &args.dump {
        fs::create_dir_all(folder).map_err(file_error("create", folder))?;
    }
    if let Some(library) = &args.opencl {
        library::use_library(library)?;
    }
    let bar = Bar::new();
    let options = SessionOptions { device: args.device.clone(), ..SessionOptions::default() };
    let mut session = Session::open_with(&args.bundle, &options, &mut |done, kernels| {
        bar.show("building kernels", done, kernels);
    })?;
    let mut observe = |progress: Progress<'_>| {
        match progress {
            Progress::Prompt => bar.show("encoding the prompt", 0, args.steps),
            Progress::Step { done, steps, .. } => bar.show("sampling", done, steps),
            Progress::Decode => bar.show("decoding", args.steps, args.steps),
        }
        ControlFlow::Continue(())
    };
    let picture = session.generate(&request, &mut observe);
    bar.clear();
    let picture = picture?;
    png::save_png(
        &args.output,
        &picture.rgb,
        Some(&request.parameters(&session.plan().manifest.model)),
    )?;
    if let Some(path) = &args.report {
        write_report(path, &picture.report)?;
    }
    say(&picture, &args.output);
    Ok(())
}

/// Text of an argument.
fn text(argument: &OsStr, name: &str) -> Result<String, RuntimeError> {
    match argument.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(RuntimeError::Input(format!("the {name} is not UTF-8 text"))),
    }
}

fn file_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::Io { action, path: path.to_owned(), source }
}

fn read_latent(path: &Path) -> Result<Vec<f32>, RuntimeError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    match npy::read::<f32>(BufReader::new(file)) {
        Ok(NpyArray { values, .. }) => Ok(values),
        Err(error) => Err(RuntimeError::Input(format!("{}: {error}", path.display()))),
    }
}

fn write_tensor(path: &Path, tensor: &Tensor) -> Result<(), RuntimeError> {
    let file = BufWriter::new(File::create(path).map_err(file_error("create", path))?);
    let written = match &tensor.values {
        Values::F32(values) => npy::write(file, &tensor.shape, values),
        Values::I32(values) => npy::write(file, &tensor.shape, values),
    };
    written.map_err(|error| RuntimeError::Input(format!("{}: {error}", path.display())))
}

fn write_report(path: &Path, report: &Report) -> Result<(), RuntimeError> {
    let write = || {
        let mut file = BufWriter::new(File::create(path)?);
        serde_json::to_writer_pretty(&mut file, report)?;
        file.write_all(b"\n")?;
        file.flush()
    };
    write().map_err(file_error("write", path))
}

/// Warnings and a summary. A closed standard error is no reason to fail.
fn say(picture: &Picture, output: &Path) {
    let mut lines: Vec<String> =
        picture.warnings.iter().map(|warning| format!("warning: {warning}")).collect();
    lines.push(format!("wrote {} in {}", output.display(), seconds(&picture.report)));
    lines.push(memory(&picture.report));
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

fn seconds(report: &Report) -> String {
    let times = &report.times;
    let total = times.prompt_seconds + times.sample_seconds + times.decode_seconds;
    format!(
        "{total:.1} s (prompt {:.1}, {} steps {:.1}, decode {:.1}; {:.1} s to load, {:.1} s \
         waiting for weights)",
        times.prompt_seconds,
        times.step_seconds.len(),
        times.sample_seconds,
        times.decode_seconds,
        times.load_seconds,
        report.stream.stall_seconds + report.stream.resident_seconds
    )
}

fn memory(report: &Report) -> String {
    let (planned, measured) = (&report.planned, &report.measured);
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let device_planned = planned.arena_bytes + planned.slot_bytes + planned.staging_bytes;
    let peak = match measured.process_peak_bytes {
        Some(bytes) if bytes > planned.budget_bytes => mib(bytes) + ", OVER BUDGET",
        Some(bytes) => mib(bytes),
        None => "unknown".into(),
    };
    format!(
        "memory: device {} planned, {} allocated; process {} planned, {peak} measured; budget {}",
        mib(device_planned),
        mib(measured.device_high_water_bytes),
        mib(planned.peak_bytes),
        mib(planned.budget_bytes),
    )
}

/// A line that moves on a terminal, and nothing elsewhere.
struct Bar {
    bar: ProgressBar,
    message: RefCell<&'static str>,
}

impl Bar {
    fn new() -> Bar {
        let bar = match io::stderr().is_terminal() {
            true => ProgressBar::new(1),
            false => ProgressBar::hidden(),
        };
        if let Ok(style) = ProgressStyle::with_template("{msg:20} [{bar:30}] {pos}/{len} {elapsed}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Bar { bar, message: RefCell::new("") }
    }

    fn show(&self, message: &'static str, done: usize, count: usize) {
        if self.message.replace(message) != message {
            self.bar.set_message(message);
        }
        self.bar.set_length(count as u64);
        self.bar.set_position(done as u64);
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
