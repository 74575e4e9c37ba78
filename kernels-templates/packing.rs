//! The order in which kernels read constants, and the conversion into it.
//!
//! A constant comes as row-major `f32`, of shape `[N, K]` (linear) or `[N, C, k, k]`
//! (convolution), or any shape where it is only copied. Packing happens when the bundle is
//! written, one constant at a time.

use kiln_ir::DType;

/// Storage order and element type of a constant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Packing {
    /// As it comes.
    RowMajor(DType),
    /// `[ceil(N / width)][K][width]`, zeros in the places beyond `N`: a tile of `width` output
    /// columns reads one contiguous run. For a convolution `K` runs over `[ky][kx][c]`; a bias
    /// `[N]` has `K = 1`.
    Panels {
        /// Output columns of a panel.
        width: usize,
        /// Storage type.
        dtype: DType,
        /// GEGLU: each panel holds `width / 2` value columns and the `width / 2` gate columns
        /// that belong to them.
        gated: bool,
    },
}

impl Packing {
    /// Bytes of the packed form of a constant of that shape.
    pub fn size_bytes(&self, shape: &[usize]) -> u64 {
        match *self {
            Packing::RowMajor(dtype) => shape.iter().product::<usize>() as u64 * dtype.size_bytes(),
            Packing::Panels { width, dtype, gated } => {
                let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
                (panel_count(n, width, gated) * width * k) as u64 * dtype.size_bytes()
            }
        }
    }

    /// Packs a constant.
    ///
    /// Panics if `values` does not have `shape`'s element count.
    pub fn pack(&self, shape: &[usize], values: &[f32]) -> Vec<u8> {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "element count of {shape:?}");
        match *self {
            Packing::RowMajor(dtype) => encode(dtype, values.iter().copied()),
            Packing::Panels { width, dtype, gated } => {
                encode(dtype, panels(shape, values, width, gated).into_iter())
            }
        }
    }
}

/// Panels that `n` output columns need.
pub fn panel_count(n: usize, width: usize, gated: bool) -> usize {
    if gated { (n / 2).div_ceil(width / 2) } else { n.div_ceil(width) }
}

fn panels(shape: &[usize], values: &[f32], width: usize, gated: bool) -> Vec<f32> {
    let (n, k) = (shape[0], shape[1..].iter().product::<usize>());
    let channels = shape.get(1).copied().unwrap_or(1);
    let window = k / channels;
    let mut out = vec![0.0; panel_count(n, width, gated) * width * k];
    for (row, source) in values.chunks_exact(k).enumerate() {
        let (panel, lane) = if gated {
            let (half, column) = (width / 2, row % (n / 2));
            (column / half, column % half + if row < n / 2 { 0 } else { half })
        } else {
            (row / width, row % width)
        };
        let base = panel * k * width + lane;
        for (i, value) in source.iter().enumerate() {
            let (c, tap) = (i / window, i % window);
            out[base + (tap * channels + c) * width] = *value;
        }
    }
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
