//! The command that makes images: arguments and behaviour.
//!
//! It is in the library so that `kiln run` and `kiln-run` are the same command.

use std::ffi::OsString;
use std::io::{self, Write};
use std::mem;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_bundle::plan::{Plan, Size};
use kiln_bundle::sign::PublicKey;

use crate::error::RuntimeError;
use crate::os::library;
use crate::pipeline::fast::GuidanceInterval;
use crate::pipeline::png::GenerationParameters;
use crate::program::ProgramOrigin;
use crate::report::{Profile, Report};
use crate::session::{
    Decoder, ExecutorOptions, Picture, Progress, Request, Session, SessionOptions, decoder,
};
use crate::tensor::Tensor;

mod args;
mod bar;
mod files;
mod formats;
mod interrupt;
mod jobs;
mod loras;
mod outputs;
mod pictures;
mod preview;
mod programs;
mod prompts;

pub use args::{Command, HELP};
use bar::{Bar, COMPILING};
use files::file_error;
pub use formats::{PictureFormats, Png};
use jobs::{Job, Jobs};
pub use loras::{LoraFile, read_loras};
use pictures::Pictures;
use preview::Previews;
pub use programs::{CacheArgs, PrepareArgs, prepare};

/// Makes pictures from prompts with a compiled model.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "clap", derive(clap::Args))]
pub struct RunArgs {
    /// Compiled model
    #[cfg_attr(feature = "clap", arg(value_name = "FILE.kiln"))]
    pub bundle: PathBuf,
    /// Size of the picture, for a bundle that was compiled for several [default: the first]
    #[cfg_attr(feature = "clap", arg(long, value_name = "WIDTHxHEIGHT"))]
    pub size: Option<Size>,
    /// Width of the picture in pixels, in place of --size
    #[cfg_attr(
        feature = "clap",
        arg(long, short = 'W', value_name = "PIXELS", conflicts_with = "size")
    )]
    pub width: Option<u32>,
    /// Height of the picture in pixels, in place of --size
    #[cfg_attr(
        feature = "clap",
        arg(long, short = 'H', value_name = "PIXELS", conflicts_with = "size")
    )]
    pub height: Option<u32>,
    /// What the picture shows, for example 'a red heart'
    #[cfg_attr(feature = "clap", arg(long, short = 'p', required_unless_present = "prompts"))]
    pub prompt: Option<OsString>,
    /// What the picture does not show, for example blurry
    #[cfg_attr(feature = "clap", arg(long, short = 'n', default_value = ""))]
    pub negative_prompt: OsString,
    /// Take brackets in prompts as text. Otherwise they weigh words: (word:1.3), (word) for 1.1,
    /// [word] for 1 / 1.1; a backslash before a bracket makes it text
    #[cfg_attr(feature = "clap", arg(long))]
    pub plain_prompt: bool,
    /// A batch: one JSON object a line with "prompt" and optionally "negative_prompt", "seed",
    /// "steps", "guidance", "guidance_rescale", "sampler", "spacing", "eta", "fast",
    /// "guidance_interval", "cache_interval", "init_image", "mask", "strength" and "output", which
    /// default to the arguments. In a .txt file, each line is a prompt. Existing pictures are
    /// skipped, so that a stopped batch can be resumed
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["prompt", "count", "latent"]))]
    pub prompts: Option<PathBuf>,
    /// Number of pictures. Seeds count up from --seed: 4 pictures with --seed 7 take 7, 8, 9 and 10
    #[cfg_attr(feature = "clap", arg(long, alias = "batch-count", value_name = "N", default_value_t = 1,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..)))]
    pub count: usize,
    /// Seed of the noise. The same seed gives the same picture. -1 draws one, which the picture
    /// records
    #[cfg_attr(feature = "clap", arg(long, default_value_t = 0, allow_negative_numbers = true,
          value_parser = args::seed))]
    pub seed: u64,
    /// Steps of the sampler, for example 30 [default: the model's]
    #[cfg_attr(feature = "clap", arg(long, alias = "num-inference-steps"))]
    pub steps: Option<usize>,
    /// Scale of classifier-free guidance. 1 turns it off [default: the model's]
    #[cfg_attr(feature = "clap", arg(long, aliases = ["cfg-scale", "guidance-scale"],
          allow_negative_numbers = true))]
    pub guidance: Option<f32>,
    /// Share, 0 to 1, by which the standard deviation of the guided output is brought back to that
    /// of the output for the prompt. For models with zero terminal SNR, for example 0.7
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)
    )]
    pub guidance_rescale: f32,
    /// Sampler: ddim, euler, euler-a, heun, dpm++2m, dpm++2m-sde, unipc, lcm or tcd, or as others
    /// write them, such as 'DPM++ 2M Karras'. heun evaluates the U-Net twice a step [default: the
    /// model's]
    #[cfg_attr(feature = "clap", arg(long, alias = "sampling-method"))]
    pub sampler: Option<String>,
    /// Spacing of the sampler's timesteps: leading, trailing (for models of few steps), linspace or
    /// karras. lcm and tcd have their own; lcm also takes trailing [default: the model's]
    #[cfg_attr(feature = "clap", arg(long))]
    pub spacing: Option<String>,
    /// Noise that each step of ddim or tcd adds, 0 to 1 [default: 0, for tcd 0.3]
    #[cfg_attr(feature = "clap", arg(long, allow_negative_numbers = true))]
    pub eta: Option<f32>,
    /// Steps that cost less, for a bundle compiled with --fast. 1 computes the inner levels of the
    /// U-Net in every second step only, 2 in every third, and 3 also ends guidance after a half of
    /// the steps. The picture changes, more from 1 to 3
    #[cfg_attr(feature = "clap", arg(long, value_name = "0|1|2|3", default_value_t = 0))]
    pub fast: usize,
    /// Steps that have guidance, as shares from 0 to 1; the others compute the branch of the prompt
    /// alone. In place of that of --fast, for example 0:0.5 [default: 0:1]
    #[cfg_attr(feature = "clap", arg(long, value_name = "START:STOP"))]
    pub guidance_interval: Option<GuidanceInterval>,
    /// One step in N computes the inner levels of the U-Net; the others take their value from it.
    /// In place of that of --fast, for example 2 [default: 1]
    #[cfg_attr(feature = "clap", arg(long, value_name = "N"))]
    pub cache_interval: Option<usize>,
    /// Initial latent in place of the seed's noise: float32, [1, C, H, W], variance 1
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE.npy"))]
    pub latent: Option<PathBuf>,
    /// Initial picture, in place of noise alone, PNG, JPEG or WebP. It is scaled and cut to the
    /// model's size. The bundle must be compiled with --with-encoder
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE"))]
    pub init_image: Option<PathBuf>,
    /// The part of --init-image to repaint: a picture of the same shape in which this part is white
    /// and the rest, which is kept, is black. Gray mixes the two
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE", requires = "init_image"))]
    pub mask: Option<PathBuf>,
    /// Share of the steps that change --init-image, over 0 to 1: 0.75 runs the last 15 of 20
    /// [default: 0.75, with --mask 1]
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "SHARE", requires = "init_image", allow_negative_numbers = true)
    )]
    pub strength: Option<f64>,
    /// LoRA to switch on, made by kiln lora for this bundle: a factor of its change may follow, as in
    /// style.kiln-lora:0.8. May be repeated
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE[:STRENGTH]"))]
    pub lora: Vec<LoraFile>,
    /// Decoder: full or tiny [default: full if the bundle has it]
    #[cfg_attr(feature = "clap", arg(long, value_name = "full|tiny"))]
    pub decoder: Option<Decoder>,
    /// Write a preview beside the picture (out.preview.png) every N steps, for example 5: by the
    /// tiny decoder if the bundle has one, else small and coarse.
    /// Terminals with kitty's or iTerm2's image protocol show it. 0 for none
    #[cfg_attr(feature = "clap", arg(long, value_name = "N", default_value_t = 0))]
    pub preview_every: usize,
    /// Write tokens, embeddings, latents and the decoded tensor as .npy into this folder
    #[cfg_attr(feature = "clap", arg(long, value_name = "DIR"))]
    pub dump: Option<PathBuf>,
    /// Write memory and times, planned and measured, as JSON
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE.json"))]
    pub report: Option<PathBuf>,
    /// Time every launch and write the times as JSON, for kiln inspect --report
    #[cfg_attr(feature = "clap", arg(long, value_name = "FILE.json"))]
    pub profile: Option<PathBuf>,
    /// Let the system's page cache keep weights, in memory outside the budget. Without this flag,
    /// weights are read past the cache
    #[cfg_attr(feature = "clap", arg(long))]
    pub page_cache: bool,
    /// OpenCL device: auto, an index, or part of a name
    #[cfg_attr(
        feature = "clap",
        arg(long, value_name = "auto|INDEX|NAME", default_value = "auto")
    )]
    pub device: String,
    /// OpenCL library. Without this option, one is searched for
    #[cfg_attr(feature = "clap", arg(long, value_name = "LIBRARY"))]
    pub opencl: Option<PathBuf>,
    /// Folder of compiled kernels
    #[cfg_attr(feature = "clap", command(flatten))]
    pub cache: CacheArgs,
    /// Refuse a bundle that this key has not signed, before its kernels are compiled: 64
    /// hexadecimal digits, which kiln key prints
    #[cfg_attr(feature = "clap", arg(long, value_name = "KEY"))]
    pub trust: Option<PublicKey>,
    /// Picture to write, .png, .jpg or .webp; - is standard output. With several pictures, {seed} in the name becomes
    /// the seed. A name without it gets a number: out-0001.png and so on, in a batch the line's
    /// number
    #[cfg_attr(
        feature = "clap",
        arg(long, short = 'o', value_name = "FILE.png", required_unless_present = "prompts")
    )]
    pub output: Option<PathBuf>,
}

