//! The time of a launch.
//!
//! A launch takes the longer of its arithmetic time and its memory time, at the fraction of the
//! device's rates that its variant reaches, plus the fixed time of a launch.
//!
//! Where the machine code of its kernel is known, the time is a range. At the least, the arithmetic
//! takes the cycles of the code's busiest pipe, and all other pipes and the memory work meanwhile:
//! this is the predicted time. At the most, the device issues one instruction at a time. Latencies
//! and cache misses are in neither.

use kiln_bundle::plan::{Dispatch, Plan};
use kiln_bundle::rationale::{KernelCode, Rates};
use kiln_kernels::{Argument, Lowering, Problem, family};

use crate::device::DeviceProfile;

/// Memory traffic and predicted time of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LaunchCost {
    /// Bytes read and written, every argument counted once.
    pub bytes: u64,
    /// Predicted time in nanoseconds.
    pub ns: u64,
}

/// The cost of each launch of a variant's lowering.
///
/// Launches that write one buffer together each count a part of its bytes.
pub fn launch_costs(
    problem: &Problem,
    variant: &str,
    lowering: &Lowering,
    profile: &DeviceProfile,
) -> Vec<LaunchCost> {
    let share = profile.rates.variant_share.get(variant).copied();
    let own = || family(problem.op.name())?.variant(variant).map(|variant| variant.share);
    let arithmetic = arithmetic(problem.op.name(), variant);
    let share = share.or_else(own).unwrap_or(1.0);
    let rates = profile.rates.in_plan();
    let cost = |(launch, bytes): (&kiln_kernels::Launch, u64)| {
        let work_ns = match profile.code.of(launch) {
            Some(KernelCode { busiest_cycles, .. }) => {
                code_ns(&rates, launch.work_items(), busiest_cycles, bytes)
            }
            None => {
                let flops = (launch.flops as f64 / arithmetic) as u64;
                let work_ns = rates.work_ns(flops, launch.half_arithmetic, bytes);
                (work_ns as f64 / share) as u64
            }
        };
        LaunchCost { bytes, ns: work_ns.saturating_add(rates.launch_ns) }
    };
    lowering.launches.iter().zip(launch_bytes(problem, lowering)).map(cost).collect()
}

/// Factor of the device's rate of FP32 arithmetic that a variant's arithmetic reaches.
pub fn arithmetic(op: &str, variant: &str) -> f64 {
    let known = family(op).and_then(|family| family.variant(variant));
    known.map_or(1.0, |variant| variant.arithmetic)
}

/// Time of work-items that take `cycles` each, or of memory traffic, whichever is longer.
fn code_ns(rates: &Rates, work_items: u64, cycles: u64, bytes: u64) -> u64 {
    rates.cycles_ns(work_items, cycles).max(rates.work_ns(0, false, bytes))
}

/// Machine code of a launch's kernel, if it is known.
pub fn code_of<'a>(plan: &'a Plan, dispatch: &Dispatch) -> Option<&'a KernelCode> {
    plan.rationale.code.get(dispatch.kernel.index())?.as_ref()
}

/// Time of a launch in nanoseconds if one instruction is issued at a time: the predicted time where
/// the machine code is not known.
pub fn single_issue_ns(plan: &Plan, dispatch: &Dispatch) -> u64 {
    let Some(code) = code_of(plan, dispatch) else { return dispatch.predicted_ns };
    let rates = &plan.rationale.rates;
    let work_items = dispatch.global.iter().product();
    let work_ns = code_ns(rates, work_items, code.issued_cycles, dispatch.bytes);
    dispatch.predicted_ns.max(work_ns.saturating_add(rates.launch_ns))
}

/// What a launch takes its time for: `memory`, a pipe of the device, or `arithmetic` where the
/// machine code is not known.
pub fn bound<'a>(plan: &'a Plan, dispatch: &Dispatch) -> &'a str {
    let rates = &plan.rationale.rates;
    let Dispatch { kernel, global, flops, bytes, .. } = dispatch;
    let (pipe, arithmetic_ns) = match code_of(plan, dispatch) {
        Some(code) => {
            (&code.pipe[..], rates.cycles_ns(global.iter().product(), code.busiest_cycles))
        }
        None => {
            let kernel = &plan.kernels[kernel.index()];
            let flops = (*flops as f64 / arithmetic(&kernel.op, &kernel.variant)) as u64;
            ("arithmetic", rates.work_ns(flops, kernel.half_arithmetic, 0))
        }
    };
    if rates.work_ns(0, false, *bytes) > arithmetic_ns { "memory" } else { pipe }
}

fn launch_bytes(problem: &Problem, lowering: &Lowering) -> Vec<u64> {
    let written =
        |arg: &Argument| matches!(arg, Argument::Output | Argument::Scratch { written: true, .. });
    let mut writers: Vec<(&Argument, u64)> = Vec::new();
    for arg in lowering.launches.iter().flat_map(|l| &l.args).filter(|arg| written(arg)) {
        match writers.iter_mut().find(|(other, _)| *other == arg) {
            Some((_, count)) => *count += 1,
            None => writers.push((arg, 1)),
        }
    }
    let share = |arg: &Argument, bytes: u64| {
        bytes / writers.iter().find(|(other, _)| *other == arg).map_or(1, |(_, count)| *count)
    };
    let bytes = |arg: &Argument| match arg {
        Argument::Input { len_bytes, .. } => *len_bytes,
        Argument::Output => share(arg, problem.output.size_bytes()),
        Argument::Scratch { index, .. } => {
            share(arg, lowering.scratch_bytes.get(*index).copied().unwrap_or(0))
        }
        Argument::U32(_) | Argument::F32(_) | Argument::Late(_) => 0,
    };
    let all = |l: &kiln_kernels::Launch| l.args.iter().map(bytes).sum();
    lowering.launches.iter().map(|l| l.bytes.unwrap_or_else(|| all(l))).collect()
}
