//! Planned and measured memory, and times.

use std::collections::BTreeMap;

use kiln_bundle::plan::{Block, Network, Plan, Residency, Step};
use serde::Serialize;

use crate::executor::LaunchTime;
use crate::memory::Allocations;
use crate::pipeline::png::Repaint;
use crate::program::ProgramOrigin;
use crate::reading::WeightReads;
use crate::session::Settings;
use crate::stream::StreamStats;

/// The parts of a plan's memory.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PlannedMemory {
    /// Budget of the whole process.
    pub budget_bytes: u64,
    /// The sum of the parts.
    pub peak_bytes: u64,
    /// Activations and resident weights.
    pub arena_bytes: u64,
    /// Resident weights, a part of the arena.
    pub resident_bytes: u64,
    /// Streamed weights.
    pub slot_bytes: u64,
    /// Uploads.
    pub staging_bytes: u64,
    /// The runtime's own buffers.
    pub host_bytes: u64,
    /// Compiled kernels.
    pub program_bytes: u64,
    /// The process with a driver loaded and nothing done.
    pub baseline_bytes: u64,
}

/// Memory as counted by the runtime and the operating system.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct MeasuredMemory {
    /// Allocated for the arena.
    pub arena_bytes: u64,
    /// Allocated for slots.
    pub slot_bytes: u64,
    /// Allocated for staging.
    pub staging_bytes: u64,
    /// Most bytes that were allocated on the device at one time.
    pub device_high_water_bytes: u64,
    /// Peak memory of the process (`VmHWM`), if the system reports it.
    pub process_peak_bytes: Option<u64>,
    /// Current memory of the process (`VmRSS`), if the system reports it.
    pub process_bytes: Option<u64>,
}

/// Times of the stages.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Times {
    /// Opening the bundle, building kernels, allocating.
    pub load_seconds: f64,
    /// Tokenizing, and the networks that run once a prompt.
    pub prompt_seconds: f64,
    /// The sampler's loop, with the projection of timesteps.
    pub sample_seconds: f64,
    /// The decoder.
    pub decode_seconds: f64,
    /// From opening the bundle to the end of the first step: loading, the prompt, and the step.
    pub first_step_seconds: f64,
    /// Each step of the sampler.
    pub step_seconds: Vec<f64>,
}

/// Memory and times of one image.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// Name of the device.
    pub device: String,
    /// Source of the compiled kernels.
    pub programs: ProgramOrigin,
    /// Name of the model.
    pub model: String,
    /// Planned memory.
    pub planned: PlannedMemory,
    /// Measured memory.
    pub measured: MeasuredMemory,
    /// Bytes and times of reading weights.
    pub stream: StreamStats,
    /// How weights were read.
    pub weight_reads: Option<WeightReads>,
    /// How the image was sampled.
    pub settings: Settings,
    /// Names and strengths of LoRAs that the run switched on.
    pub loras: Vec<(String, f32)>,
    /// The mask; none if the whole image was made.
    pub repaint: Option<Repaint>,
    /// Times of the stages.
    pub times: Times,
}

/// Time of one launch over all runs of its network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LaunchProfile {
    /// Name of the network.
    pub network: String,
    /// Index into the network's steps.
    pub step: usize,
    /// Name of the op.
    pub name: String,
    /// Number of runs.
    pub runs: u64,
    /// Mean time on the device.
    pub mean_ns: u64,
    /// Shortest time on the device.
    pub min_ns: u64,
}

/// The measured time of every launch of an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Profile {
    /// Name of the model.
    pub model: String,
    /// How weights were read.
    pub weight_reads: Option<WeightReads>,
    /// The launches in the plan's order.
    pub launches: Vec<LaunchProfile>,
}

