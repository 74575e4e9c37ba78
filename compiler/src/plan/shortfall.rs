//! The reason why a budget is too small: the buffers that must be live at once.

use kiln_bundle::plan::MemoryPlan;
use std::fmt;

use super::arena::{ArenaProblem, Buffer, conflict};
use super::lifetime::BufferDraft;
use crate::size::mib;

/// Number of buffers that the message names.
const NAMED: usize = 2;

/// The need of a plan, and its largest parts.
#[derive(Clone, Debug)]
pub struct Shortfall {
    /// Smallest budget for which the plan exists, in bytes.
    pub needs_bytes: u64,
    /// An allocation that the device cannot make under any budget.
    pub allocation: Option<Allocation>,
    /// The largest buffers live at the peak.
    pub live: Vec<(String, u64)>,
    /// Sum of the live buffers at the peak, in bytes.
    pub live_bytes: u64,
    /// Parts of the budget outside the arena: name and bytes.
    pub beside: Vec<(&'static str, u64)>,
}

/// An allocation that exceeds the device's largest.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Contents of the allocation.
    pub what: String,
    /// Length of the allocation.
    pub len_bytes: u64,
    /// The device's largest allocation.
    pub most_bytes: u64,
}

impl Shortfall {
    /// Makes a shortfall of the arena's buffers and the rest of the memory plan.
    pub fn new(needs_bytes: u64, drafts: &[BufferDraft], beside: &MemoryPlan) -> Self {
        let buffers =
            drafts.iter().map(|b| Buffer::new(b.lower, b.upper, b.len_bytes, 1)).collect();
        let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: None };
        let peak = conflict(&problem, problem.lower_bound_bytes().saturating_sub(1));
        let live = peak.iter().flat_map(|c| &c.buffers).take(NAMED);
        Self {
            needs_bytes,
            allocation: None,
            live: live.map(|(i, bytes)| (drafts[*i].name.clone(), *bytes)).collect(),
            live_bytes: peak.map_or(0, |c| c.live_bytes),
            beside: vec![
                ("process and driver", beside.baseline_bytes),
                ("compiled kernels", beside.program_bytes),
                ("weight slots", beside.slot_bytes.iter().sum()),
                ("staging", beside.staging_bytes),
                ("host buffers", beside.host_bytes),
            ],
        }
    }
}

/// What the memory is for: the buffers live at the peak, then the parts beside them.
impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} are live at the peak, the largest ", mib(self.live_bytes))?;
        let live: Vec<_> = self.live.iter().map(|(n, b)| format!("{n} {}", mib(*b))).collect();
        write!(f, "{}; beside them ", live.join(", "))?;
        let beside: Vec<_> = self
            .beside
            .iter()
            .filter(|(_, b)| *b > 0)
            .map(|(n, b)| format!("{n} {}", mib(*b)))
            .collect();
        f.write_str(&beside.join(", "))
    }
}
