//! `kiln bench kernels`: a fixed list of bare ops, compared with the rates that the device
//! sustains.

use anyhow::{Context, Result, bail, ensure};
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::model::GUIDANCE_BRANCHES;
use kiln_compiler::plan::cost::launch_costs;
use kiln_compiler::strategy::{Strategy, strategies};
use kiln_ir::DType;
use kiln_kernels::{Lowering, Variant};
use kiln_runtime::device;
use kiln_runtime::probe::Probe;
use kiln_testkit::Loaded;
use serde::Serialize;
use std::io::{self, BufRead, Write};

use super::peak::{Peak, copy_bytes_per_s};
use super::problems::{Single, variants};
use super::shapes::{Bound, Shape, shapes};
use super::timing::{Timing, inputs, time};
use crate::cmd::print::{self, printed};

/// Measure bare kernels on shapes of Stable Diffusion 2.1, and the rates that the device sustains
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln bench kernels
  kiln bench kernels --precision fp16 --filter conv3x3
  kiln bench kernels --filter attention --all-variants --json

A matmul is named by M x N x K, a convolution by channels in->out@height x width, an attention by
heads x queries x channels of a head. Ops have no bias. They have a residual if the name says so.
int8 weights have one scale an output channel; int8/64 weights have scale groups of 64.
The variant is the compiler's choice for resident weights. Inputs and weights are random.

% peak is relative to the peak of FP32 multiply-adds. Winograd and tensor cores may exceed 100.
GB/s count each input and the output once, in their storage types. % copy compares GB/s with a copy
of 256 MiB. % moved counts every argument of each launch once. Near 100 % moved, an op waits for
memory alone. A group norm of several launches reads its input twice: at the rate of a copy it shows
100 % moved and 67 % copy. Tensors that fit the last cache may exceed the rate of a copy.
An op of more than a second is timed by a part of its work-items and marked ~.

tools/compare/ops.py uses --on-request to run PyTorch in turn.")]
pub struct Args {
    /// Storage of weights, and on GPUs of feature maps: fp32 or fp16
    #[arg(long, default_value = "fp32", value_parser = ["fp32", "fp16"])]
    precision: String,
    /// Only ops with this text in their names, such as matmul or 64x64
    #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    filter: String,
    /// All variants of each op, the compiler's choice first
    #[arg(long)]
    all_variants: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Read names of ops from standard input. Time each once and print a line of JSON: for
    /// comparing programs in turn
    #[arg(long, conflicts_with_all = ["json", "all_variants"])]
    on_request: bool,
    /// Profile that selects the kernels: a name or a .toml file [default: the device's]
    #[arg(long)]
    profile: Option<String>,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, default_value = "auto")]
    device: String,
}

/// The result of the command, as `--json` prints it.
#[derive(Serialize)]
struct Measured {
    device: String,
    profile: String,
    precision: String,
    peak_flops_per_s: f64,
    /// Rate of a copy, bytes read and bytes written both counted.
    copy_bytes_per_s: f64,
    kernels: Vec<KernelTime>,
}

/// An op, the variant that computes it, and its work.
#[derive(Serialize)]
struct Kernel {
    name: String,
    op: &'static str,
    problem: String,
    /// Shapes of the op's inputs.
    inputs: Vec<Vec<usize>>,
    /// Shape of the op's output.
    output: Vec<usize>,
    bound: Bound,
    flops: u64,
    /// Bytes of inputs and output, each counted once.
    bytes: u64,
    /// Bytes that the launches read and write, every argument of each launch counted once.
    moved_bytes: u64,
    variant: &'static str,
    launches: usize,
    scratch_bytes: u64,
    #[serde(skip)]
    single: Single,
    #[serde(skip)]
    lowering: Lowering,
}

/// The time of a kernel.
#[derive(Serialize)]
struct KernelTime {
    #[serde(flatten)]
    kernel: Kernel,
    seconds: f64,
    /// Part of the work that was run. `seconds` is extrapolated to all of it.
    part: f64,
    flops_per_s: f64,
    bytes_per_s: f64,
    /// Achieved part of the FMA peak, or of a copy's bandwidth, depending on `bound`.
    share: f64,
    /// Achieved part of a copy's bandwidth, by `moved_bytes`.
    moved_share: f64,
}

