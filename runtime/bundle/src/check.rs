//! Decides whether a plan keeps its promises, without knowing how it was made.

use thiserror::Error;

use crate::plan::Plan;

/// What the checker computed on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Planned peak of the whole process.
    pub peak_bytes: u64,
}

/// The rule that a plan breaks.
#[derive(Clone, PartialEq, Debug, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The sum of the parts is more than the user allowed.
    #[error("peak of {peak_bytes:?} bytes exceeds the budget of {budget_bytes} bytes")]
    Budget {
        /// The sum; `None` if 64 bits do not hold it.
        peak_bytes: Option<u64>,
        /// What is allowed.
        budget_bytes: u64,
    },
}

/// Checks a plan against a weights section of that length.
pub fn check(plan: &Plan, _weights_len_bytes: u64) -> Result<Checked, Violation> {
    let memory = &plan.memory;
    let parts = [
        memory.arena_bytes,
        memory.staging_bytes,
        memory.host_bytes,
        memory.program_bytes,
        memory.baseline_bytes,
    ];
    let peak_bytes = parts
        .iter()
        .chain(&memory.slot_bytes)
        .try_fold(0u64, |sum, &part_bytes| sum.checked_add(part_bytes));
    match peak_bytes {
        Some(peak_bytes) if peak_bytes <= memory.budget_bytes => Ok(Checked { peak_bytes }),
        _ => Err(Violation::Budget { peak_bytes, budget_bytes: memory.budget_bytes }),
    }
}
