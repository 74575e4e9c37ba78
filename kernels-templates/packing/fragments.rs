//! Weights in the order in which the lanes of a warp hold them for `mma.sync`.

use kiln_ir::DType;

use super::{encode, panel_count};
use crate::quantize;

/// `[ceil(N / width)]` panels of `[block of c][ky][kx][steps][width / 16 pairs][32 lanes]`, then a
/// lane's elements of one step of 16 K indices and one pair of 8 columns each. Missing elements are
/// zero.
///
/// ```text
///              a block    a lane's elements, lane = 4 g + t
///   half       2 steps    k = 2t, 2t+1, 2t+8, 2t+9 of a column, then of another
///   otherwise  1 step     k = t, t+4, t+8, t+12 of a column, then of another
/// ```
///
/// Lane `4 g + t` multiplies columns `4 (g / 2) + g % 2` and 2 more of the 16 of its pair. It then
/// gets the sums of columns `4 t` to `4 t + 3`. INT8 weights follow their scales,
/// `[K / scale_group][width]` in `f32`, columns in order.
///
/// FP32 is stored as the sum of two FP16 numbers, the high parts of all lanes before the low parts.
/// Weights are multiplied by a power of two that brings the largest of a column to 2^14 or a little
/// more. The error is at most 2^-22 of the weight, for weights down to 2^-39 of the largest. The
/// inverses of the powers precede the weights, `[width]` in `f32`.
///
/// A `folded` 3x3 window over a feature map of doubled pixels is four windows of 2x2 over the
/// feature map itself, one for each position `(oy % 2, ox % 2)` of the output, in sequence in a
/// panel. Taps that read the same pixel are added.
///
/// Source: PTX ISA 8, "Matrix fragments for mma.m16n8k16 with floating point type".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Fragments {
    /// Columns of a panel; a multiple of 16, for GEGLU of 32.
    pub width: usize,
    /// Storage type.
    pub dtype: DType,
    /// GEGLU: pairs of value columns alternate with the pairs of their gates.
    pub gated: bool,
    /// Whether the sources are stored in FP16. Otherwise they are in FP32.
    pub half: bool,
    /// INT8: number of K indices that share a scale. Otherwise 0.
    pub scale_group: usize,
    /// Whether the weights are of 3x3 windows over doubled pixels. Not with INT8.
    pub folded: bool,
}

/// Positions in a panel of fragments, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPanel {
    /// Start of the weights, after the scales.
    pub weights_at: usize,
    /// Length of one block of channels for one tap.
    pub step_bytes: usize,
    /// Length of one window: a quarter of the weights if folded, otherwise all.
    pub window_bytes: usize,
    /// Start of the next panel.
    pub len: usize,
}

impl FragmentPanel {
    /// The layout of a panel for `taps` times `channels` K indices, before folding.
    pub fn new(fragments: &Fragments, channels: usize, taps: usize) -> Self {
        let Fragments { width, dtype, scale_group, folded, .. } = *fragments;
        let (windows, taps) = if folded { (4, 4) } else { (1, taps) };
        let scales = match (dtype, scale_group) {
            (DType::F32, _) => 1,
            (_, 0) => 0,
            (_, group) => (channels * taps).div_ceil(group),
        };
        let weights_at = scales * width * 4;
        let step_bytes = fragments.step() * width * dtype.size_bytes() as usize;
        let window_bytes = taps * channels.div_ceil(fragments.step()) * step_bytes;
        Self { weights_at, step_bytes, window_bytes, len: weights_at + windows * window_bytes }
    }
}

impl Fragments {
    /// Number of K indices of a block.
    fn step(&self) -> usize {
        if self.half { 32 } else { 16 }
    }

    fn panel(&self, shape: &[usize]) -> FragmentPanel {
        let (channels, taps) = extents(shape);
        FragmentPanel::new(self, channels, taps)
    }

    /// Bytes of a constant's packed form.
    pub fn size_bytes(&self, shape: &[usize]) -> u64 {
        (panel_count(shape[0], self.width, self.gated) * self.panel(shape).len) as u64
    }

