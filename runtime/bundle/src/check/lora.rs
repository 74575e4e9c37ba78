//! Room for LoRAs: their factors' buffer, and the weights that they change.

use super::violation::{Violation, buffer_at};
use crate::plan::{Layer, Plan};

/// Checks the buffer of factors and every layer.
///
/// Requires: buffers and blocks are checked.
pub(super) fn check(plan: &Plan, instant_count: u32) -> Result<(), Violation> {
    let room = &plan.lora;
    let no_such = |what, id: u32, count| {
        Err(Violation::NoSuch { by: "the room for LoRAs".into(), what, id, count })
    };
    let Some(factors) = room.factors else {
        let count = room.layers.len();
        return if count == 0 { Ok(()) } else { no_such("buffer", 0, 0) };
    };
    let Some(buffer) = plan.buffers.get(factors.index()) else {
        return no_such("buffer", factors.0, plan.buffers.len());
    };
    if (buffer.lower, buffer.upper) != (0, instant_count) {
        return Err(Violation::Factors { buffer: buffer_at(plan, factors) });
    }
    room.layers.iter().try_for_each(|layer| {
        if layer.kernel.index() >= plan.kernels.len() {
            return no_such("kernel", layer.kernel.0, plan.kernels.len());
        }
        check_layer(plan, layer)
    })
}

fn check_layer(plan: &Plan, layer: &Layer) -> Result<(), Violation> {
    let what = || match layer.tensors.first() {
        Some((name, _)) => format!("the weight {name} for LoRAs"),
        None => "a weight for LoRAs".into(),
    };
    let Some(block) = plan.blocks.get(layer.block.index()) else {
        let (id, count) = (layer.block.0, plan.blocks.len());
        return Err(Violation::NoSuch { by: what(), what: "block", id, count });
    };
    let align_bytes = plan.requirements.base_align_bytes;
    if !layer.offset_bytes.is_multiple_of(align_bytes) {
        return Err(Violation::Misaligned { what: what(), align_bytes });
    }
    let is_empty = layer.len_bytes == 0 || layer.k == 0 || layer.panels.1 == 0 || layer.width == 0;
    if is_empty || layer.global.contains(&0) {
        return Err(Violation::Empty { what: what() });
    }
    let end_bytes = layer.offset_bytes.checked_add(layer.len_bytes);
    if end_bytes.is_none_or(|end_bytes| end_bytes > block.len_bytes) {
        let (within, within_bytes) = ("its block", block.len_bytes);
        return Err(Violation::Outside { what: what(), within, within_bytes });
    }
    Ok(())
}