impl Profile {
    /// Combines the runs of each launch.
    pub fn new(plan: &Plan, weight_reads: Option<WeightReads>, times: &[LaunchTime]) -> Profile {
        let mut sums: BTreeMap<(usize, usize), (u64, u64, u64)> = BTreeMap::new();
        for time in times {
            let sum = sums.entry((time.network, time.step)).or_insert((0, 0, u64::MAX));
            let ns = time.nanoseconds;
            *sum = (sum.0 + 1, sum.1 + ns, sum.2.min(ns));
        }
        let launch =
            |(&(network, step), &(runs, total_ns, min_ns)): (&(_, _), &(u64, u64, u64))| {
                let network: &Network = &plan.networks[network];
                let name = match &network.steps[step] {
                    Step::Dispatch(dispatch) => dispatch.name.clone(),
                    _ => String::new(),
                };
                let (network, mean_ns) = (network.name.clone(), total_ns / runs);
                LaunchProfile { network, step, name, runs, mean_ns, min_ns }
            };
        let (model, launches) = (plan.manifest.model.clone(), sums.iter().map(launch).collect());
        Profile { model, weight_reads, launches }
    }
}

impl PlannedMemory {
    /// The planned memory of a plan.
    pub fn of(plan: &Plan) -> PlannedMemory {
        let memory = &plan.memory;
        let resident = |block: &&Block| matches!(block.residency, Residency::Resident(_));
        PlannedMemory {
            budget_bytes: memory.budget_bytes,
            peak_bytes: memory.peak_bytes(),
            arena_bytes: memory.arena_bytes,
            resident_bytes: plan.blocks.iter().filter(resident).map(|b| b.len_bytes).sum(),
            slot_bytes: memory.slot_bytes.iter().sum(),
            staging_bytes: memory.staging_bytes,
            host_bytes: memory.host_bytes,
            program_bytes: memory.program_bytes,
            baseline_bytes: memory.baseline_bytes,
        }
    }
}

impl MeasuredMemory {
    /// The current figures of the counters and the operating system.
    pub fn now(allocations: Allocations) -> MeasuredMemory {
        MeasuredMemory {
            arena_bytes: allocations.arena_bytes,
            slot_bytes: allocations.slot_bytes,
            staging_bytes: allocations.staging_bytes,
            device_high_water_bytes: allocations.high_water_bytes,
            process_peak_bytes: process_peak_bytes(),
            process_bytes: process_figure("VmRSS:"),
        }
    }
}

/// Peak memory of this process in bytes, if the system reports it.
pub fn process_peak_bytes() -> Option<u64> {
    process_figure("VmHWM:")
}

/// A figure of `/proc/self/status`, in bytes.
fn process_figure(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_tells_what_the_process_takes() {
        let measured = MeasuredMemory::now(Allocations::default());
        let (peak, now) = (measured.process_peak_bytes.unwrap(), measured.process_bytes.unwrap());
        assert!(peak >= now && now > 1 << 18, "{measured:?}");
    }

    #[test]
    fn a_profile_sums_up_the_runs_of_each_launch() {
        let plan = kiln_bundle::testing::plan();
        let time = |step, nanoseconds| LaunchTime { network: 2, step, nanoseconds };
        let profile = Profile::new(&plan, None, &[time(3, 10), time(1, 5), time(3, 20)]);
        let found: Vec<_> = profile
            .launches
            .iter()
            .map(|l| (l.name.as_str(), l.step, l.runs, l.mean_ns, l.min_ns))
            .collect();
        assert_eq!(found, [("conv_in.top", 1, 1, 5, 5), ("attention", 3, 2, 15, 10)]);
    }

    #[test]
    fn the_parts_of_a_plan_add_up() {
        let planned = PlannedMemory::of(&kiln_bundle::testing::plan());
        let parts = planned.arena_bytes
            + planned.slot_bytes
            + planned.staging_bytes
            + planned.host_bytes
            + planned.program_bytes
            + planned.baseline_bytes;
        assert_eq!((planned.peak_bytes, planned.resident_bytes), (parts, 4096));
    }
}
