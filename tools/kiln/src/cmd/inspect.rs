//! `kiln inspect`: where every byte of a bundle goes.

use anyhow::Result;
use kiln_bundle::plan::{Buffer, Manifest, Phase, Plan, Residency, Step};
use kiln_compiler::plan::explain::mib;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show where a bundle's memory goes, without a device.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln inspect sd21.kiln
  kiln inspect sd21.kiln --json | jq .memory")]
pub struct Args {
    /// Bundle
    pub bundle: PathBuf,
    /// For machines
    #[arg(long)]
    pub json: bool,
}

/// Prints the summary.
pub fn run(args: Args) -> Result<()> {
    let bundle = super::open_bundle(&args.bundle)?;
    let summary = Summary::new(bundle.plan());
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        summary.print();
    }
    Ok(())
}

#[derive(Serialize)]
struct Summary<'a> {
    model: &'a str,
    precision: &'a str,
    profile: &'a str,
    manifest: &'a Manifest,
    memory: Memory,
    networks: Vec<NetworkSummary<'a>>,
    peak: Peak<'a>,
    arena: Vec<Region<'a>>,
    weights: Weights,
    kernels: Vec<KernelSummary<'a>>,
}

#[derive(Serialize)]
struct Memory {
    budget_bytes: u64,
    peak_bytes: u64,
    arena_bytes: u64,
    arena_lower_bound_bytes: u64,
    slot_bytes: Vec<u64>,
    staging_bytes: u64,
    host_bytes: u64,
    program_bytes: u64,
    baseline_bytes: u64,
}

#[derive(Serialize)]
struct NetworkSummary<'a> {
    name: &'a str,
    runs: &'static str,
    launches: usize,
    flops: u64,
    streamed_bytes: u64,
    resident_bytes: u64,
    arena_peak_bytes: u64,
}

#[derive(Serialize)]
struct Peak<'a> {
    step: u32,
    network: &'a str,
    op: &'a str,
    live_bytes: u64,
    live: Vec<Region<'a>>,
}

#[derive(Serialize, Clone, Copy)]
struct Region<'a> {
    name: &'a str,
    offset_bytes: u64,
    len_bytes: u64,
    lower: u32,
    upper: u32,
}

#[derive(Serialize)]
struct Weights {
    resident_bytes: u64,
    resident_blocks: usize,
    streamed_bytes: u64,
    streamed_blocks: usize,
    streamed_bytes_a_pass: u64,
}

#[derive(Serialize)]
struct KernelSummary<'a> {
    op: &'a str,
    variant: &'a str,
    kernels: usize,
    launches: usize,
    flops: u64,
}

fn region(buffer: &Buffer) -> Region<'_> {
    Region {
        name: &buffer.name,
        offset_bytes: buffer.offset_bytes,
        len_bytes: buffer.len_bytes,
        lower: buffer.lower,
        upper: buffer.upper,
    }
}

impl<'a> Summary<'a> {
    fn new(plan: &'a Plan) -> Self {
        let memory = &plan.memory;
        let networks: Vec<_> = (0..plan.networks.len()).map(|i| network(plan, i)).collect();
        let blocks = plan.blocks.iter();
        let (resident, streamed): (Vec<_>, Vec<_>) =
            blocks.partition(|b| matches!(b.residency, Residency::Resident(_)));
        let a_pass = plan.networks.iter().zip(&networks).filter(|(n, _)| n.phase == Phase::Step);
        Summary {
            model: &plan.manifest.model,
            precision: &plan.manifest.precision,
            profile: &plan.manifest.profile,
            manifest: &plan.manifest,
            memory: Memory {
                budget_bytes: memory.budget_bytes,
                peak_bytes: memory.peak_bytes(),
                arena_bytes: memory.arena_bytes,
                arena_lower_bound_bytes: memory.arena_lower_bound_bytes,
                slot_bytes: memory.slot_bytes.clone(),
                staging_bytes: memory.staging_bytes,
                host_bytes: memory.host_bytes,
                program_bytes: memory.program_bytes,
                baseline_bytes: memory.baseline_bytes,
            },
            weights: Weights {
                resident_bytes: resident.iter().map(|b| b.len_bytes).sum(),
                resident_blocks: resident.len(),
                streamed_bytes: streamed.iter().map(|b| b.len_bytes).sum(),
                streamed_blocks: streamed.len(),
                streamed_bytes_a_pass: a_pass.map(|(_, s)| s.streamed_bytes).sum(),
            },
            networks,
            peak: peak(plan),
            arena: plan.buffers.iter().map(region).collect(),
            kernels: kernels(plan),
        }
    }

