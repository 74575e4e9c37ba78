//! Decides whether a plan keeps its promises, without knowing how it was made.
//!
//! The checker shares no code with the planner and trusts nothing in a plan: it is what stands
//! between a forged bundle and a device, and between a bug in the planner and a wrong picture.
//! It walks the timeline once and holds, in this order:
//!
//! 1. **Sizes** (`sizes`): the parts add up to no more than the budget; no allocation is larger
//!    than the device allows; kernels with half arithmetic require its extension; time is counted in 32 bits; networks and ports have one name each.
//! 2. **Buffers** (`buffers`): aligned, inside the arena, alive for a while; no two share an
//!    address at the same instant; the stated lower bound is the largest sum of live sizes.
//! 3. **Weights** (`blocks`): blocks are aligned, inside the section and disjoint; a resident
//!    block has a buffer to itself that holds it.
//! 4. **Flow** (`flow`): every region that is read has been written, all of it, by an earlier
//!    step or by the host through a port; every use falls into the life of its buffer; what
//!    enters the sampler's loop stays alive through it; streamed weights are loaded before use,
//!    not overwritten while in use, and freed by the end of their network.
//! 5. **Launches** (`launch`): global and local sizes that a device accepts, none predicted to take
//!    too long; the parts of a launch follow one another and run each of its work-items once.
//!
//! What kernels do inside the regions they are given is not the checker's concern.

mod blocks;
mod buffers;
mod edges;
mod flow;
mod interval_set;
mod kinds;
mod launch;
mod residents;
mod roles;
mod sizes;
mod violation;

use crate::plan::Plan;

pub use violation::{BlockAt, BufferAt, Place, Violation};

/// What the checker computed on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Planned peak of the whole process.
    pub peak_bytes: u64,
    /// Largest sum of live buffer sizes.
    pub arena_lower_bound_bytes: u64,
    /// Steps of all networks: the length of the timeline.
    pub instant_count: u32,
}

/// Checks a plan against a weights section of that length.
///
/// Time: in proportion to the plan's size, but for logarithms. Never panics.
/// Errors: the first violation found.
pub fn check(plan: &Plan, weights_len_bytes: u64) -> Result<Checked, Violation> {
    let peak_bytes = sizes::check(plan)?;
    let spans = sizes::spans(plan)?;
    let instant_count = spans.last().map_or(0, |&(_, upper)| upper);
    let arena_lower_bound_bytes = buffers::check(plan, instant_count)?;
    let owners = blocks::check(plan, weights_len_bytes)?;
    roles::check(plan)?;
    let edges = edges::Edges::check(plan)?;
    flow::check(plan, &spans, &owners, &edges, weights_len_bytes)?;
    residents::check(plan, &spans)?;
    kinds::check(plan, &owners)?;
    Ok(Checked { peak_bytes, arena_lower_bound_bytes, instant_count })
}
