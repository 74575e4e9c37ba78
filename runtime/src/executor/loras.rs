//! LoRAs at run time: their factors in device memory, and the launches that change weights.
//!
//! A weight is changed in place, each time that its block has been loaded. Resident blocks are
//! loaded once, so that their changes cost nothing in later steps.

use std::sync::Arc;

use kiln_bundle::lora::{self, Change, Lora};
use kiln_bundle::plan::BlockId;

use super::{Executor, LAUNCH, absent};
use crate::binding::{Binding, Parent};
use crate::device::lock_driver;
use crate::error::{At, RuntimeError};
use crate::launch::{Sizes, launch};
use crate::program::set_args;

/// The LoRAs of an executor.
#[derive(Default)]
pub(super) struct Loras {
    /// Each with its strength, and the start of its factors in the buffer, in numbers.
    active: Vec<(Arc<Lora>, f32, u32)>,
    /// Whether the factors are in device memory.
    pub are_written: bool,
}

impl Loras {
    /// The changes of a layer: start of the factors, strength, factors.
    fn of(&self, layer: usize) -> impl Iterator<Item = (u32, f32, Change)> {
        self.active.iter().filter_map(move |(lora, strength, start)| {
            let changes = &lora.head.changes;
            let found =
                changes.binary_search_by_key(&(layer as u32), |change| change.layer).ok()?;
            Some((*start, *strength, *changes.get(found)?))
        })
    }
}

impl Executor {
    /// Sets the LoRAs that change weights, with their strengths. Loaded weights stay as they are.
    ///
    /// Errors: `Lora` if one is for another bundle, or they need more memory than the plan has.
    pub fn set_loras(&mut self, loras: Vec<(Arc<Lora>, f32)>) -> Result<(), RuntimeError> {
        lora::check_all(loras.iter().map(|(lora, _)| &**lora), self.bundle.plan())?;
        let mut start_elems = 0;
        let placed = loras.into_iter().map(|(lora, strength)| {
            let start = start_elems;
            start_elems += lora.factors.len() / 4;
            (lora, strength, start as u32)
        });
        let active = placed.collect();
        self.loras = Loras { active, are_written: false };
        Ok(())
    }

    /// Writes the factors to device memory, and waits for the kernels that read them.
    pub(super) fn begin_loras(&mut self) -> Result<(), RuntimeError> {
        if self.loras.active.is_empty() || self.loras.are_written {
            return Ok(());
        }
        {
            let _driver = lock_driver();
            self.complete_kernels(&mut |_, _| {})?;
        }
        let Some(factors) = self.bundle.plan().lora.factors else { return Ok(()) };
        let offset_bytes = self.offset_of(factors)?;
        for (lora, _, start) in &self.loras.active {
            let at_bytes = offset_bytes + u64::from(*start) * 4;
            if !lora.factors.is_empty() {
                self.memory()?.write(&self.compute, at_bytes, &lora.factors, "a LoRA's factors")?;
            }
        }
        self.loras.are_written = true;
        Ok(())
    }

    /// Changes the weights of a block that has been loaded.
    pub(super) fn merge_loras(&self, block: BlockId, parent: Parent) -> Result<(), RuntimeError> {
        if self.loras.active.is_empty() {
            return Ok(());
        }
        let room = &self.bundle.plan().lora;
        for &(index, weight) in self.bindings.layers_of(block, parent) {
            let layer = room.layers.get(index).ok_or_else(|| absent("layer", index))?;
            let id = layer.kernel.index();
            let kernel = self.kernels.get(id).ok_or_else(|| absent("kernel", id))?;
            for (start, strength, Change { rank, up, down, .. }) in self.loras.of(index) {
                let at = || layer.tensors.first().map_or_else(String::new, |t| t.0.clone());
                let args = [
                    Binding::Region(weight),
                    Binding::Region(self.bindings.factors),
                    Binding::U32(start + up),
                    Binding::U32(start + down),
                    Binding::U32(layer.k),
                    Binding::U32(rank),
                    Binding::F32(strength),
                ];
                set_args(kernel, &args, self.memory()?, &at)?;
                let sizes = Sizes::of([0; 3], layer.global, None);
                launch(&self.compute, kernel, &sizes).at(LAUNCH, at)?;
            }
        }
        Ok(())
    }
}
