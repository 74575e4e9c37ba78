//! The rules, each as the way to break it.

use std::fmt;

use thiserror::Error;

use crate::plan::{
    BlockId, BufferId, BufferKind, ElementType, Feed, Input, Network, Plan, Port, Role, Slice, Step,
};

/// A buffer as a violation shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BufferAt {
    /// Which buffer.
    pub id: BufferId,
    /// Its name.
    pub name: String,
    /// Its offset in the arena.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// Its life.
    pub life: (u32, u32),
}

impl fmt::Display for BufferAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BufferAt { id, name, offset_bytes, len_bytes, life: (lower, upper) } = self;
        let id = id.0;
        write!(f, "buffer {id} {name:?} ({len_bytes} bytes at {offset_bytes}, ")?;
        write!(f, "live in [{lower}, {upper}))")
    }
}

/// A weight block as a violation shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockAt {
    /// Which block.
    pub id: BlockId,
    /// Its name.
    pub name: String,
    /// Its offset in the weights section.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

impl fmt::Display for BlockAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BlockAt { id, name, offset_bytes, len_bytes } = self;
        write!(f, "block {} {name:?} ({len_bytes} bytes at {offset_bytes})", id.0)
    }
}

/// A step as a violation shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The network's name.
    pub network: String,
    /// The instant in global time.
    pub instant: u32,
    /// The step's kind or the name of its op.
    pub step: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { network, instant, step } = self;
        write!(f, "{step:?} (network {network:?}, instant {instant})")
    }
}