/// Measures and prints the result.
pub fn run(args: Args) -> Result<()> {
    let device = device::select(&args.device)?;
    let (own_name, own) = crate::cmd::devices::adapted_profile(&device)?;
    let (profile_name, profile) = match &args.profile {
        Some(profile) => DeviceProfile::load(profile)?,
        None => (own_name, own.clone()),
    };
    let kernels = kernels(&args, &profile)?;
    let probe = Probe::open(&device)?;
    let head = serde_json::json!({
        "ready": true, "device": device.name, "profile": profile_name, "precision": args.precision
    });
    if args.on_request {
        return answer_requests(&probe, &kernels, head);
    }
    let bar = super::bar(kernels.len())?;
    bar.set_message("the device's peak");
    // The device's sustained rates do not depend on the profile under test.
    let mut peak = Peak::new(&probe, &own.target)?;
    let copy = || copy_bytes_per_s(&probe, &device, &own.target);
    let copied_before = copy()?;
    let mut times = Vec::new();
    for kernel in kernels {
        bar.set_message(kernel.name.clone());
        let timing = time(&kernel.load(&probe)?).with_context(|| kernel.name.clone())?;
        times.push(kernel.took(timing));
        bar.inc(1);
    }
    // The best measurement counts, as for the peak: other programs use part of the memory
    // bandwidth.
    peak.measure()?;
    let copy_bytes_per_s = copied_before.max(copy()?);
    bar.finish_and_clear();
    for time in &mut times {
        time.share = match time.kernel.bound {
            Bound::Arithmetic => time.flops_per_s / peak.flops_per_s,
            Bound::Memory => time.bytes_per_s / copy_bytes_per_s,
        };
        time.moved_share = time.kernel.moved_bytes as f64 / time.seconds / copy_bytes_per_s;
    }
    let measured = Measured {
        device: device.name,
        profile: profile_name,
        precision: args.precision,
        peak_flops_per_s: peak.flops_per_s,
        copy_bytes_per_s,
        kernels: times,
    };
    match args.json {
        true => print::json(&measured),
        false => printed(|out| print(&measured, out)),
    }
}

/// The kernels that the arguments select.
///
/// Errors: no op has the filter's text in its name; an op has no variant for the profile.
fn kernels(args: &Args, profile: &DeviceProfile) -> Result<Vec<Kernel>> {
    let dtype = if args.precision == "fp16" { DType::F16 } else { DType::F32 };
    let strategy = *strategies(profile, dtype, GUIDANCE_BRANCHES, None)
        .first()
        .context("there is no strategy")?;
    let all = shapes();
    let wanted: Vec<&Shape> = all.iter().filter(|s| s.name.contains(&args.filter)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
        bail!("no op has '{}' in its name; there are: {}", args.filter, names.join(", "));
    }
    let mut kernels = Vec::new();
    for shape in wanted {
        let of_shape = of_shape(shape, &strategy, dtype, profile);
        let of_shape = of_shape.with_context(|| shape.name.clone())?;
        kernels.extend(of_shape.into_iter().take(if args.all_variants { usize::MAX } else { 1 }));
    }
    Ok(kernels)
}

/// All variants of an op, the compiler's choice first.
fn of_shape(
    shape: &Shape,
    strategy: &Strategy,
    weights: DType,
    profile: &DeviceProfile,
) -> Result<Vec<Kernel>> {
    let list = variants(&shape.single(strategy, weights)?.problem(), profile)?;
    ensure!(!list.is_empty(), "no kernel variant applies");
    let kernel = |variant| Kernel::new(shape, shape.single(strategy, weights)?, variant, profile);
    list.into_iter().map(kernel).collect()
}

