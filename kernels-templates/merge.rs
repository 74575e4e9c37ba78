//! Kernels that add a product of few ranks to packed weights, for LoRAs at run time.
//!
//! `W += strength * up * down`, where `up: [N, rank]` and `down: [rank, K]`. Every order of weights
//! is linear in them, so that the kernels read both factors packed like the weights: `up` in their
//! panels, `down` along their K.

use anyhow::Result;
use kiln_ir::DType;

use crate::SourceText;
use crate::packing::{Packing, panel_count};
use crate::template::{Parameters, render};

/// How a packed constant is changed.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The kernel's source.
    pub source: SourceText,
    /// The kernel's name.
    pub entry: &'static str,
    /// Work-items, without those of the panels, which are the last axis in use.
    pub global: [u64; 2],
    /// Order of `up: [N, rank]`.
    pub up: Packing,
    /// Order of `down: [rank, ...]`.
    pub down: Packing,
    /// Numbers of `down` a rank.
    pub k: usize,
    /// Bytes of a panel.
    pub panel_bytes: u64,
    /// Panels of the constant.
    pub panels: usize,
    /// Output columns of a panel.
    pub width: usize,
}

impl Merge {
    /// The change of a constant of some shape. `None` if no kernel knows its order.
    pub fn of(packing: Packing, shape: &[usize]) -> Result<Option<Merge>> {
        let taps = |width, gated| Packing::Panels { width, dtype: DType::F32, gated };
        let parts = match packing {
            Packing::RowMajor(dtype) if dtype.is_float() && shape.len() > 1 => {
                (1, false, Packing::RowMajor(DType::F32), dtype)
            }
            Packing::Panels { width, dtype, gated } => (width, gated, taps(1, false), dtype),
            Packing::PairedPanels { width, gated } => (width, gated, taps(1, false), DType::F16),
            Packing::Winograd { outputs, width, dtype } => {
                (width, false, Packing::Winograd { outputs, width: 1, dtype: DType::F32 }, dtype)
            }
            Packing::QuantizedPanels { width, gated, .. } => {
                (width, gated, taps(1, false), DType::I8)
            }
            _ => return Ok(None),
        };
        let (width, gated, down, dtype) = parts;
        let mut one = shape.to_vec();
        one[0] = 1;
        let k = down.size_bytes(&one) as usize / size_of::<f32>();
        let panels = panel_count(shape[0], width, gated);
        let Some((source, entry, global)) = source(packing, (width, k), dtype)? else {
            return Ok(None);
        };
        let panel_bytes = packing.size_bytes(shape) / panels as u64;
        let up = taps(width, gated);
        Ok(Some(Merge { source, entry, global, up, down, k, panel_bytes, panels, width }))
    }
}

/// Rows of a work-item, which share what they read of `up`.
const ROWS: usize = 4;

/// Vector of floats: the most columns of a panel in one, each `run` times. 0 if there are none.
fn lanes(width: usize, run: usize) -> usize {
    let fits = |lanes: &usize| lanes * run <= 16 && width.is_multiple_of(*lanes);
    [16, 8, 4, 2, 1].into_iter().find(fits).unwrap_or(0)
}

/// Source, name and work-items without those of the panels. `None` if no vector has the columns of a
/// panel.
fn source(
    packing: Packing,
    (width, k): (usize, usize),
    dtype: DType,
) -> Result<Option<(SourceText, &'static str, [u64; 2])>> {
    let of_width = Parameters::new().set("width", &width);
    let Packing::QuantizedPanels { scale_group, order, .. } = packing else {
        let paired = matches!(packing, Packing::PairedPanels { .. });
        let parameters = of_width
            .set("lanes", &if paired { 4 } else { lanes(width, 1) })
            .set("rows", &ROWS)
            .set("paired", &paired);
        let source = render(include_str!("merge/panels.cl.tera"), &[("W", dtype)], &parameters)?;
        return Ok(Some((source, "merge_panels", [k.div_ceil(ROWS) as u64, 1])));
    };
    let run = order.run();
    let lanes = lanes(width, run);
    if lanes * run < 2 || !scale_group.is_multiple_of(run) {
        return Ok(None);
    }
    let parameters = of_width
        .set("scale_group", &scale_group)
        .set("run", &run)
        .set("lanes", &lanes)
        .set("excess", &order.excess());
    let source = render(include_str!("merge/quantized.cl.tera"), &[], &parameters)?;
    let global = [(width / lanes) as u64, k.div_ceil(scale_group) as u64];
    Ok(Some((source, "merge_quantized", global)))
}
