//! `kiln bench networks`: whole networks, with and without reading their weights.

use anyhow::{Result, bail};
use kiln_bundle::plan::{Network, Plan, Step};
use kiln_kernels::DeviceClass;
use kiln_runtime::cli::CacheArgs;
use kiln_runtime::probe::Probe;
use kiln_runtime::session::{ExecutorOptions, Session, SessionOptions};
use serde::Serialize;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use super::peak::{self, Peak};
use super::{best, duration, median, processor_seconds};
use crate::cmd::inspect::Account;
use crate::cmd::print::{self, printed};

/// Measure the networks of a bundle: time, arithmetic, bytes, percentage of the device's peak
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln bench networks sd21.kiln
  kiln bench networks sd21.kiln --network unet --runs 9 --json

median, best: time of the launches of a pass. with I/O: the median with its weights read. enqueue:
time until the driver has all launches. recorded: launches in command buffers. % peak is relative to
the peak of FP32 multiply-adds, measured in the same run; Winograd and tensor cores may exceed 100.
% cpu is the same by processor time, which other programs disturb less. GB moved counts every
argument of each launch once, GB read the weights that a pass reads from the bundle.")]
pub struct Args {
    /// Compiled model
    pub bundle: PathBuf,
    /// Only this network: text_encoder, unet, decoder, ... May be repeated [default: all]
    #[arg(long)]
    pub network: Vec<String>,
    /// Timed runs of each network
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Time the launches only, without reading weights
    #[arg(long)]
    pub no_io: bool,
    /// Whether to record launches in command buffers, if the device has cl_khr_command_buffer,
    /// instead of enqueuing them one by one [default: true, except on CPUs]
    #[arg(long, value_name = "true|false")]
    pub command_buffers: Option<bool>,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// For each line on standard input, time the launches of the one --network once and print a
    /// line of JSON: for comparing programs in turn
    #[arg(long, conflicts_with = "json")]
    pub on_request: bool,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Folder of compiled kernels
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// The result of the command, as `--json` prints it.
#[derive(Serialize)]
struct Measured {
    device: String,
    model: String,
    precision: String,
    profile: String,
    peak_flops_per_s: f64,
    launch_seconds: f64,
    networks: Vec<NetworkTimes>,
}

/// Measurements of a network.
#[derive(Serialize)]
struct NetworkTimes {
    name: String,
    /// Rows of the network's first output: images or prompts of a pass.
    batch: u32,
    launches: usize,
    /// Number of launches that are recorded in command buffers.
    recorded_launches: usize,
    flops: u64,
    /// Bytes that the launches read and write, each argument counted once.
    bytes: u64,
    /// Weights among `bytes`.
    weight_bytes: u64,
    /// Bytes of weights read from the bundle in a pass.
    read_bytes: u64,
    /// Seconds of each pass, launches alone.
    launch_seconds: Vec<f64>,
    /// Seconds of each pass, including reading of weights.
    pass_seconds: Vec<f64>,
    /// Shortest time until the driver has all launches of a pass, in seconds.
    host_seconds: f64,
    median_seconds: f64,
    best_seconds: f64,
    /// Mean processor seconds of a pass, launches alone.
    processor_seconds: Option<f64>,
    /// Achieved part of the peak, at the median.
    peak_share: f64,
    /// Achieved part of the peak by processor time, if the device is the processor.
    processor_share: Option<f64>,
}

/// Measures and prints the result.
pub fn run(args: Args) -> Result<()> {
    let options = SessionOptions {
        device: args.device.clone(),
        executor: ExecutorOptions {
            programs: args.cache.programs(&[crate::cmd::prepare::NAME]),
            command_buffers: args.command_buffers,
            ..ExecutorOptions::default()
        },
        ..SessionOptions::default()
    };
    let mut session = Session::open(&args.bundle, &options)?;
    let wanted = wanted(session.plan(), &args.network)?;
    if args.on_request {
        return match wanted[..] {
            [network] => answer_requests(&mut session, network),
            _ => bail!("--on-request needs one --network"),
        };
    }
    let (_, profile) = crate::cmd::devices::adapted_profile(session.device())?;
    let probe = Probe::open(session.device())?;
    let bar = super::bar(wanted.len() * (1 + usize::from(args.runs)))?;
    bar.set_message("the device's peak");
    let mut peak = Peak::new(&probe, &profile.target)?;
    let launch_seconds = peak::launch_seconds(&probe)?;
    session.run_all()?;
    let mut networks = Vec::new();
    for network in wanted {
        bar.set_message(session.plan().networks[network].name.clone());
        networks.push(measure(&mut session, network, &args, &mut || bar.inc(1))?);
        peak.measure()?;
    }
    bar.finish_and_clear();
    for network in &mut networks {
        network.peak_share = network.rate() / peak.flops_per_s;
        let on_processor = profile.target.class == DeviceClass::Cpu;
        let rate = network.processor_seconds.filter(|s| on_processor && *s > 0.0);
        let rate = rate.map(|seconds| network.flops as f64 / seconds);
        network.processor_share = rate.zip(peak.flops_per_processor_s).map(|(a, b)| a / b);
    }
    let manifest = &session.plan().manifest;
    let measured = Measured {
        device: session.device().name.clone(),
        model: manifest.model.clone(),
        precision: manifest.precision.clone(),
        profile: manifest.profile.clone(),
        peak_flops_per_s: peak.flops_per_s,
        launch_seconds,
        networks,
    };
    match args.json {
        true => print::json(&measured),
        false => printed(|out| print(&measured, out)),
    }
}

/// Indices of the named networks, or of all networks if no name is given.
fn wanted(plan: &Plan, names: &[String]) -> Result<Vec<usize>> {
    let all = || plan.networks.iter().map(|n| n.name.as_str());
    if names.is_empty() {
        return Ok((0..plan.networks.len()).collect());
    }
    let index = |name: &String| match all().position(|n| n == name) {
        Some(index) => Ok(index),
        None => {
            bail!("no network '{name}'; there are: {}", all().collect::<Vec<_>>().join(", "))
        }
    };
    names.iter().map(index).collect()
}

/// Prints one line of times for each line of standard input until it ends.
fn answer_requests(session: &mut Session, network: usize) -> Result<()> {
    session.run_all()?;
    print::line(serde_json::json!({ "ready": true, "device": session.device().name }))?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let before = processor_seconds();
        let seconds = session.time_launches(network)?.all;
        let processor_seconds = before.zip(processor_seconds()).map(|(a, b)| b - a);
        let answer =
            serde_json::json!({ "seconds": seconds, "processor_seconds": processor_seconds });
        print::line(answer)?;
    }
    Ok(())
}

