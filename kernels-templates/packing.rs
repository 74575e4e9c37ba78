//! The orders in which kernels read constants, and the conversion into them.
//!
//! A constant is given as row-major `f32`, of shape `[N, K]` (linear) or `[N, C, k, k]`
//! (convolution), or of any shape if it is only copied. Constants are packed when the bundle is
//! written, one at a time.

mod fragments;

pub use fragments::{FragmentPanel, Fragments};
use kiln_ir::DType;
use rayon::prelude::*;

use crate::contraction::winograd::Transform;
use crate::quantize;

/// Storage order and element type of a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Packing {
    /// The given order.
    RowMajor(DType),
    /// `[ceil(N / width)][K][width]`, with zeros for columns beyond `N`. A tile of `width` output
    /// columns reads one contiguous run. For a convolution, `K` runs over `[ky][kx][c]`. A bias
    /// `[N]` has `K = 1`.
    Panels {
        /// Output columns of a panel.
        width: usize,
        /// Storage type.
        dtype: DType,
        /// GEGLU: each panel holds `width / 2` value columns and their `width / 2` gate columns.
        gated: bool,
    },
    /// [`Packing::Panels`] in FP16 for vectors of four columns, of which loads take two rows at a
    /// time: `[ceil(N / width)][K / 2][width / 4][2][4]`, for an even `K`.
    PairedPanels {
        /// Output columns of a panel, a multiple of 4.
        width: usize,
        /// GEGLU, as for [`Packing::Panels`].
        gated: bool,
    },
    /// [`Packing::Panels`] of a 3x3 convolution's windows, transformed by [`Transform`]:
    /// `[ceil(N / width)][position in the patch][c][width]`.
    Winograd {
        /// Output pixels of a tile in each direction: 2 or 4.
        outputs: usize,
        /// Output columns of a panel.
        width: usize,
        /// Storage type.
        dtype: DType,
    },
    /// [`Packing::Panels`] in `i8`, each panel after its scales: `[K / scale_group][width]` scales
    /// in `f32`, then `[K][width]` weights in an order, then zeros up to a multiple of 16 bytes.
    QuantizedPanels {
        /// Output columns of a panel.
        width: usize,
        /// Number of K indices that share a scale.
        scale_group: usize,
        /// GEGLU, as for [`Packing::Panels`].
        gated: bool,
        /// Order of the weights of a panel.
        order: Order,
    },
    /// Weights for the tensor cores of NVIDIA GPUs.
    Fragments(Fragments),
}

/// Order of INT8 weights in a panel, by the instructions that multiply them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Order {
    /// `[K][width]`.
    Rows,
    /// `[K / 2][width][2]`, for an even `K`.
    Pairs,
    /// `[K / 4][width][4]`, plus 128 as unsigned bytes, for a `K` that 4 divides.
    UnsignedQuads,
}

impl Order {
    /// Number of K indices of a column that lie side by side.
    pub fn run(self) -> usize {
        match self {
            Order::Rows => 1,
            Order::Pairs => 2,
            Order::UnsignedQuads => 4,
        }
    }

    /// What is added to a weight to store it as a byte.
    pub fn excess(self) -> u8 {
        if self == Order::UnsignedQuads { 128 } else { 0 }
    }

    /// The stored byte of a weight.
    fn byte(self, weight: i8) -> u8 {
        (weight as u8).wrapping_add(self.excess())
    }
}

/// Positions in a panel of INT8 weights, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QuantizedPanel {
    /// Start of the weights, after the scales.
    pub weights_at: usize,
    /// Start of the next panel.
    pub len: usize,
}

impl QuantizedPanel {
    /// The layout of a panel of `width` columns for a reduction axis of `k`.
    pub fn new(k: usize, width: usize, scale_group: usize) -> Self {
        let weights_at = k.div_ceil(scale_group) * width * 4;
        Self { weights_at, len: (weights_at + k * width).next_multiple_of(16) }
    }
}

