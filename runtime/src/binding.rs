//! Resolves the kernel arguments of a plan to regions of device memory, once, before allocation.
//!
//! Pure: knows the place of every buffer, block and slot, and nothing of OpenCL.

use std::collections::HashMap;
use std::ops::Range;

use kiln_bundle::plan::{Arg, BlockId, BufferId, Network, Plan, Residency, SlotId, Step};

use crate::error::RuntimeError;

/// An allocation that has regions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Parent {
    /// The arena.
    Arena,
    /// A slot of streamed weights.
    Slot(SlotId),
}

/// A region of one allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Region {
    /// The allocation.
    pub parent: Parent,
    /// Start of the region in the allocation.
    pub offset_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// The value of one kernel argument.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Binding {
    /// Index into [`Bindings::regions`].
    Region(u32),
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}

/// The arguments of every launch of a plan.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Bindings {
    /// The regions, without duplicates.
    pub regions: Vec<Region>,
    /// Index of the region with the factors of LoRAs.
    pub factors: u32,
    args: Vec<Binding>,
    ranges: Vec<Vec<Range<u32>>>,
    /// The layers of LoRAs in a block where it is loaded, and their regions.
    layers: HashMap<(BlockId, Parent), Vec<(usize, u32)>>,
}

impl Bindings {
    /// Resolves all arguments of a plan.
    ///
    /// Errors: `Plan` if a launch reads a block that is in no slot, or a region does not start
    /// at a multiple of the plan's base alignment.
    pub fn resolve(plan: &Plan) -> Result<Bindings, RuntimeError> {
        let mut resolver = Resolver { plan, bindings: Bindings::default(), ids: HashMap::new() };
        for network in &plan.networks {
            resolver.network(network)?;
        }
        resolver.layers()?;
        Ok(resolver.bindings)
    }

    /// The weights in a block that LoRAs change, where the block is loaded: indices of layers and of
    /// regions.
    pub fn layers_of(&self, block: BlockId, parent: Parent) -> &[(usize, u32)] {
        self.layers.get(&(block, parent)).map_or(&[], Vec::as_slice)
    }

    /// The arguments of one step. Empty if the step is not a launch.
    pub fn of(&self, network: usize, step: usize) -> &[Binding] {
        let range = self.ranges.get(network).and_then(|steps| steps.get(step));
        let args = range.and_then(|range| self.args.get(range.start as usize..range.end as usize));
        args.unwrap_or_default()
    }
}

struct Resolver<'a> {
    plan: &'a Plan,
    bindings: Bindings,
    ids: HashMap<Region, u32>,
}