fn measure(
    session: &mut Session,
    network: usize,
    args: &Args,
    tick: &mut dyn FnMut(),
) -> Result<NetworkTimes> {
    let runs = usize::from(args.runs);
    session.time_launches(network)?;
    let before = processor_seconds();
    let (mut launch_seconds, mut host_seconds) = (vec![], vec![]);
    for _ in 0..runs {
        let seconds = session.time_launches(network)?;
        launch_seconds.push(seconds.all);
        host_seconds.push(seconds.host);
        tick();
    }
    let processor = before.zip(processor_seconds()).map(|(a, b)| (b - a) / runs as f64);
    let mut pass_seconds = Vec::new();
    if !args.no_io && session.plan().networks[network].role.is_denoiser() {
        // The first pass starts with empty slots. The others equal the passes of the sampler's
        // loop.
        let (seconds, _) = session.time_passes(network, runs + 1, false)?;
        pass_seconds.extend_from_slice(&seconds[1..]);
    } else if !args.no_io {
        for _ in 0..runs {
            pass_seconds.extend(session.time_passes(network, 1, true)?.0);
        }
    }
    tick();
    let account = Account::new(session.plan(), None)?;
    let entry = &session.plan().networks[network];
    let ops = account.ops.iter().filter(|op| op.network == network);
    let cold = !entry.role.is_denoiser();
    let totals = &account.networks[network];
    Ok(NetworkTimes {
        name: entry.name.clone(),
        batch: entry.outputs.first().and_then(|o| o.shape.first()).copied().unwrap_or(1),
        launches: totals.launches,
        recorded_launches: session.recorded_launches(network),
        flops: totals.flops,
        bytes: ops.map(|op| op.bytes).sum(),
        weight_bytes: weight_bytes(entry),
        read_bytes: totals.streamed_bytes + if cold { totals.resident_bytes } else { 0 },
        median_seconds: median(&launch_seconds),
        best_seconds: best(&launch_seconds),
        host_seconds: best(&host_seconds),
        launch_seconds,
        pass_seconds,
        processor_seconds: processor,
        peak_share: 0.0,
        processor_share: None,
    })
}

/// Bytes of weights that the launches of a network read.
fn weight_bytes(network: &Network) -> u64 {
    let args = network.steps.iter().flat_map(|step| match step {
        Step::Dispatch(dispatch) => &dispatch.args[..],
        _ => &[],
    });
    args.map(|arg| match arg {
        kiln_bundle::plan::Arg::Weight { len_bytes, .. } => *len_bytes,
        _ => 0,
    })
    .sum()
}

impl NetworkTimes {
    fn rate(&self) -> f64 {
        self.flops as f64 / self.median_seconds
    }
}

fn print(measured: &Measured, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{} {} for {} on {}",
        measured.model, measured.precision, measured.profile, measured.device
    )?;
    writeln!(
        out,
        "FMA peak {:.0} GFLOP/s; a launch that does nothing takes {:.1} us",
        measured.peak_flops_per_s * 1e-9,
        measured.launch_seconds * 1e6
    )?;
    writeln!(
        out,
        "{:13} {:>5} {:>8} {:>8} {:>8} {:>10} {:>10} {:>9} {:>6} {:>6} {:>8} {:>6} {:>7} {:>10} {:>9}",
        "network",
        "batch",
        "launches",
        "recorded",
        "GFLOP",
        "median",
        "best",
        "GFLOP/s",
        "% peak",
        "% cpu",
        "GB moved",
        "GB/s",
        "GB read",
        "with I/O",
        "enqueue"
    )?;
    for n in &measured.networks {
        writeln!(
            out,
            "{:13} {:5} {:8} {:8} {:8.1} {:>10} {:>10} {:9.1} {:6.1} {:>6} {:8.2} {:6.1} {:7.2} {:>10} {:>9}",
            n.name,
            n.batch,
            n.launches,
            n.recorded_launches,
            n.flops as f64 * 1e-9,
            duration(n.median_seconds),
            duration(n.best_seconds),
            n.rate() * 1e-9,
            n.peak_share * 100.0,
            n.processor_share.map_or("-".into(), |share| format!("{:.1}", share * 100.0)),
            n.bytes as f64 * 1e-9,
            n.bytes as f64 * 1e-9 / n.median_seconds,
            n.read_bytes as f64 * 1e-9,
            match n.pass_seconds.is_empty() {
                true => "-".into(),
                false => duration(median(&n.pass_seconds)),
            },
            duration(n.host_seconds)
        )?;
    }
    writeln!(out, "\nkiln bench networks --help says what the columns are")?;
    Ok(())
}
