//! Sums, limits and names: rules without time and addresses.

use std::collections::{HashMap, HashSet};

use super::violation::Violation;
use crate::plan::{HALF_EXTENSION, Plan};

/// Checks allocations, budget, kernels and names. Returns the planned peak.
pub(super) fn check(plan: &Plan) -> Result<u64, Violation> {
    let align_bytes = plan.requirements.base_align_bytes;
    if !align_bytes.is_power_of_two() {
        return Err(Violation::BaseAlignment { align_bytes });
    }
    check_parts(plan)?;
    for (slot, &slot_bytes) in plan.memory.slot_bytes.iter().enumerate() {
        check_allocation(plan, || format!("slot {slot}"), slot_bytes)?;
    }
    check_allocation(plan, || "staging".to_owned(), plan.memory.staging_bytes)?;
    check_kernels(plan)?;
    check_names(plan)?;
    check_budget(plan)
}

/// The arena's parts are allocations, begin at aligned offsets, and are no more than the buffers.
fn check_parts(plan: &Plan) -> Result<(), Violation> {
    let (arena_bytes, part_bytes) = (plan.memory.arena_bytes, plan.memory.arena_part_bytes);
    if part_bytes >= arena_bytes {
        return check_allocation(plan, || "the arena".to_owned(), arena_bytes);
    }
    let align_bytes = plan.requirements.base_align_bytes;
    let is_sound = part_bytes > 0
        && part_bytes.is_multiple_of(align_bytes)
        && arena_bytes.div_ceil(part_bytes) <= plan.buffers.len() as u64;
    if !is_sound {
        return Err(Violation::ArenaParts { part_bytes, arena_bytes, align_bytes });
    }
    check_allocation(plan, || "a part of the arena".to_owned(), part_bytes)
}

fn check_allocation(
    plan: &Plan,
    what: impl FnOnce() -> String,
    len_bytes: u64,
) -> Result<(), Violation> {
    let max_bytes = plan.requirements.max_alloc_bytes;
    if max_bytes != 0 && len_bytes > max_bytes {
        return Err(Violation::Allocation { what: what(), len_bytes, max_bytes });
    }
    Ok(())
}

fn check_budget(plan: &Plan) -> Result<u64, Violation> {
    let memory = &plan.memory;
    let parts = [
        memory.arena_bytes,
        memory.staging_bytes,
        memory.host_bytes,
        memory.program_bytes,
        memory.baseline_bytes,
    ];
    // No vector is long enough for 128 bits to overflow.
    let peak_bytes: u128 =
        parts.iter().chain(&memory.slot_bytes).map(|&part| u128::from(part)).sum();
    match u64::try_from(peak_bytes) {
        Ok(peak_bytes) if peak_bytes <= memory.budget_bytes => Ok(peak_bytes),
        _ => Err(Violation::Budget { peak_bytes, budget_bytes: memory.budget_bytes }),
    }
}

fn check_kernels(plan: &Plan) -> Result<(), Violation> {
    let mut programs: HashMap<u32, (&str, HashSet<&str>)> = HashMap::new();
    for (id, kernel) in plan.kernels.iter().enumerate() {
        if kernel.source as usize >= plan.sources.len() {
            return Err(Violation::NoSuch {
                by: format!("kernel {id} {:?}", kernel.entry),
                what: "source",
                id: kernel.source,
                count: plan.sources.len(),
            });
        }
        let program = programs.entry(kernel.program);
        let (options, entries) = program.or_insert((&kernel.options, HashSet::new()));
        if *options != kernel.options || !entries.insert(&kernel.entry) {
            return Err(Violation::Program {
                kernel: id,
                entry: kernel.entry.clone(),
                program: kernel.program,
            });
        }
        let half = kernel.half_arithmetic.then_some(HALF_EXTENSION);
        let needed = half.into_iter().chain(kernel.instructions.as_deref());
        let required = |name: &str| plan.requirements.extensions.iter().any(|e| e == name);
        if let Some(extension) = needed.into_iter().find(|name| !required(name)) {
            return Err(Violation::Extension {
                kernel: id,
                entry: kernel.entry.clone(),
                extension: extension.to_string(),
            });
        }
    }
    Ok(())
}

fn check_names(plan: &Plan) -> Result<(), Violation> {
    check_distinct("network", plan.networks.iter().map(|network| &network.name))?;
    for network in &plan.networks {
        check_distinct("input", network.inputs.iter().map(|input| &input.port.name))?;
        check_distinct("output", network.outputs.iter().map(|port| &port.name))?;
    }
    Ok(())
}

fn check_distinct<'a>(
    what: &'static str,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), Violation> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Violation::Duplicate { what, name: name.clone() });
        }
    }
    Ok(())
}

/// The half-open interval of global time of each network.
pub(super) fn spans(plan: &Plan) -> Result<Vec<(u32, u32)>, Violation> {
    let mut spans = Vec::with_capacity(plan.networks.len());
    let mut lower = 0u32;
    for network in &plan.networks {
        if network.steps.is_empty() {
            return Err(Violation::EmptyNetwork { network: network.name.clone() });
        }
        let instant_count = u64::from(lower) + network.steps.len() as u64;
        let upper = u32::try_from(instant_count).map_err(|_| Violation::Time { instant_count })?;
        spans.push((lower, upper));
        lower = upper;
    }
    Ok(spans)
}
