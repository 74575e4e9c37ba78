//! Walks the timeline once: each region that is read has been written, each block that is read is
//! loaded.
//!
//! When a network begins, only its inputs count as written. Values cross from one network to
//! another by edges alone.

mod weights;

use std::collections::{BTreeMap, HashMap, HashSet};

use super::edges::Edges;
use super::interval_set::IntervalSet;
use super::launch::{self, Begun};
use super::violation::{Place, Violation, block_at, buffer_at, place, port_len_bytes};
use crate::plan::{
    Access, Arg, BlockId, BufferId, Dispatch, ElementType, Gather, Input, Network, Plan, Port,
    ROW_CHECKSUM_BYTES, Slice, SlotId, Source, Step,
};

/// Checks every port and every step.
///
/// Requires: `owners` has one entry a buffer, `spans` one a network.
pub(super) fn check(
    plan: &Plan,
    spans: &[(u32, u32)],
    owners: &[Option<BlockId>],
    edges: &Edges,
    weights_len_bytes: u64,
) -> Result<(), Violation> {
    let mut flow = Flow {
        plan,
        owners,
        edges,
        weights_len_bytes,
        written: vec![],
        index_bytes: HashMap::new(),
        slots: BTreeMap::new(),
        slot_of: HashMap::new(),
        begun: None,
        network: 0,
        span: (0, 0),
        step: 0,
    };
    for (index, (network, &span)) in plan.networks.iter().zip(spans).enumerate() {
        flow.network = index;
        flow.span = span;
        flow.enter(network)?;
        Edges::check_live(plan, spans, index)?;
        for (step_index, step) in network.steps.iter().enumerate() {
            flow.step = step_index;
            flow.run(step)?;
        }
        flow.end_launch()?;
        flow.leave(network)?;
    }
    Ok(())
}

/// The state at an instant.
struct Flow<'a> {
    plan: &'a Plan,
    /// The block that is resident in a buffer.
    owners: &'a [Option<BlockId>],
    edges: &'a Edges,
    weights_len_bytes: u64,
    /// Bytes of each buffer that the current network may read.
    written: Vec<IntervalSet>,
    /// The `i32` inputs that the host writes for the current network, and their lengths.
    index_bytes: HashMap<BufferId, u64>,
    /// The block in each slot, and the slot of each loaded block.
    slots: BTreeMap<SlotId, BlockId>,
    slot_of: HashMap<BlockId, SlotId>,
    /// The split launch of which parts are still to run.
    begun: Option<Begun<'a>>,
    network: usize,
    span: (u32, u32),
    step: usize,
}

/// A region of a buffer.
#[derive(Clone, Copy)]
struct Region {
    buffer: BufferId,
    offset_bytes: u64,
    len_bytes: u64,
}

impl<'a> Flow<'a> {
    fn instant(&self) -> u32 {
        // The span's length is the number of steps: neither cast nor sum overflows.
        self.span.0 + self.step as u32
    }

    fn place(&self) -> Box<Place> {
        place(self.plan, self.network, self.step, self.instant())
    }

    /// Begins a network: its inputs are written, copied, or in place.
    fn enter(&mut self, network: &Network) -> Result<(), Violation> {
        self.index_bytes.clear();
        self.written.clear();
        self.written.resize_with(self.plan.buffers.len(), IntervalSet::default);
        let mut taken = HashSet::new();
        for input in &network.inputs {
            let by = || Violation::input(network, input);
            let region = self.port_region(&input.port, by)?;
            self.check_use(region, self.span.0, by)?;
            if !taken.insert(region.buffer) {
                let name = self.plan.buffers[region.buffer.index()].name.clone();
                return Err(Violation::Duplicate { what: "input buffer", name });
            }
            if network.role.is_denoiser() && !self.lives_through(region.buffer) {
                let (buffer, span) = (buffer_at(self.plan, region.buffer), self.span);
                return Err(Violation::NotLiveInLoop { by: by(), buffer, span });
            }
            self.check_not_held(input, region, by)?;
            self.note_written(region);
            if input.port.dtype == ElementType::I32 && matches!(input.source, Source::Host(_)) {
                self.index_bytes.insert(region.buffer, region.len_bytes);
            }
        }
        Ok(())
    }

