//! Decides whether a plan keeps its promises, without knowing how it was made.
//!
//! The checker shares no code with the planner and trusts nothing in a plan. It stands between a
//! forged bundle and a device, and between a bug in the planner and a wrong image. It holds, in
//! this order:
//!
//! 1. **Sizes** (`sizes`): the parts of the memory plan add up to no more than the budget. No
//!    allocation is larger than the device allows. Kernels with half arithmetic require its
//!    extension. Time is counted in 32 bits. Networks and ports have unique names.
//! 2. **Buffers** (`buffers`): each is aligned, inside one allocation of the arena, and live for at
//!    least one instant. No two share an address at the same instant. The stated lower bound is the
//!    largest sum of live sizes.
//! 3. **Weights** (`blocks`): blocks are aligned, inside the weights section, and disjoint. A
//!    resident block has a buffer of its own that is long enough.
//! 4. **Roles** (`roles`): each role occurs at most once and in order, and none that generation
//!    needs is missing. The denoiser's batch is one branch of guidance or all; with variants, all.
//! 5. **Host values** (`host`): every input that the host writes, and the first output of each
//!    network that it reads (image encoder, text encoder, denoiser, decoder), has the element count
//!    that the manifest implies and a type that the host converts.
//! 6. **Edges** (`edges`): an input that comes from another network fits its slice of an output.
//!    Its producer runs before, and always: never the image encoder, which runs only for an initial
//!    image. The output stays live and is not overwritten until it is read for the last time. If
//!    producer and reader are both in the sampler's loop, no other network of the loop overwrites
//!    it, be it before the producer or after the reader in the plan.
//! 7. **Flow** (`flow`): every region that is read has been written, all of it, by an earlier step
//!    of the network or by an input. Every use falls into the live range of its buffer. Inputs of
//!    a denoiser are live through its network. Streamed blocks are loaded before use, are
//!    not overwritten while in use, and are freed by the end of their network.
//! 8. **Launches** (`launch`, called by `flow`): global and local sizes are ones that a device
//!    accepts. None is predicted to take too long. The parts of a split launch follow one another
//!    and run each work-item once.
//! 9. **Residents** (`residents`): the lists of resident blocks that a network loads and overwrites
//!    are what its steps and buffers imply.
//! 10. **Kinds** (`kinds`): buffers and blocks are used as their kinds say.
//! 11. **LoRAs** (`lora`): the buffer of their factors is live all the time, and each weight that they
//!     change is an aligned region of its block.
//!
//! What a kernel does inside the regions that it is given is not the checker's concern.

mod blocks;
mod buffers;
mod edges;
mod flow;
mod host;
mod interval_set;
mod kinds;
mod launch;
mod lora;
mod residents;
mod roles;
mod sizes;
mod violation;

use crate::plan::Plan;

pub use violation::{BlockAt, BufferAt, Place, Violation};

/// Figures that the checker computes on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Planned peak of the whole process.
    pub peak_bytes: u64,
    /// Largest sum of live buffer sizes.
    pub arena_lower_bound_bytes: u64,
    /// Steps of all networks: the length of the timeline.
    pub instant_count: u32,
}

/// Checks a plan against the length of its weights section.
///
/// Time: `O(n log n)` in the plan's size. Never panics.
/// Errors: the first violation found.
pub fn check(plan: &Plan, weights_len_bytes: u64) -> Result<Checked, Violation> {
    let peak_bytes = sizes::check(plan)?;
    let spans = sizes::spans(plan)?;
    let instant_count = spans.last().map_or(0, |&(_, upper)| upper);
    let arena_lower_bound_bytes = buffers::check(plan, instant_count)?;
    let owners = blocks::check(plan, weights_len_bytes)?;
    roles::check(plan)?;
    host::check(plan)?;
    let edges = edges::Edges::check(plan)?;
    flow::check(plan, &spans, &owners, &edges, weights_len_bytes)?;
    residents::check(plan, &spans)?;
    kinds::check(plan, &owners)?;
    lora::check(plan, instant_count)?;
    Ok(Checked { peak_bytes, arena_lower_bound_bytes, instant_count })
}