/// The rule that a plan breaks, and where.
///
/// Regions and lives are half-open intervals.
#[derive(Clone, PartialEq, Debug, Error)]
#[non_exhaustive]
pub enum Violation {
    /// The parts add up to more than the user allowed.
    #[error("the planned peak of {peak_bytes} bytes exceeds the budget of {budget_bytes} bytes")]
    Budget {
        /// The sum.
        peak_bytes: u128,
        /// What is allowed.
        budget_bytes: u64,
    },
    /// One allocation is larger than the requirements say.
    #[error("{what} of {len_bytes} bytes exceeds the largest allocation of {max_bytes} bytes")]
    Allocation {
        /// The arena or a slot.
        what: String,
        /// Its length.
        len_bytes: u64,
        /// [`Requirements::max_alloc_bytes`](crate::plan::Requirements::max_alloc_bytes).
        max_bytes: u64,
    },
    /// Offsets cannot be multiples of this.
    #[error("the base alignment of {align_bytes} bytes is not a power of two")]
    BaseAlignment {
        /// [`Requirements::base_align_bytes`](crate::plan::Requirements::base_align_bytes).
        align_bytes: u64,
    },
    /// The timeline is longer than 32 bits count.
    #[error("{instant_count} steps are more than 32 bits count")]
    Time {
        /// Steps of the networks so far.
        instant_count: u64,
    },
    /// A network does nothing.
    #[error("network {network:?} has no steps")]
    EmptyNetwork {
        /// Its name.
        network: String,
    },
    /// Two networks, or two inputs or outputs of one, have the same name or buffer.
    #[error("{what} {name:?} is there twice")]
    Duplicate {
        /// Network, input, output or input buffer.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An id is beyond the vector it indexes.
    #[error("{by} names {what} {id} of {count}")]
    NoSuch {
        /// Who names it.
        by: String,
        /// What it names.
        what: &'static str,
        /// The id.
        id: u32,
        /// How many there are.
        count: usize,
    },
    /// A buffer or a block has no bytes.
    #[error("{what} has no bytes")]
    Empty {
        /// The buffer or block.
        what: String,
    },
    /// A buffer or a block does not start where its alignment says.
    #[error("{what} is not aligned to {align_bytes} bytes")]
    Misaligned {
        /// The buffer or block.
        what: String,
        /// What its offset must be a multiple of.
        align_bytes: u64,
    },
    /// A buffer leaves the arena, a block the weights.
    #[error("{what} is not inside the {within_bytes} bytes of {within}")]
    Outside {
        /// The buffer or block.
        what: String,
        /// The arena or the weights section.
        within: &'static str,
        /// Its length.
        within_bytes: u64,
    },
    /// The arena's parts do not begin at aligned offsets, or are more than its buffers.
    #[error(
        "an arena of {arena_bytes} bytes cannot be cut into parts of {part_bytes} bytes, aligned \
         to {align_bytes} bytes, with a buffer in each"
    )]
    ArenaParts {
        /// [`MemoryPlan::arena_part_bytes`](crate::plan::MemoryPlan::arena_part_bytes).
        part_bytes: u64,
        /// Length of the arena.
        arena_bytes: u64,
        /// [`Requirements::base_align_bytes`](crate::plan::Requirements::base_align_bytes).
        align_bytes: u64,
    },
    /// A buffer is in two allocations.
    #[error("{buffer} is in two parts of the arena, of {part_bytes} bytes each")]
    AcrossParts {
        /// The buffer.
        buffer: Box<BufferAt>,
        /// [`MemoryPlan::arena_part_bytes`](crate::plan::MemoryPlan::arena_part_bytes).
        part_bytes: u64,
    },
    /// A buffer is never alive or outlives the last step.
    #[error("{buffer} is not live within the {instant_count} instants there are")]
    Life {
        /// The buffer.
        buffer: Box<BufferAt>,
        /// Length of the timeline.
        instant_count: u32,
    },
    /// Two buffers have an address and an instant in common.
    #[error("{first} and {second} overlap")]
    BuffersOverlap {
        /// The one that is live first.
        first: Box<BufferAt>,
        /// The other.
        second: Box<BufferAt>,
    },
    /// The stated lower bound is not the largest sum of live sizes.
    #[error("a lower bound of {stated_bytes} bytes is stated, {found_bytes} bytes found")]
    LowerBound {
        /// What the plan says.
        stated_bytes: u64,
        /// What the buffers say.
        found_bytes: u64,
    },
    /// Two blocks have bytes in common.
    #[error("{first} and {second} overlap")]
    BlocksOverlap {
        /// The one that starts first.
        first: Box<BlockAt>,
        /// The other.
        second: Box<BlockAt>,
    },
    /// A resident block's buffer is too small for it.
    #[error("{block} does not fit into {buffer}")]
    ResidentTooLarge {
        /// The block.
        block: Box<BlockAt>,
        /// Where it should live.
        buffer: Box<BufferAt>,
    },
    /// Two resident blocks live in one buffer.
    #[error("{first} and {second} are both resident in {buffer}")]
    ResidentShared {
        /// One block.
        first: Box<BlockAt>,
        /// The other.
        second: Box<BlockAt>,
        /// Their buffer.
        buffer: Box<BufferAt>,
    },
    /// A buffer of resident weights is not live in all of a network that reads them.
    #[error("{place} reads {block}, but {buffer} is not live in all of [{}, {})", span.0, span.1)]
    ResidentNotLive {
        /// The reader.
        place: Box<Place>,
        /// What it reads.
        block: Box<BlockAt>,
        /// Where that lives.
        buffer: Box<BufferAt>,
        /// The network's interval.
        span: (u32, u32),
    },
    /// A buffer of resident weights is used as if it held an activation.
    #[error("{by} uses {buffer}, which holds the weights of {block}")]
    ResidentUsed {
        /// The step or port.
        by: String,
        /// The buffer.
        buffer: Box<BufferAt>,
        /// Whose weights it holds.
        block: Box<BlockAt>,
    },
    /// A region is empty or leaves its buffer or block.
    #[error("{by} uses [{offset_bytes}, +{len_bytes}) of {of}")]
    Region {
        /// The step or port.
        by: String,
        /// Start of the region.
        offset_bytes: u64,
        /// Its length; the largest number where 64 bits do not hold it.
        len_bytes: u64,
        /// The buffer or block.
        of: String,
    },
    /// A buffer is used while it is not live.
    #[error("{by} uses {buffer} at instant {instant}")]
    NotLive {
        /// The step or port.
        by: String,
        /// The buffer.
        buffer: Box<BufferAt>,
        /// When it is used.
        instant: u32,
    },
    /// A region is read of which nobody wrote a part.
    #[error("{by} reads {buffer}, of which nothing wrote [{}, {})", gap.0, gap.1)]
    NotWritten {
        /// The step or port.
        by: String,
        /// The buffer.
        buffer: Box<BufferAt>,
        /// The first bytes that are missing.
        gap: (u64, u64),
    },
    /// An input of the denoiser is not live in all of the sampler's loop.
    #[error("{by} is {buffer}, not live in all of the loop [{}, {})", span.0, span.1)]
    NotLiveInLoop {
        /// The input.
        by: String,
        /// Its buffer.
        buffer: Box<BufferAt>,
        /// The network's interval.
        span: (u32, u32),
    },
    /// A role is there twice, or stands before one that runs earlier.
    #[error("network {network:?} is the {role:?}, which cannot follow the {before:?}")]
    RoleOrder {
        /// The network.
        network: String,
        /// Its role.
        role: Role,
        /// The role of the network before it.
        before: Role,
    },
    /// No network has a role without which nothing can be generated.
    #[error("no network is the {role:?}")]
    RoleMissing {
        /// The role.
        role: Role,
    },
    /// A variant of the denoiser that the manifest does not imply.
    #[error("network {network:?} is the {role:?}, of which the manifest says nothing")]
    RoleUnwanted {
        /// The network.
        network: String,
        /// Its role.
        role: Role,
    },
    /// The denoiser's batch holds neither one branch of guidance nor all.
    #[error(
        "a denoiser of {guidance_batch} batch rows runs neither one branch of guidance nor all \
         {guidance_branches}"
    )]
    GuidanceBatch {
        /// [`Manifest::guidance_branches`](crate::plan::Manifest::guidance_branches).
        guidance_branches: u32,
        /// [`Manifest::guidance_batch`](crate::plan::Manifest::guidance_batch).
        guidance_batch: u32,
    },
    /// An input does not fit the value that the host writes.
    #[error("{by} has {len_bytes} bytes of {dtype:?}, not the {feed:?} that a {role:?} is given")]
    Feed {
        /// The input.
        by: String,
        /// The value.
        feed: Feed,
        /// Length of the input; the largest number if 64 bits do not hold it.
        len_bytes: u64,
        /// Its element type.
        dtype: ElementType,
        /// The role of its network.
        role: Role,
    },
    /// The output that the host reads does not fit the value that the role gives.
    #[error("{by} has {len_bytes} bytes of {dtype:?}, not what the host reads of a {role:?}")]
    Output {
        /// The output.
        by: String,
        /// Length of the output; the largest number if 64 bits do not hold it.
        len_bytes: u64,
        /// Its element type.
        dtype: ElementType,
        /// The role of its network.
        role: Role,
    },
    /// An input comes from a network that may not have run before.
    #[error("{by} comes from network {network:?}, which may not have run by then")]
    SourceNotRun {
        /// The input.
        by: String,
        /// The producer.
        network: String,
    },
    /// An input does not fit its slice of an output.
    #[error("{by} cannot be {slice:?} of output {output:?} of network {network:?}")]
    Slice {
        /// The input.
        by: String,
        /// The slice.
        slice: Slice,
        /// The producer.
        network: String,
        /// The producer's output.
        output: String,
    },
    /// An output is not live until an input has taken its value for the last time.
    #[error("{by} comes from {buffer}, which must live until instant {until}")]
    SourceNotLive {
        /// The input.
        by: String,
        /// The output's buffer.
        buffer: Box<BufferAt>,
        /// First instant at which the value is not needed.
        until: u32,
    },
    /// An output is overwritten before an input has taken its value for the last time.
    #[error("{by} writes {buffer}, which {reader} has still to read")]
    Overwritten {
        /// The step or input that writes.
        by: String,
        /// The output's buffer.
        buffer: Box<BufferAt>,
        /// The input that reads.
        reader: String,
    },
    /// A network's lists of resident blocks are not those that its steps and buffers make.
    #[error("network {network:?} {problem} {block}")]
    ResidentList {
        /// The network.
        network: String,
        /// What is wrong with the block.
        problem: &'static str,
        /// The block.
        block: String,
    },
    /// Small constants are streamed.
    #[error("{block} holds small constants, which are always resident")]
    StreamedConstants {
        /// The block.
        block: Box<BlockAt>,
    },
    /// A buffer is not used as its kind says.
    #[error("{buffer} is used as {found:?}, not as {stated:?}")]
    BufferKind {
        /// The buffer.
        buffer: Box<BufferAt>,
        /// What the plan says.
        stated: BufferKind,
        /// What its users say.
        found: BufferKind,
    },
    /// The buffer of the factors of LoRAs is not live all the time.
    #[error("{buffer} holds the factors of LoRAs, and is not live all the time")]
    Factors {
        /// The buffer.
        buffer: Box<BufferAt>,
    },
    /// A resident block is loaded or freed.
    #[error("{place} concerns {block}, which is resident")]
    NotStreamed {
        /// The step.
        place: Box<Place>,
        /// The block.
        block: Box<BlockAt>,
    },
    /// A block is loaded that is in a slot already.
    #[error("{place} loads {block}, which is in slot {slot} already")]
    LoadedTwice {
        /// The step.
        place: Box<Place>,
        /// The block.
        block: Box<BlockAt>,
        /// Where it is.
        slot: u32,
    },
    /// A block is loaded over one that has not been freed.
    #[error("{place} loads {block} into slot {slot}, which still holds {holds}")]
    SlotTaken {
        /// The step.
        place: Box<Place>,
        /// The new block.
        block: Box<BlockAt>,
        /// The slot.
        slot: u32,
        /// The block in it.
        holds: Box<BlockAt>,
    },
    /// A block does not fit into its slot.
    #[error("{place} loads {block} into slot {slot} of {slot_bytes} bytes")]
    SlotTooSmall {
        /// The step.
        place: Box<Place>,
        /// The block.
        block: Box<BlockAt>,
        /// The slot.
        slot: u32,
        /// Its length.
        slot_bytes: u64,
    },
    /// A streamed block is read or freed while it is in no slot.
    #[error("{place} uses {block}, which is not loaded")]
    NotLoaded {
        /// The step.
        place: Box<Place>,
        /// The block.
        block: Box<BlockAt>,
    },
    /// A network ends with a block in a slot.
    #[error("network {network:?} ends with {block} in slot {slot}")]
    NotFreed {
        /// The network.
        network: String,
        /// The block.
        block: Box<BlockAt>,
        /// Where it is.
        slot: u32,
    },
    /// A table is empty or leaves the weights.
    #[error(
        "{place} reads a table of {row_count} rows of {row_bytes} bytes at {table_offset_bytes}, \
         but there are {weights_len_bytes} bytes of weights"
    )]
    Table {
        /// The step.
        place: Box<Place>,
        /// Start of the table.
        table_offset_bytes: u64,
        /// Bytes of a row.
        row_bytes: u64,
        /// Rows.
        row_count: u32,
        /// Length of the weights section.
        weights_len_bytes: u64,
    },
    /// Indices do not come from an `i32` input of the network.
    #[error("{place} takes {index_count} indices from {buffer}, which is no such i32 input")]
    Indices {
        /// The step.
        place: Box<Place>,
        /// The buffer.
        buffer: Box<BufferAt>,
        /// How many.
        index_count: u32,
    },
    /// A launch has no work-items, or a local size that does not divide the global one.
    #[error("{place} launches {global:?} work-items in groups of {local:?}")]
    WorkSize {
        /// The step.
        place: Box<Place>,
        /// Global size.
        global: [u64; 3],
        /// Local size.
        local: Option<[u64; 3]>,
    },
    /// The parts of a launch are not tiles of one size in order, or do not cover its work-items
    /// once.
    #[error(
        "{place} runs {global:?} work-items from {offset:?} on of a launch of {range:?}: its parts \
         must be tiles of one size, in order, and cover it once"
    )]
    Parts {
        /// The step.
        place: Box<Place>,
        /// Global size.
        global: [u64; 3],
        /// First work-item.
        offset: [u64; 3],
        /// Work-items of the launch.
        range: [u64; 3],
    },
    /// A kernel needs an extension that the requirements do not name.
    #[error("kernel {kernel} {entry:?} needs {extension}, which the requirements do not name")]
    Extension {
        /// The kernel's id.
        kernel: usize,
        /// Its entry point.
        entry: String,
        /// What it needs.
        extension: String,
    },
    /// A kernel cannot be built with the kernels before it in its program.
    #[error(
        "program {program} has another kernel {entry:?}, or other options, before kernel {kernel}"
    )]
    Program {
        /// The kernel's id.
        kernel: usize,
        /// Its entry point.
        entry: String,
        /// Its program.
        program: u32,
    },
    /// A launch is predicted to take longer than the requirements say.
    #[error("{place} is predicted to take {predicted_ns} ns, at most {max_ns} ns are allowed")]
    TooLong {
        /// The step.
        place: Box<Place>,
        /// Predicted.
        predicted_ns: u64,
        /// [`Requirements::max_dispatch_ns`](crate::plan::Requirements::max_dispatch_ns).
        max_ns: u64,
    },
    /// A work-group is larger than the requirements say.
    #[error("{place} has work-groups of {local:?}, at most {max} work-items are allowed")]
    WorkGroup {
        /// The step.
        place: Box<Place>,
        /// Local size.
        local: [u64; 3],
        /// [`Requirements::work_group_size`](crate::plan::Requirements::work_group_size).
        max: u64,
    },
}