    /// An input that is written or copied must not overwrite an output that is still to be read.
    fn check_not_held(
        &self,
        input: &Input,
        region: Region,
        by: impl Fn() -> String,
    ) -> Result<(), Violation> {
        if matches!(input.source, Source::Output { slice: Slice::InPlace, .. }) {
            return Ok(());
        }
        let reader = self.edges.overwritten_by_input(self.network, region.buffer);
        self.overwrites(region, reader, by)
    }

    fn overwrites(
        &self,
        region: Region,
        reader: Option<&str>,
        by: impl Fn() -> String,
    ) -> Result<(), Violation> {
        let Some(reader) = reader else { return Ok(()) };
        let buffer = buffer_at(self.plan, region.buffer);
        Err(Violation::Overwritten { by: by(), buffer, reader: reader.to_owned() })
    }

    /// Ends a network: all slots are free, and its outputs are live and written.
    fn leave(&mut self, network: &Network) -> Result<(), Violation> {
        if let Some((&slot, &block)) = self.slots.first_key_value() {
            return Err(Violation::NotFreed {
                network: network.name.clone(),
                block: block_at(self.plan, block),
                slot: slot.0,
            });
        }
        for port in &network.outputs {
            let by = || Violation::output(network, port);
            let region = self.port_region(port, by)?;
            self.check_use(region, self.span.1 - 1, by)?;
            self.check_written(region, by)?;
        }
        Ok(())
    }

    fn run(&mut self, step: &'a Step) -> Result<(), Violation> {
        if !matches!(step, Step::Dispatch(_)) {
            self.end_launch()?;
        }
        match step {
            &Step::Load { block, slot } => self.load(block, slot),
            Step::Gather(gather) => self.gather(gather),
            Step::Dispatch(dispatch) => self.dispatch(dispatch),
            &Step::Free { block } => self.free(block),
        }
    }