/// Makes the images and writes their files.
///
/// `prepare`: the arguments with which this program runs [`prepare()`]. `formats`: of pictures.
/// Reports progress, times and memory on standard error. Ctrl-C ends it after the current step.
/// Errors: those of a session; [`RuntimeError::exit_code`] is the exit code.
pub fn run(
    args: &RunArgs,
    prepare: &[&str],
    formats: &dyn PictureFormats,
) -> Result<(), RuntimeError> {
    let bundle = programs::open(&args.bundle, args.trust)?;
    let bundle = Arc::new(match args.size_of(bundle.plan()) {
        Some(size) => bundle.at_size(size)?,
        None => bundle,
    });
    let manifest = &bundle.plan().manifest;
    let mut jobs = Jobs::of(args, bundle.plan(), manifest.image.pixels() * 3, formats)?;
    if jobs.done > 0 {
        tell(&format!("{} of {} pictures are there already", jobs.done, jobs.count));
    }
    let mut shared = Shared::read(args, bundle.plan(), mem::take(&mut jobs.pictures))?;
    let loras = read_loras(&args.lora, bundle.plan())?;
    if let Some(library) = &args.opencl {
        library::use_library(library).map_err(RuntimeError::Input)?;
    }
    if jobs.done == jobs.count {
        return Ok(());
    }
    interrupt::listen();
    let bar = Bar::new();
    let executor = ExecutorOptions {
        profiling: args.profile.is_some(),
        programs: args.cache.programs(prepare),
        page_cache: args.page_cache,
        ..ExecutorOptions::default()
    };
    let device = args.device.clone();
    let options = SessionOptions { device, executor, ..SessionOptions::default() };
    let mut session = Session::load(bundle, &options, &mut |done, kernels| {
        bar.show(COMPILING, done, kernels);
    })?;
    session.set_loras(loras)?;
    interrupt::begin();
    let mut last = None;
    for job in jobs.iter() {
        let (place, job) = job?;
        if last.is_some() && interrupt::stopped() {
            return Err(RuntimeError::Cancelled);
        }
        bar.begin(place, jobs.count);
        let made = make(args, &job, &mut shared, &mut session, &bar, formats);
        last = Some(made.map_err(|error| jobs.at(job.line, error))?);
    }
    if let Some(report) = last {
        tell(&memory(&report));
        let device = session.device();
        if report.programs == ProgramOrigin::Built || device.compiles_in_session {
            tell("kernels were compiled in this process, which takes memory beside the plan");
        }
        if report.programs == ProgramOrigin::Built
            && let Some(cache) = args.cache.cache()
            && let Err(error) = cache.check()
        {
            let folder = cache.folder().display();
            tell(&format!(
                "warning: compiled kernels are not kept: {folder}: {error}; see --cache"
            ));
        }
    }
    Ok(())
}