impl Kernel {
    fn new(
        shape: &Shape,
        single: Single,
        variant: &Variant,
        profile: &DeviceProfile,
    ) -> Result<Self> {
        let problem = single.problem();
        let lowering = variant.lower(&problem, &profile.target.tuned(&problem))?;
        let costs = launch_costs(&problem, variant.name, &lowering, profile);
        Ok(Self {
            name: shape.name.clone(),
            op: problem.op.name(),
            problem: problem.to_string(),
            inputs: problem.inputs.iter().map(|i| i.ty.shape.clone()).collect(),
            output: problem.output.shape.clone(),
            bound: shape.bound,
            flops: single.flops(),
            bytes: single.bytes(),
            moved_bytes: costs.iter().map(|cost| cost.bytes).sum(),
            variant: variant.name,
            launches: lowering.launches.len(),
            scratch_bytes: lowering.scratch_bytes.iter().sum(),
            single,
            lowering,
        })
    }

    /// Compiles the kernel and puts its inputs on the device.
    fn load<'a>(&self, probe: &'a Probe) -> Result<Loaded<'a>> {
        let problem = self.single.problem();
        let loaded = Loaded::new(probe, &problem, &self.lowering, &inputs(&problem));
        loaded.with_context(|| format!("{}: {}", self.name, self.variant))
    }

    fn took(self, Timing { seconds, part }: Timing) -> KernelTime {
        let rate = |amount: u64| amount as f64 / seconds;
        let (flops_per_s, bytes_per_s) = (rate(self.flops), rate(self.bytes));
        let (share, moved_share) = (0.0, 0.0);
        KernelTime { kernel: self, seconds, part, flops_per_s, bytes_per_s, share, moved_share }
    }
}

/// Prints a head, then one line of time for each name on standard input until it ends.
fn answer_requests(probe: &Probe, kernels: &[Kernel], mut head: serde_json::Value) -> Result<()> {
    head["kernels"] = serde_json::to_value(kernels)?;
    print::line(head)?;
    // One kernel is loaded at a time: together they would take gigabytes.
    let mut ready: Option<(&Kernel, Loaded)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let name = line.trim();
        if ready.as_ref().is_none_or(|(kernel, _)| kernel.name != name) {
            drop(ready.take());
            let kernel = kernels.iter().find(|kernel| kernel.name == name);
            let kernel = kernel.with_context(|| format!("no op is named '{name}'"))?;
            ready = Some((kernel, kernel.load(probe)?));
        }
        let Some((kernel, loaded)) = &ready else { continue };
        let Timing { seconds, part } = time(loaded).with_context(|| kernel.name.clone())?;
        let answer = serde_json::json!({ "name": kernel.name, "seconds": seconds, "part": part });
        print::line(answer)?;
    }
    Ok(())
}

fn print(measured: &Measured, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} for {} on {}", measured.precision, measured.profile, measured.device)?;
    writeln!(
        out,
        "FMA peak {:.0} GFLOP/s; a copy reads and writes {:.1} GB/s",
        measured.peak_flops_per_s * 1e-9,
        measured.copy_bytes_per_s * 1e-9
    )?;
    writeln!(
        out,
        "{:33} {:16} {:>8} {:>11} {:>9} {:>6} {:>8} {:>6} {:>7}",
        "op", "variant", "launches", "time", "GFLOP/s", "% peak", "GB/s", "% copy", "% moved"
    )?;
    for time in &measured.kernels {
        let kernel = &time.kernel;
        let about = if time.part < 1.0 { "~" } else { "" };
        let share = time.share * 100.0;
        let rates = match kernel.bound {
            Bound::Arithmetic => {
                let rate = time.flops_per_s * 1e-9;
                format!("{rate:9.1} {share:6.1} {:>8} {:>6} {:>7}", "-", "-", "-")
            }
            Bound::Memory => {
                let (rate, moved) = (time.bytes_per_s * 1e-9, time.moved_share * 100.0);
                format!("{:>9} {:>6} {rate:8.1} {share:6.1} {moved:7.1}", "-", "-")
            }
        };
        writeln!(
            out,
            "{:33} {:16} {:8} {:>11} {rates}",
            kernel.name,
            kernel.variant,
            kernel.launches,
            format!("{about}{}", super::duration(time.seconds)),
        )?;
    }
    writeln!(out, "\nkiln bench kernels --help says what the columns are")?;
    Ok(())
}