impl Packing {
    /// Output columns of a panel; none if there are no panels.
    pub fn panel_columns(&self) -> Option<usize> {
        match *self {
            Packing::RowMajor(_) => None,
            Packing::Panels { width, .. }
            | Packing::PairedPanels { width, .. }
            | Packing::Winograd { width, .. }
            | Packing::QuantizedPanels { width, .. }
            | Packing::Fragments(Fragments { width, .. }) => Some(width),
        }
    }

    /// Bytes of a constant's packed form.
    pub fn size_bytes(&self, shape: &[usize]) -> u64 {
        match *self {
            Packing::RowMajor(dtype) => shape.iter().product::<usize>() as u64 * dtype.size_bytes(),
            Packing::Panels { width, dtype, gated } => {
                let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
                (panel_count(n, width, gated) * width * k) as u64 * dtype.size_bytes()
            }
            Packing::PairedPanels { width, gated } => {
                Packing::Panels { width, dtype: DType::F16, gated }.size_bytes(shape)
            }
            Packing::Winograd { outputs, width, dtype } => {
                let shape = transformed(shape, outputs);
                Packing::Panels { width, dtype, gated: false }.size_bytes(&shape)
            }
            Packing::QuantizedPanels { width, scale_group, gated, .. } => {
                let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
                (panel_count(n, width, gated) * QuantizedPanel::new(k, width, scale_group).len)
                    as u64
            }
            Packing::Fragments(fragments) => fragments.size_bytes(shape),
        }
    }

    /// Whether the packed form has more weights than the constant.
    pub fn enlarges(&self) -> bool {
        matches!(self, Packing::Winograd { .. })
    }

    /// Whether a packed form has infinite values: those of the constant are beyond FP16.
    pub fn overflows(&self, packed: &[u8]) -> bool {
        let dtype = match *self {
            Packing::RowMajor(dtype)
            | Packing::Panels { dtype, .. }
            | Packing::Winograd { dtype, .. } => dtype,
            Packing::PairedPanels { .. } => DType::F16,
            Packing::QuantizedPanels { .. } => DType::I8,
            Packing::Fragments(fragments) => fragments.dtype,
        };
        let is_finite = |bytes: &[u8; 2]| half::f16::from_le_bytes(*bytes).is_finite();
        dtype == DType::F16 && !packed.as_chunks().0.iter().all(is_finite)
    }

    /// Packs a constant.
    ///
    /// Panics if `values` does not have `shape`'s element count.
    pub fn pack(&self, shape: &[usize], values: &[f32]) -> Vec<u8> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "element count of {shape:?}");
        match *self {
            Packing::RowMajor(dtype) => encode(dtype, values.iter().copied()),
            Packing::Panels { width, dtype, gated } => {
                let k = shape[1..].iter().product::<usize>();
                panels(shape, width, gated, dtype, |row| values[row * k..][..k].iter().copied())
            }
            Packing::PairedPanels { width, gated } => {
                let panels = Packing::Panels { width, dtype: DType::F16, gated };
                let mut bytes = panels.pack(shape, values);
                bytes.par_chunks_exact_mut(4 * width).for_each(pair);
                bytes
            }
            Packing::Winograd { outputs, width, dtype } => {
                let k = 9 * shape[1];
                let transform = &Transform::of(outputs);
                let windows = |row: usize| values[row * k..][..k].chunks_exact(9);
                panels(&transformed(shape, outputs), width, false, dtype, |row| {
                    windows(row).flat_map(|g| transform.window(g))
                })
            }
            Packing::QuantizedPanels { width, scale_group, gated, order } => {
                quantized_panels(shape, values, width, (scale_group, order), gated)
            }
            Packing::Fragments(fragments) => fragments.pack(shape, values),
        }
    }
}

/// Puts vectors of four halves of two rows in turn.
fn pair(rows: &mut [u8]) {
    const VECTOR_BYTES: usize = 8;
    let copy = rows.to_vec();
    let (first, second) = copy.split_at(copy.len() / 2);
    let vectors = first.chunks(VECTOR_BYTES).zip(second.chunks(VECTOR_BYTES));
    for (place, (a, b)) in rows.chunks_mut(2 * VECTOR_BYTES).zip(vectors) {
        place[..VECTOR_BYTES].copy_from_slice(a);
        place[VECTOR_BYTES..].copy_from_slice(b);
    }
}