/// The inputs that all images of a run share.
struct Shared {
    latent: Option<Vec<f32>>,
    pictures: Pictures,
}

impl Shared {
    /// Reads them. `pictures`: those that were read already.
    fn read(args: &RunArgs, plan: &Plan, pictures: Pictures) -> Result<Shared, RuntimeError> {
        decoder(plan, args.decoder)?;
        let latent = args.latent.as_deref();
        let latent = latent.map(|path| files::read_latent(path, &plan.manifest)).transpose()?;
        Ok(Shared { latent, pictures })
    }
}

/// Makes one image and writes its files.
fn make(
    args: &RunArgs,
    job: &Job,
    shared: &mut Shared,
    session: &mut Session,
    bar: &Bar,
    formats: &dyn PictureFormats,
) -> Result<Report, RuntimeError> {
    let dump = |name: &str, tensor: &Tensor| match &args.dump {
        Some(folder) => {
            let _whole = interrupt::write();
            files::write_tensor(&files::tensor_path(folder, name), tensor)
        }
        None => Ok(()),
    };
    if shared.pictures.decodes_whole(job, formats) {
        // The picture takes the place of the plan's memory.
        session.trim()?;
    }
    let request = Request {
        initial_latent: shared.latent.clone(),
        init: shared.pictures.read(job, session.plan(), formats)?,
        dump: args.dump.as_ref().map(|_| &dump as _),
        ..job.request(args)
    };
    let manifest = &session.plan().manifest;
    let mut previews = Previews::new(args.preview_every, &job.output, manifest, bar);
    let mut preview_failed = None;
    let picture = session.generate(&request, &mut |progress| {
        match progress {
            Progress::Prompt => bar.show("encoding the prompt", 0, 1),
            Progress::Step { done, steps, seconds, seconds_left, picture, decoded, .. } => {
                bar.step((done, steps), seconds, seconds_left);
                if preview_failed.is_none() {
                    preview_failed = previews.step(done, picture, decoded).err();
                }
            }
            Progress::Kernels { done, count } => bar.show(COMPILING, done, count),
            Progress::Decode => bar.show("decoding", 1, 1),
        }
        if interrupt::stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.clear();
    let mut picture = picture?;
    if request.prompt.trim().is_empty() {
        picture.warnings.push("the prompt is empty, so the picture shows anything".into());
    }
    if let Some(error) = preview_failed {
        picture.warnings.push(format!("no preview: {error}"));
    }
    write(args, job, &picture, &request.parameters(&picture.report), formats)?;
    if let Some(path) = &args.profile {
        let times = session.take_launch_times()?;
        let profile = Profile::new(session.plan(), session.weight_reads(), &times);
        files::write_report(path, &profile)?;
    }
    say(&picture, &job.output);
    Ok(picture.report)
}

fn write(
    args: &RunArgs,
    job: &Job,
    picture: &Picture,
    parameters: &GenerationParameters,
    formats: &dyn PictureFormats,
) -> Result<(), RuntimeError> {
    let _whole = interrupt::write();
    formats::save(formats, &job.output, &picture.rgb, parameters)?;
    match &args.report {
        Some(path) => files::write_report(path, &picture.report),
        None => Ok(()),
    }
}

/// Writes one line to standard error. A closed standard error is no failure.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Reports warnings and times of an image.
fn say(picture: &Picture, output: &Path) {
    for warning in &picture.warnings {
        tell(&format!("warning: {warning}"));
    }
    let output = match formats::is_stdout(output) {
        true => "the picture".into(),
        false => output.to_string_lossy(),
    };
    tell(&format!("wrote {output} in {}", seconds(&picture.report)));
}

fn seconds(report: &Report) -> String {
    let times = &report.times;
    let total = times.prompt_seconds + times.sample_seconds + times.decode_seconds;
    let load = match report.programs {
        ProgramOrigin::Cached => "load",
        _ => "load and compile kernels",
    };
    format!(
        "{total:.1} s (prompt {:.1}, {} steps {:.1}, decode {:.1}; before it {:.1} s to {load}; in \
         it {:.1} s waiting for weights)",
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
        Some(bytes) if bytes > planned.budget_bytes => mib(bytes) + " measured, OVER BUDGET",
        Some(bytes) => mib(bytes) + " measured",
        None => "not measured".into(),
    };
    format!(
        "memory: device {} planned, {} allocated; process {} planned, {peak}; budget {}",
        mib(device_planned),
        mib(measured.device_high_water_bytes),
        mib(planned.peak_bytes),
        mib(planned.budget_bytes),
    )
}