    fn print(&self) {
        println!("{} {} for {}", self.model, self.precision, self.profile);
        println!("\nmemory");
        let m = &self.memory;
        let parts = [
            ("arena (activations, resident weights)", m.arena_bytes),
            ("slots of streamed weights", m.slot_bytes.iter().sum()),
            ("staging", m.staging_bytes),
            ("host buffers", m.host_bytes),
            ("compiled kernels", m.program_bytes),
            ("process and driver", m.baseline_bytes),
            ("planned peak", m.peak_bytes),
            ("budget", m.budget_bytes),
        ];
        parts.iter().for_each(|(name, bytes)| println!("  {name:<40}{:>12}", mib(*bytes)));
        let slack = m.arena_bytes.saturating_sub(m.arena_lower_bound_bytes);
        println!("  {:<40}{:>12}", "arena above its lower bound", mib(slack));
        println!(
            "\nnetworks {:>33} {:>9} {:>9} {:>12} {:>12}",
            "runs", "launches", "GFLOP", "streamed", "arena peak"
        );
        for n in &self.networks {
            let gflop = n.flops as f64 / 1e9;
            let (streamed, peak) = (mib(n.streamed_bytes), mib(n.arena_peak_bytes));
            println!(
                "  {:<16}{:>24} {:>9} {gflop:>9.1} {streamed:>12} {peak:>12}",
                n.name, n.runs, n.launches
            );
        }
        let p = &self.peak;
        println!("\narena peak: {} live in {}, {}", mib(p.live_bytes), p.network, p.op);
        for r in p.live.iter().take(8) {
            println!(
                "  {:<60}{:>12} at {:>12}",
                shorten(r.name, 58),
                mib(r.len_bytes),
                r.offset_bytes
            );
        }
        let w = &self.weights;
        println!(
            "\nweights: {} resident in {} blocks, {} streamed in {} blocks ({} a pass of the U-Net)",
            mib(w.resident_bytes),
            w.resident_blocks,
            mib(w.streamed_bytes),
            w.streamed_blocks,
            mib(w.streamed_bytes_a_pass)
        );
        println!("\nkernels {:>31} {:>9} {:>9}", "programs", "launches", "GFLOP");
        for k in &self.kernels {
            let (name, gflop) = (format!("{} {}", k.op, k.variant), k.flops as f64 / 1e9);
            println!("  {name:<28}{:>9} {:>9} {gflop:>9.1}", k.kernels, k.launches);
        }
    }
}

fn shorten(name: &str, width: usize) -> String {
    let skip = name.chars().count().saturating_sub(width);
    if skip == 0 {
        name.to_string()
    } else {
        format!("…{}", name.chars().skip(skip + 1).collect::<String>())
    }
}

fn network(plan: &Plan, index: usize) -> NetworkSummary<'_> {
    let network = &plan.networks[index];
    let (lower, upper) = plan.span(index);
    let mut summary = NetworkSummary {
        name: &network.name,
        runs: match network.phase {
            Phase::Prompt => "once a prompt",
            Phase::Timesteps => "once for all timesteps",
            Phase::Step if plan.manifest.guidance_batch == 1 => "twice a step",
            Phase::Step => "once a step",
            Phase::Picture => "once a picture",
        },
        launches: 0,
        flops: 0,
        streamed_bytes: 0,
        resident_bytes: 0,
        arena_peak_bytes: (lower..upper).map(|t| live_bytes(plan, t)).max().unwrap_or(0),
    };
    for step in &network.steps {
        match step {
            Step::Dispatch(d) => {
                summary.launches += 1;
                summary.flops += d.flops;
            }
            Step::Load { block, .. } => {
                summary.streamed_bytes += plan.blocks[block.index()].len_bytes;
            }
            Step::Gather(_) | Step::Free { .. } => {}
        }
    }
    for block in &plan.blocks {
        if let Residency::Resident(buffer) = block.residency {
            let buffer = &plan.buffers[buffer.index()];
            if buffer.upper == upper {
                summary.resident_bytes += block.len_bytes;
            }
        }
    }
    summary
}

fn live_bytes(plan: &Plan, time: u32) -> u64 {
    let live = plan.buffers.iter().filter(|b| b.lower <= time && time < b.upper);
    live.map(|b| b.len_bytes).sum()
}

fn peak(plan: &Plan) -> Peak<'_> {
    let steps: Vec<(&str, &Step)> =
        plan.networks.iter().flat_map(|n| n.steps.iter().map(|s| (n.name.as_str(), s))).collect();
    let step = (0..steps.len() as u32).rev().max_by_key(|t| live_bytes(plan, *t)).unwrap_or(0);
    let (network, op) = match steps.get(step as usize) {
        Some((network, Step::Dispatch(d))) => (*network, d.name.as_str()),
        Some((network, Step::Gather(g))) => (*network, g.name.as_str()),
        Some((network, Step::Load { block, .. } | Step::Free { block })) => {
            (*network, plan.blocks[block.index()].name.as_str())
        }
        None => ("", ""),
    };
    let mut live: Vec<_> =
        plan.buffers.iter().filter(|b| b.lower <= step && step < b.upper).map(region).collect();
    live.sort_by_key(|r| std::cmp::Reverse(r.len_bytes));
    Peak { step, network, op, live_bytes: live_bytes(plan, step), live }
}

fn kernels(plan: &Plan) -> Vec<KernelSummary<'_>> {
    let mut table: BTreeMap<(&str, &str), KernelSummary> = BTreeMap::new();
    for k in &plan.kernels {
        let (op, variant) = (k.op.as_str(), k.variant.as_str());
        let empty = KernelSummary { op, variant, kernels: 0, launches: 0, flops: 0 };
        table.entry((op, variant)).or_insert(empty).kernels += 1;
    }
    for step in plan.networks.iter().flat_map(|n| &n.steps) {
        if let Step::Dispatch(d) = step {
            let k = &plan.kernels[d.kernel.index()];
            if let Some(entry) = table.get_mut(&(k.op.as_str(), k.variant.as_str())) {
                entry.launches += 1;
                entry.flops += d.flops;
            }
        }
    }
    table.into_values().collect()
}