impl Resolver<'_> {
    fn network(&mut self, network: &Network) -> Result<(), RuntimeError> {
        let mut slots: HashMap<BlockId, SlotId> = HashMap::new();
        let mut ranges = Vec::with_capacity(network.steps.len());
        for step in &network.steps {
            let start = self.bindings.args.len() as u32;
            match step {
                Step::Load { block, slot } => {
                    slots.insert(*block, *slot);
                }
                Step::Free { block } => {
                    slots.remove(block);
                }
                Step::Gather(_) => {}
                Step::Dispatch(dispatch) => {
                    for arg in &dispatch.args {
                        let place = || format!("{} of {}", dispatch.name, network.name);
                        let binding = self.arg(arg, &slots, place)?;
                        self.bindings.args.push(binding);
                    }
                }
            }
            ranges.push(start..self.bindings.args.len() as u32);
        }
        self.bindings.ranges.push(ranges);
        Ok(())
    }

    fn layers(&mut self) -> Result<(), RuntimeError> {
        let plan = self.plan;
        let Some(factors) = plan.lora.factors else { return Ok(()) };
        let len_bytes = plan.buffers.get(factors.index()).map_or(0, |buffer| buffer.len_bytes);
        let region = self.in_arena(factors, 0, len_bytes)?;
        self.bindings.factors = self.intern(region);
        let loads = plan.networks.iter().flat_map(|network| &network.steps);
        let mut slots: HashMap<BlockId, Vec<SlotId>> = HashMap::new();
        for step in loads {
            if let Step::Load { block, slot } = *step {
                slots.entry(block).or_default().push(slot);
            }
        }
        for (index, layer) in plan.lora.layers.iter().enumerate() {
            let (block, offset_bytes, len_bytes) =
                (layer.block, layer.offset_bytes, layer.len_bytes);
            let regions = match plan.blocks.get(block.index()).map(|entry| entry.residency) {
                Some(Residency::Resident(buffer)) => {
                    vec![self.in_arena(buffer, offset_bytes, len_bytes)?]
                }
                _ => {
                    let mut slots = slots.get(&block).cloned().unwrap_or_default();
                    slots.sort_unstable();
                    slots.dedup();
                    let region =
                        |slot| Region { parent: Parent::Slot(slot), offset_bytes, len_bytes };
                    slots.into_iter().map(region).collect()
                }
            };
            for region in regions {
                let id = self.intern(region);
                self.bindings.layers.entry((block, region.parent)).or_default().push((index, id));
            }
        }
        Ok(())
    }

    fn arg(
        &mut self,
        arg: &Arg,
        slots: &HashMap<BlockId, SlotId>,
        place: impl Fn() -> String,
    ) -> Result<Binding, RuntimeError> {
        let region = match *arg {
            Arg::U32(value) => return Ok(Binding::U32(value)),
            Arg::F32(value) => return Ok(Binding::F32(value)),
            Arg::Buffer { buffer, offset_bytes, len_bytes, .. } => {
                self.in_arena(buffer, offset_bytes, len_bytes)?
            }
            Arg::Weight { block, offset_bytes, len_bytes } => {
                let entry = self.plan.blocks.get(block.index());
                let entry = entry.ok_or_else(|| absent("block", block.index()))?;
                match (entry.residency, slots.get(&block)) {
                    (Residency::Resident(buffer), _) => {
                        self.in_arena(buffer, offset_bytes, len_bytes)?
                    }
                    (Residency::Streamed, Some(&slot)) => {
                        Region { parent: Parent::Slot(slot), offset_bytes, len_bytes }
                    }
                    (Residency::Streamed, None) => {
                        let name = &entry.name;
                        let message = format!("{} reads block {name:?}, not in a slot", place());
                        return Err(RuntimeError::Plan(message));
                    }
                }
            }
        };
        let align_bytes = self.plan.requirements.base_align_bytes.max(1);
        if !region.offset_bytes.is_multiple_of(align_bytes) {
            let Region { parent, offset_bytes, .. } = region;
            let message = format!(
                "{} has an argument at offset {offset_bytes} of {parent:?}, not a multiple of \
                 {align_bytes}",
                place()
            );
            return Err(RuntimeError::Plan(message));
        }
        Ok(Binding::Region(self.intern(region)))
    }

    fn in_arena(
        &self,
        buffer: BufferId,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Region, RuntimeError> {
        let found = self.plan.buffers.get(buffer.index());
        let base_bytes = found.ok_or_else(|| absent("buffer", buffer.index()))?.offset_bytes;
        let offset_bytes = base_bytes.saturating_add(offset_bytes);
        Ok(Region { parent: Parent::Arena, offset_bytes, len_bytes })
    }

    fn intern(&mut self, region: Region) -> u32 {
        let next = self.bindings.regions.len() as u32;
        *self.ids.entry(region).or_insert_with(|| {
            self.bindings.regions.push(region);
            next
        })
    }
}

fn absent(what: &str, index: usize) -> RuntimeError {
    RuntimeError::Plan(format!("there is no {what} {index}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_bundle::plan::Access;

    /// The bundle's test plan with its one launch split at an offset that no device takes.
    fn plan() -> Plan {
        let mut plan = kiln_bundle::testing::plan();
        plan.requirements.base_align_bytes = 4;
        plan
    }

    #[test]
    fn regions_are_shared_and_in_place() {
        let plan = plan();
        let bindings = Bindings::resolve(&plan).unwrap();
        let mut seen = bindings.regions.clone();
        seen.sort_by_key(|r| (format!("{:?}", r.parent), r.offset_bytes, r.len_bytes));
        seen.dedup();
        assert_eq!(seen.len(), bindings.regions.len());
        let encode = bindings.of(0, 2);
        let Binding::Region(first) = encode[0] else { panic!("{encode:?}") };
        let expected = Region {
            parent: Parent::Arena,
            offset_bytes: plan.buffers[1].offset_bytes,
            len_bytes: 128,
        };
        assert_eq!(bindings.regions[first as usize], expected);
        assert!(bindings.of(0, 0).is_empty());
        assert_eq!(bindings.of(1, 0)[2..], [Binding::U32(4), Binding::F32(0.5)]);
    }

    #[test]
    fn a_region_off_the_grid_is_refused_by_name() {
        let mut plan = plan();
        let Step::Dispatch(dispatch) = &mut plan.networks[0].steps[2] else { panic!() };
        let Arg::Buffer { access: Access::Read, offset_bytes, .. } = &mut dispatch.args[0] else {
            panic!()
        };
        *offset_bytes = 2;
        let error = Bindings::resolve(&plan).unwrap_err().to_string();
        assert!(error.contains("encode of text_encoder"), "{error}");
    }

    #[test]
    fn a_block_in_no_slot_is_refused_by_name() {
        let mut plan = plan();
        plan.networks[0].steps[1] = Step::Free { block: BlockId(0) };
        let error = Bindings::resolve(&plan).unwrap_err().to_string();
        assert!(error.contains("not in a slot"), "{error}");
    }
}
