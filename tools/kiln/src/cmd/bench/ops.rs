//! `kiln bench ops`: each distinct op of a model and each of its variants.

use anyhow::{Context, Result};
use kiln_kernels::candidates;
use kiln_runtime::probe::Probe;
use kiln_testkit::Loaded;
use serde::Serialize;
use std::io::{self, Write};

use super::peak::Peak;
use super::problems::{Item, Resolved, Subject, resolve};
use super::timing::{inputs, time};
use crate::cmd::print::{self, printed};

/// Measure each distinct op of a model's networks and each of its kernel variants
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln bench ops sd21.kiln
  kiln bench ops sd21.kiln --filter conv2d --chosen
  kiln bench ops --model sd21-base --network unet --guidance-batch 1 --json

Inputs and weights are random. An op of more than a second is timed by a part of its work-items
and marked ~.

share, count: of the network's time, and how often a pass has the op. each: time of one. % peak is
relative to the peak of FP32 multiply-adds, measured in the same run; Winograd and tensor cores may
exceed 100. GB/s count each input and the output once, in their storage types.")]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Only this network. May be repeated [default: text_encoder, unet and decoder]
    #[arg(long)]
    network: Vec<String>,
    /// Only ops with this text in their lines: an op, a variant, a shape such as 4096,320
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    filter: String,
    /// Only the variant that the compiler chooses
    #[arg(long)]
    chosen: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The result of the command, as `--json` prints it.
#[derive(Serialize)]
struct Measured {
    device: String,
    model: String,
    profile: String,
    peak_flops_per_s: f64,
    ops: Vec<OpTimes>,
}

/// Measurements of a distinct op.
#[derive(Serialize)]
struct OpTimes {
    network: String,
    op: &'static str,
    problem: String,
    /// Name of the op's first occurrence in a pass.
    name: String,
    /// Number of occurrences in a pass.
    count: usize,
    /// Arithmetic of one occurrence.
    flops: u64,
    /// Bytes of inputs and output of one occurrence, each counted once.
    bytes: u64,
    /// Part of its network's time, of the ops that were measured.
    share: f64,
    /// Times of the variants, the compiler's choice first.
    variants: Vec<VariantTime>,
}

/// The time of a variant.
#[derive(Serialize)]
struct VariantTime {
    variant: &'static str,
    seconds: f64,
    /// Part of the work that was run. `seconds` is extrapolated to all of it.
    part: f64,
    launches: usize,
    scratch_bytes: u64,
}

/// Measures and prints the result.
pub fn run(args: Args) -> Result<()> {
    let resolved = resolve(&args.subject, &args.network)?;
    let probe = Probe::open(&resolved.device)?;
    let target = &resolved.profile.target;
    let mut peak = Peak::new(&probe, target)?;
    let wanted = |item: &&Item| {
        let names: Vec<&str> = candidates(&item.problem(), target).iter().map(|v| v.name).collect();
        let problem = item.problem();
        let line = format!("{}/{} {problem} {}", problem.op.name(), names.join(" "), item.first);
        line.contains(&args.filter)
    };
    let items: Vec<&Item> = resolved.items.iter().filter(wanted).collect();
    let bar = super::bar(items.len())?;
    let mut ops = Vec::new();
    for item in items {
        bar.set_message(item.first.clone());
        ops.push(
            measure(&probe, &resolved, item, args.chosen)
                .with_context(|| format!("{}: {}", item.first, item.problem()))?,
        );
        bar.inc(1);
    }
    peak.measure()?;
    bar.finish_and_clear();
    share(&mut ops);
    let measured = Measured {
        device: resolved.device.name.clone(),
        model: resolved.model.clone(),
        profile: resolved.profile_name.clone(),
        peak_flops_per_s: peak.flops_per_s,
        ops,
    };
    match args.json {
        true => print::json(&measured),
        false => printed(|out| print(&measured, out)),
    }
}

fn measure(probe: &Probe, resolved: &Resolved, item: &Item, chosen: bool) -> Result<OpTimes> {
    let problem = item.problem();
    let target = &*resolved.profile.target.tuned(&problem);
    let values = inputs(&problem);
    let list = resolved.variants(&problem)?;
    let count = if chosen { 1 } else { list.len() };
    let mut variants = Vec::new();
    for variant in list.into_iter().take(count) {
        let lowering = variant.lower(&problem, target)?;
        let loaded = Loaded::new(probe, &problem, &lowering, &values)?;
        let timing = time(&loaded).with_context(|| variant.name)?;
        variants.push(VariantTime {
            variant: variant.name,
            seconds: timing.seconds,
            part: timing.part,
            launches: lowering.launches.len(),
            scratch_bytes: lowering.scratch_bytes.iter().sum(),
        });
    }
    Ok(OpTimes {
        network: item.network.clone(),
        op: problem.op.name(),
        problem: problem.to_string(),
        name: item.first.clone(),
        count: item.count,
        flops: item.flops(),
        bytes: item.bytes(),
        share: 0.0,
        variants,
    })
}

impl OpTimes {
    /// Seconds of a pass with the compiler's choice.
    fn pass_seconds(&self) -> f64 {
        self.variants.first().map_or(0.0, |v| v.seconds * self.count as f64)
    }
}

/// Sets each op's part of its network's time, and puts the largest first.
fn share(ops: &mut [OpTimes]) {
    let sum = |network: &str, ops: &[OpTimes]| -> f64 {
        ops.iter().filter(|o| o.network == network).map(OpTimes::pass_seconds).sum()
    };
    for index in 0..ops.len() {
        ops[index].share = ops[index].pass_seconds() / sum(&ops[index].network, ops);
    }
    // The sort is stable, so networks keep their order.
    let order: Vec<String> = ops.iter().map(|o| o.network.clone()).collect();
    let place = |network: &str| order.iter().position(|n| n == network);
    ops.sort_by(|a, b| place(&a.network).cmp(&place(&b.network)).then(b.share.total_cmp(&a.share)));
}

fn print(measured: &Measured, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} for {} on {}", measured.model, measured.profile, measured.device)?;
    writeln!(out, "FMA peak {:.0} GFLOP/s", measured.peak_flops_per_s * 1e-9)?;
    let mut last = "";
    for op in &measured.ops {
        if op.network != last {
            last = &op.network;
            let same = measured.ops.iter().filter(|o| o.network == op.network);
            let pass: f64 = same.map(OpTimes::pass_seconds).sum();
            writeln!(out, "\n{}: {} for these ops of a pass", op.network, super::duration(pass))?;
            writeln!(
                out,
                "{:>6} {:>5} {:>11} {:>9} {:>6} {:>7}  op/variant",
                "share", "count", "each", "GFLOP/s", "% peak", "GB/s"
            )?;
        }
        for (index, variant) in op.variants.iter().enumerate() {
            let rate = op.flops as f64 / variant.seconds;
            let shown = match index {
                0 => format!("{:5.1}% {:5}", op.share * 100.0, op.count),
                _ => format!("{:12}", ""),
            };
            let about = if variant.part < 1.0 { "~" } else { "" };
            writeln!(
                out,
                "{shown} {:>11} {:9.1} {:6.1} {:7.1}  {}/{} {}",
                format!("{about}{}", super::duration(variant.seconds)),
                rate * 1e-9,
                rate / measured.peak_flops_per_s * 100.0,
                op.bytes as f64 / variant.seconds * 1e-9,
                op.op,
                variant.variant,
                if index == 0 { op.problem.as_str() } else { "" }
            )?;
        }
    }
    writeln!(out, "\nkiln bench ops --help says what the columns are")?;
    Ok(())
}