/// The shape of transformed windows.
fn transformed(shape: &[usize], outputs: usize) -> [usize; 4] {
    let patch = Transform::of(outputs).patch();
    [shape[0], shape[1], patch, patch]
}

/// Number of panels for `n` output columns.
pub fn panel_count(n: usize, width: usize, gated: bool) -> usize {
    if gated { (n / 2).div_ceil(width / 2) } else { n.div_ceil(width) }
}

/// Panels of a constant in bytes, packed on all processors. `row` gives the rows. No second buffer
/// of this size is allocated.
fn panels<R: Iterator<Item = f32>>(
    shape: &[usize],
    width: usize,
    gated: bool,
    dtype: DType,
    row: impl Fn(usize) -> R + Sync,
) -> Vec<u8> {
    assert!(dtype.is_float(), "integer weights are packed with their scales");
    let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
    let channels = shape.get(1).copied().unwrap_or(1);
    let window = k / channels;
    let bytes = dtype.size_bytes() as usize;
    let mut out = vec![0u8; panel_count(n, width, gated) * width * k * bytes];
    out.par_chunks_mut((width * k * bytes).max(1)).enumerate().for_each(|(panel, out)| {
        for (lane, index) in rows_of(panel, n, width, gated) {
            for (i, value) in row(index).enumerate() {
                let (c, tap) = (i / window, i % window);
                let at = ((tap * channels + c) * width + lane) * bytes;
                match dtype {
                    DType::F16 => {
                        let half = half::f16::from_f32(value);
                        out[at..at + 2].copy_from_slice(&half.to_le_bytes());
                    }
                    _ => out[at..at + 4].copy_from_slice(&value.to_le_bytes()),
                }
            }
        }
    });
    out
}

/// Columns of a panel and the output channels in them.
fn rows_of(
    panel: usize,
    n: usize,
    width: usize,
    gated: bool,
) -> impl Iterator<Item = (usize, usize)> {
    // A gated panel has two runs of channels: values and their gates.
    let (runs, channels) = if gated { (2, n / 2) } else { (1, n) };
    let columns = width / runs;
    (0..width).filter_map(move |lane| {
        let (run, column) = (lane / columns, panel * columns + lane % columns);
        (run < runs && column < channels).then_some((lane, run * channels + column))
    })
}

/// Panel of an output channel, and its column in the panel.
fn place(row: usize, n: usize, width: usize, gated: bool) -> (usize, usize) {
    if gated {
        let (half, column) = (width / 2, row % (n / 2));
        (column / half, column % half + if row < n / 2 { 0 } else { half })
    } else {
        (row / width, row % width)
    }
}

fn quantized_panels(
    shape: &[usize],
    values: &[f32],
    width: usize,
    (scale_group, order): (usize, Order),
    gated: bool,
) -> Vec<u8> {
    let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
    let panel = QuantizedPanel::new(k, width, scale_group);
    let mut out = vec![0u8; panel_count(n, width, gated) * panel.len];
    let mut quantized = vec![0i8; scale_group];
    quantize::sums(shape, values, |row, sum| {
        let (index, lane) = place(row, n, width, gated);
        let panel_bytes = &mut out[index * panel.len..][..panel.len];
        let (scales, weights) = panel_bytes.split_at_mut(panel.weights_at);
        for (i, part) in sum.chunks(scale_group).enumerate() {
            let scale = quantize::quantize(part, &mut quantized);
            scales[(i * width + lane) * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            for (k, q) in (i * scale_group..).zip(&quantized[..part.len()]) {
                let run = order.run();
                weights[(k / run * width + lane) * run + k % run] = order.byte(*q);
            }
        }
    });
    out
}

/// Little-endian bytes of values in a storage type.
///
/// Panics for integer storage types, which need scales.
pub fn encode(dtype: DType, values: impl Iterator<Item = f32>) -> Vec<u8> {
    match dtype {
        DType::F32 => values.flat_map(f32::to_le_bytes).collect(),
        DType::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
        DType::I8 | DType::I32 => unreachable!("integer weights are packed with their scales"),
    }
}