    /// Packs a constant.
    pub fn pack(&self, shape: &[usize], values: &[f32]) -> Vec<u8> {
        let (panel, (channels, taps)) = (self.panel(shape), extents(shape));
        let taps = if self.folded { 4 } else { taps };
        let mut out = vec![0u8; self.size_bytes(shape) as usize];
        let bytes = self.dtype.size_bytes() as usize;
        let mut quantized = vec![0i8; self.scale_group];
        quantize::sums(shape, values, |row, sum| {
            let folded = self.folded.then(|| fold(sum, channels));
            let sum = folded.as_deref().unwrap_or(sum);
            let (index, column) = super::place(row, shape[0], self.width, self.gated);
            let (scales, weights) =
                out[index * panel.len..][..panel.len].split_at_mut(panel.weights_at);
            let mut put = |k: usize, low: bool, value: &[u8]| {
                let (tap, c) = (k / channels, k % channels);
                let block = c / self.step() * taps + tap % taps;
                let at = tap / taps * panel.window_bytes + block * panel.step_bytes;
                let at = at + self.element(c % self.step(), column, low) * value.len();
                weights[at..][..value.len()].copy_from_slice(value);
            };
            if self.dtype == DType::F32 {
                let scale = column_scale(sum);
                scales[column * 4..][..4].copy_from_slice(&(1.0 / scale).to_le_bytes());
                for (k, w) in sum.iter().enumerate() {
                    let high = half::f16::from_f32(w * scale);
                    let low = half::f16::from_f32(w * scale - high.to_f32());
                    put(k, false, &high.to_le_bytes());
                    put(k, true, &low.to_le_bytes());
                }
                return;
            }
            if self.scale_group == 0 {
                let encoded = encode(self.dtype, sum.iter().copied());
                let values = encoded.chunks_exact(bytes).enumerate();
                values.for_each(|(k, value)| put(k, false, value));
                return;
            }
            for (i, part) in sum.chunks(self.scale_group).enumerate() {
                let scale = quantize::quantize(part, &mut quantized);
                let at = (i * self.width + column) * 4;
                scales[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                for (j, q) in quantized[..part.len()].iter().enumerate() {
                    put(i * self.scale_group + j, false, &[*q as u8]);
                }
            }
        });
        out
    }

    /// Index of the element for K index `k` of a block and a column of the panel. For FP32, of its
    /// high or low FP16 part.
    fn element(&self, k: usize, column: usize, low: bool) -> usize {
        let (pair, c) = match (self.gated, self.width / 2) {
            (false, _) => (column / 16, column % 16),
            (true, half) => (column % half / 16 * 2 + column / half, column % half % 16),
        };
        // Column c of 16 is one of the two columns that lanes with this g multiply.
        let (g, second) = (c / 4 * 2 + c % 2, c % 4 / 2);
        let (t, place) =
            if self.half { (k % 8 / 2, k % 16 / 8 * 2 + k % 2) } else { (k % 4, k % 16 / 4) };
        let (parts, part) = if self.dtype == DType::F32 { (2, usize::from(low)) } else { (1, 0) };
        let pair = (k / 16 * (self.width / 16) + pair) * parts + part;
        (pair * 32 + 4 * g + t) * 8 + second * 4 + place
    }
}

/// `[3][3][channels]` as `[2][2]` windows of `[2][2][channels]`. At an even position of the output
/// the first tap reads the previous pixel, the others the pixel itself. At an odd position the last
/// tap reads the next pixel.
fn fold(sum: &[f32], channels: usize) -> Vec<f32> {
    let into = |odd: usize, tap: usize| if odd == 0 { tap.min(1) } else { tap / 2 };
    let mut out = vec![0.0; 16 * channels];
    for window in 0..4 {
        for tap in 0..9 {
            let (y, x) = (into(window / 2, tap / 3), into(window % 2, tap % 3));
            let to = &mut out[(window * 4 + y * 2 + x) * channels..][..channels];
            to.iter_mut().zip(&sum[tap * channels..]).for_each(|(out, w)| *out += w);
        }
    }
    out
}

/// The power of two that brings the largest magnitude to 2^14 or a little more.
fn column_scale(sum: &[f32]) -> f32 {
    let largest = sum.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    let exponent = (largest.to_bits() >> 23) as i32 - 127;
    2.0f32.powi((14 - exponent).clamp(-100, 100))
}

/// Channels and taps of a constant.
fn extents(shape: &[usize]) -> (usize, usize) {
    (shape[1], shape[2..].iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lane and its element that the instruction multiplies with column `n` of 8 at K index
    /// `k`, by the tables of the PTX ISA. Rows of B may have any order of K that A shares: for FP32
    /// sources, lane t holds K indices t, t + 4, ...
    fn holder(half: bool, k: usize, n: usize) -> (usize, usize) {
        let row = if half { k } else { k % 4 * 2 + k / 4 % 2 + k / 8 * 8 };
        // b0, b1: rows (lane % 4) * 2 + i, of b2, b3 8 more; column lane / 4.
        (0..32)
            .flat_map(|lane| (0..4).map(move |i| (lane, i)))
            .find(|(l, i)| (l % 4) * 2 + (i & 1) + (i / 2) * 8 == row && l / 4 == n)
            .expect("some lane holds it")
    }

    /// Column of 16 whose sums lane `4 g + t` gets as accumulators 2 t, 2 t + 1 of instruction
    /// `second`, for its accumulator column `n`.
    fn column(second: usize, n: usize) -> usize {
        n / 2 * 4 + second * 2 + n % 2
    }

    #[test]
    fn lanes_find_the_fragments_of_their_columns() {
        for (half, dtype, gated) in
            [(true, DType::F16, false), (false, DType::F32, false), (false, DType::F32, true)]
        {
            let fragments =
                Fragments { width: 64, dtype, gated, half, scale_group: 0, folded: false };
            let (n, channels, steps) = (70, 40, if half { 2 } else { 1 });
            let shape = [if gated { 2 * n } else { n }, channels, 3, 3];
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| (i % 2039) as f32).collect();
            let packed = fragments.pack(&shape, &values);
            assert_eq!(packed.len() as u64, fragments.size_bytes(&shape));
            let read = |at: usize| half::f16::from_le_bytes([packed[at], packed[at + 1]]).to_f32();
            let panel = fragments.panel(&shape);
            let parts = if dtype == DType::F32 { 2 } else { 1 };
            for (row, c, tap) in [(0, 0, 0), (5, 17, 3), (69, 39, 8), (33, 31, 4), (64, 8, 1)] {
                let (out, gate) = (row % n, row / n);
                let stored = if gated { 32 } else { 64 };
                let in_panel = out % stored;
                let pair = if gated { in_panel / 16 * 2 + gate } else { in_panel / 16 };
                let (second, n8) = (0..2)
                    .flat_map(|s| (0..8).map(move |n| (s, n)))
                    .find(|(s, n)| column(*s, *n) == in_panel % 16)
                    .unwrap();
                let (lane, place) = holder(half, c % 16, n8);
                let index = (c % (16 * steps) / 16 * 4 + pair) * parts * 256;
                let begin = out / stored * panel.len;
                let at = panel.weights_at
                    + begin
                    + (c / (16 * steps) * 9 + tap) * panel.step_bytes
                    + (index + lane * 8 + second * 4 + place) * 2;
                let found = match dtype {
                    DType::F32 => {
                        let column = in_panel + gate * 32;
                        let at_scale = begin + column * 4;
                        let scale = &packed[at_scale..at_scale + 4];
                        let scale = f32::from_le_bytes(scale.try_into().unwrap());
                        (read(at) + read(at + 512)) * scale
                    }
                    _ => read(at),
                };
                assert_eq!(found, values[(row * channels + c) * 9 + tap], "{row} {c} {tap}");
            }
        }
    }

    #[test]
    fn scales_stand_before_the_weights() {
        let fragments = Fragments {
            width: 16,
            dtype: DType::I8,
            gated: false,
            half: true,
            scale_group: 32,
            folded: false,
        };
        let shape = [3, 64];
        let values: Vec<f32> =
            (0..192).map(|i| if i % 32 == 0 { 127.0 } else { (i % 50) as f32 }).collect();
        let packed = fragments.pack(&shape, &values);
        let panel = fragments.panel(&shape);
        assert_eq!((panel.weights_at, panel.len), (2 * 16 * 4, 2 * 16 * 4 + 64 * 16));
        for (column, expected) in [(0, 1.0f32), (2, 1.0), (3, 0.0)] {
            for block in 0..2 {
                let at = (block * 16 + column) * 4;
                let scale = f32::from_le_bytes(packed[at..at + 4].try_into().unwrap());
                assert_eq!(scale, expected);
            }
        }
        let sum: i64 = packed[panel.weights_at..].iter().map(|b| i64::from(*b as i8)).sum();
        assert_eq!(sum as f32, values.iter().sum::<f32>());
    }
}