    fn gather(&mut self, gather: &Gather) -> Result<(), Violation> {
        let &Gather { table_offset_bytes, row_bytes, row_count, index_count, .. } = gather;
        let end_bytes = row_bytes
            .checked_add(ROW_CHECKSUM_BYTES)
            .and_then(|stride_bytes| stride_bytes.checked_mul(row_count.into()))
            .filter(|&table_bytes| row_bytes > 0 && table_bytes > 0)
            .and_then(|table_bytes| table_bytes.checked_add(table_offset_bytes));
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.weights_len_bytes) {
            return Err(Violation::Table {
                place: self.place(),
                table_offset_bytes,
                row_bytes,
                row_count,
                weights_len_bytes: self.weights_len_bytes,
            });
        }
        let region = |buffer, len_bytes| Region { buffer, offset_bytes: 0, len_bytes };
        let indices =
            region(gather.indices, u64::from(index_count) * ElementType::I32.size_bytes());
        self.read(indices)?;
        if self.index_bytes.get(&gather.indices).is_none_or(|&bytes| bytes < indices.len_bytes) {
            return Err(Violation::Indices {
                place: self.place(),
                buffer: buffer_at(self.plan, gather.indices),
                index_count,
            });
        }
        // A length that 64 bits do not hold is in no buffer either.
        self.write(region(gather.output, row_bytes.saturating_mul(index_count.into())))
    }

    /// Checks that no part of a launch is missing.
    fn end_launch(&self) -> Result<(), Violation> {
        self.begun.as_ref().map_or(Ok(()), |begun| Err(begun.broken_off(|| self.place())))
    }

    fn dispatch(&mut self, dispatch: &'a Dispatch) -> Result<(), Violation> {
        let count = self.plan.kernels.len();
        if dispatch.kernel.index() >= count {
            let (by, id) = (self.place().to_string(), dispatch.kernel.0);
            return Err(Violation::NoSuch { by, what: "kernel", id, count });
        }
        launch::check(dispatch, &self.plan.requirements, || self.place())?;
        let begun = self.begun.take();
        self.begun = Begun::follow(begun, dispatch, || self.place())?;
        for arg in &dispatch.args {
            match *arg {
                Arg::Buffer { buffer, offset_bytes, len_bytes, access: Access::Read } => {
                    self.read(Region { buffer, offset_bytes, len_bytes })?;
                }
                Arg::Weight { block, offset_bytes, len_bytes } => {
                    self.read_weight(block, offset_bytes, len_bytes)?;
                }
                Arg::Buffer { access: Access::Write, .. } | Arg::U32(_) | Arg::F32(_) => {}
            }
        }
        // After all reads: a launch does not read what it writes itself.
        for arg in &dispatch.args {
            if let Arg::Buffer { buffer, offset_bytes, len_bytes, access: Access::Write } = *arg {
                self.write(Region { buffer, offset_bytes, len_bytes })?;
            }
        }
        Ok(())
    }

    fn read(&self, region: Region) -> Result<(), Violation> {
        let by = || self.place().to_string();
        self.check_use(region, self.instant(), by)?;
        self.check_written(region, by)
    }

    fn write(&mut self, region: Region) -> Result<(), Violation> {
        let by = || self.place().to_string();
        self.check_use(region, self.instant(), by)?;
        let reader = self.edges.overwritten_by_step(self.network, region.buffer);
        self.overwrites(region, reader, by)?;
        self.note_written(region);
        Ok(())
    }

    /// The region of a port. It may exceed its buffer.
    fn port_region(&self, port: &Port, by: impl Fn() -> String) -> Result<Region, Violation> {
        let count = self.plan.buffers.len();
        if port.buffer.index() >= count {
            return Err(Violation::NoSuch { by: by(), what: "buffer", id: port.buffer.0, count });
        }
        Ok(Region { buffer: port.buffer, offset_bytes: 0, len_bytes: port_len_bytes(port) })
    }

    /// Checks that the buffer exists, is live and holds no resident weights, and that the region is
    /// inside of it.
    fn check_use(
        &self,
        region: Region,
        instant: u32,
        by: impl Fn() -> String,
    ) -> Result<(), Violation> {
        let Region { buffer: id, offset_bytes, len_bytes } = region;
        let Some(buffer) = self.plan.buffers.get(id.index()) else {
            let count = self.plan.buffers.len();
            return Err(Violation::NoSuch { by: by(), what: "buffer", id: id.0, count });
        };
        let shown = || buffer_at(self.plan, id);
        if !is_inside(offset_bytes, len_bytes, buffer.len_bytes) {
            let of = shown().to_string();
            return Err(Violation::Region { by: by(), offset_bytes, len_bytes, of });
        }
        if let Some(block) = self.owners[id.index()] {
            let (buffer, block) = (shown(), block_at(self.plan, block));
            return Err(Violation::ResidentUsed { by: by(), buffer, block });
        }
        if !(buffer.lower..buffer.upper).contains(&instant) {
            return Err(Violation::NotLive { by: by(), buffer: shown(), instant });
        }
        Ok(())
    }

    fn check_written(&self, region: Region, by: impl Fn() -> String) -> Result<(), Violation> {
        let Region { buffer, offset_bytes, len_bytes } = region;
        match self.written[buffer.index()].gap(offset_bytes, offset_bytes + len_bytes) {
            None => Ok(()),
            Some(gap) => {
                let buffer = buffer_at(self.plan, buffer);
                Err(Violation::NotWritten { by: by(), buffer, gap })
            }
        }
    }

    fn note_written(&mut self, region: Region) {
        let Region { buffer, offset_bytes, len_bytes } = region;
        self.written[buffer.index()].insert(offset_bytes, offset_bytes + len_bytes);
    }

    fn lives_through(&self, buffer: BufferId) -> bool {
        let buffer = &self.plan.buffers[buffer.index()];
        buffer.lower <= self.span.0 && self.span.1 <= buffer.upper
    }
}

/// Whether a region has bytes, all of them inside a length.
fn is_inside(offset_bytes: u64, len_bytes: u64, within_bytes: u64) -> bool {
    let end_bytes = offset_bytes.checked_add(len_bytes);
    len_bytes > 0 && end_bytes.is_some_and(|end_bytes| end_bytes <= within_bytes)
}