impl Violation {
    /// Names an input.
    pub(super) fn input(network: &Network, input: &Input) -> String {
        format!("input {:?} of network {:?}", input.port.name, network.name)
    }

    /// Names an output.
    pub(super) fn output(network: &Network, output: &Port) -> String {
        format!("output {:?} of network {:?}", output.name, network.name)
    }
}

/// Length of a port; the largest number if 64 bits do not hold it, which is in no buffer either.
pub(super) fn port_len_bytes(port: &Port) -> u64 {
    let mut dims = port.shape.iter();
    let product = dims.try_fold(port.dtype.size_bytes(), |p, &dim| p.checked_mul(dim.into()));
    product.unwrap_or(u64::MAX)
}

/// Shows a buffer that is in the plan.
pub(super) fn buffer_at(plan: &Plan, id: BufferId) -> Box<BufferAt> {
    let buffer = &plan.buffers[id.index()];
    Box::new(BufferAt {
        id,
        name: buffer.name.clone(),
        offset_bytes: buffer.offset_bytes,
        len_bytes: buffer.len_bytes,
        life: (buffer.lower, buffer.upper),
    })
}

/// Shows a block that is in the plan.
pub(super) fn block_at(plan: &Plan, id: BlockId) -> Box<BlockAt> {
    let block = &plan.blocks[id.index()];
    Box::new(BlockAt {
        id,
        name: block.name.clone(),
        offset_bytes: block.offset_bytes,
        len_bytes: block.len_bytes,
    })
}

/// Shows a step that is in the plan.
pub(super) fn place(plan: &Plan, network: usize, step: usize, instant: u32) -> Box<Place> {
    let network = &plan.networks[network];
    let step = match &network.steps[step] {
        Step::Load { .. } => "load",
        Step::Free { .. } => "free",
        Step::Gather(gather) => &gather.name,
        Step::Dispatch(dispatch) => &dispatch.name,
    };
    Box::new(Place { network: network.name.clone(), instant, step: step.to_owned() })
}
