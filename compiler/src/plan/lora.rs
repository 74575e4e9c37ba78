//! Room for LoRAs at run time: the weights that they change, each with the kernel that changes it.

use anyhow::{Result, bail};
use kiln_bundle::plan::{BlockId, BufferId, DownOrder, KernelId, Layer, LoraRoom};
use kiln_ir::{NodeKind, WeightExpr};
use kiln_kernels::merge::Merge;
use kiln_kernels::{Launch, Packing};

use super::blocks::{BlockDraft, Blocks, Piece};
use super::lower::LoweredNetwork;
use crate::storage::weight_indices;

/// Beginnings of the names of tensors that LoRAs change.
const PREFIXES: [&str; 2] = ["model.diffusion_model.", "cond_stage_model."];

/// The room of a plan with a buffer for factors.
///
/// `kernel` enters a launch's kernel in the plan.
/// Errors: a weight cannot be changed, as kernels of the device read it in another order.
pub fn room(
    networks: &[LoweredNetwork],
    blocks: &Blocks,
    factors: BufferId,
    mut kernel: impl FnMut(&Launch) -> KernelId,
) -> Result<LoraRoom> {
    let mut layers = Vec::new();
    for (block, draft) in blocks.drafts.iter().enumerate() {
        for piece in &draft.pieces {
            layers.extend(layer(networks, (block, draft), piece, &mut kernel)?);
        }
    }
    Ok(LoraRoom { factors: Some(factors), layers })
}

fn layer(
    networks: &[LoweredNetwork],
    (block, draft): (usize, &BlockDraft),
    piece: &Piece,
    kernel: &mut impl FnMut(&Launch) -> KernelId,
) -> Result<Option<Layer>> {
    let network = &networks[draft.network];
    let (graph, op) = (&network.source.graph, &network.ops[piece.op]);
    if !weight_indices(graph, op.id).contains(&piece.input) {
        return Ok(None);
    }
    let node = graph.node(graph.operands(op.id)[piece.input]);
    let NodeKind::Weight(expr) = &node.kind else { return Ok(None) };
    let Some(tensors) = tensors(expr) else { return Ok(None) };
    let packing = op.packing(piece.input);
    let merge = Merge::of(packing, &node.ty.shape)?.filter(|merge| {
        let is_whole = |bytes: u64| bytes.is_multiple_of(merge.panel_bytes);
        is_whole(piece.offset_bytes) && is_whole(piece.len_bytes)
    });
    let Some(merge) = merge else {
        bail!(
            "--lora-memory: the kernels of this device read {} in an order that a run cannot \
             change ({packing:?}); merge LoRAs with --lora",
            tensors[0].0
        )
    };
    let first = piece.offset_bytes / merge.panel_bytes;
    let count = piece.len_bytes / merge.panel_bytes;
    let global = match packing {
        Packing::QuantizedPanels { .. } => [merge.global[0], merge.global[1], count],
        _ => [merge.global[0], count, 1],
    };
    let gated = matches!(merge.up, Packing::Panels { gated: true, .. });
    let launch = Launch::new(merge.source, merge.entry, vec![], global, None);
    Ok(Some(Layer {
        block: BlockId(block as u32),
        offset_bytes: piece.at_bytes,
        len_bytes: piece.len_bytes,
        kernel: kernel(&launch),
        global,
        k: merge.k as u32,
        panels: (first as u32, count as u32),
        width: merge.width as u32,
        gated,
        order: match merge.down {
            Packing::RowMajor(_) => DownOrder::Rows,
            Packing::Winograd { outputs, .. } => DownOrder::Winograd(outputs as u8),
            _ => DownOrder::Taps,
        },
        shape: node.ty.shape.iter().map(|d| *d as u32).collect(),
        tensors,
    }))
}

/// The tensors of a constant that is one of them, or several one below the other. `None` for
/// others, and for those that LoRAs do not change.
fn tensors(expr: &WeightExpr) -> Option<Vec<(String, Vec<u32>)>> {
    let one = |expr: &WeightExpr| match expr {
        WeightExpr::Tensor { key, shape } if PREFIXES.iter().any(|p| key.starts_with(p)) => {
            Some((key.clone(), shape.iter().map(|d| *d as u32).collect()))
        }
        _ => None,
    };
    match expr {
        WeightExpr::Concat(parts) => parts.iter().map(one).collect(),
        other => one(other).map(|tensor| vec![tensor]),
    }
}
