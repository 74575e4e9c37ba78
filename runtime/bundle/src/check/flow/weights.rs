//! Weights on the timeline: streamed blocks in their slots, and reads of blocks by launches.

use super::{Flow, Violation, block_at, buffer_at, is_inside};
use crate::plan::{BlockId, Residency, SlotId};

impl Flow<'_> {
    pub(super) fn load(&mut self, block: BlockId, slot: SlotId) -> Result<(), Violation> {
        let len_bytes = self.streamed_len_bytes(block)?;
        let slots = &self.plan.memory.slot_bytes;
        let Some(&slot_bytes) = slots.get(slot.index()) else {
            let by = self.place().to_string();
            return Err(Violation::NoSuch { by, what: "slot", id: slot.0, count: slots.len() });
        };
        let (place, block_at_) = (|| self.place(), || block_at(self.plan, block));
        if len_bytes > slot_bytes {
            let (place, block) = (place(), block_at_());
            return Err(Violation::SlotTooSmall { place, block, slot: slot.0, slot_bytes });
        }
        if let Some(slot) = self.slot_of.get(&block) {
            let (place, block) = (place(), block_at_());
            return Err(Violation::LoadedTwice { place, block, slot: slot.0 });
        }
        if let Some(&holds) = self.slots.get(&slot) {
            let (place, block) = (place(), block_at_());
            let holds = block_at(self.plan, holds);
            return Err(Violation::SlotTaken { place, block, slot: slot.0, holds });
        }
        self.slots.insert(slot, block);
        self.slot_of.insert(block, slot);
        Ok(())
    }

    pub(super) fn free(&mut self, block: BlockId) -> Result<(), Violation> {
        self.streamed_len_bytes(block)?;
        match self.slot_of.remove(&block) {
            Some(slot) => {
                self.slots.remove(&slot);
                Ok(())
            }
            None => Err(self.not_loaded(block)),
        }
    }

    pub(super) fn read_weight(
        &self,
        id: BlockId,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(), Violation> {
        let Some(block) = self.plan.blocks.get(id.index()) else {
            return Err(self.no_such_block(id));
        };
        if !is_inside(offset_bytes, len_bytes, block.len_bytes) {
            let (by, of) = (self.place().to_string(), block_at(self.plan, id).to_string());
            return Err(Violation::Region { by, offset_bytes, len_bytes, of });
        }
        match block.residency {
            Residency::Streamed if !self.slot_of.contains_key(&id) => Err(self.not_loaded(id)),
            Residency::Resident(buffer) if !self.lives_through(buffer) => {
                Err(Violation::ResidentNotLive {
                    place: self.place(),
                    block: block_at(self.plan, id),
                    buffer: buffer_at(self.plan, buffer),
                    span: self.span,
                })
            }
            Residency::Streamed | Residency::Resident(_) => Ok(()),
        }
    }

    fn streamed_len_bytes(&self, id: BlockId) -> Result<u64, Violation> {
        match self.plan.blocks.get(id.index()) {
            None => Err(self.no_such_block(id)),
            Some(block) if block.residency == Residency::Streamed => Ok(block.len_bytes),
            Some(_) => {
                let (place, block) = (self.place(), block_at(self.plan, id));
                Err(Violation::NotStreamed { place, block })
            }
        }
    }

    fn no_such_block(&self, id: BlockId) -> Violation {
        let (by, count) = (self.place().to_string(), self.plan.blocks.len());
        Violation::NoSuch { by, what: "block", id: id.0, count }
    }

    fn not_loaded(&self, id: BlockId) -> Violation {
        Violation::NotLoaded { place: self.place(), block: block_at(self.plan, id) }
    }
}
