//! Weights in the order in which the lanes of a warp hold them for `mma.sync`.

use kiln_ir::DType;

use super::{encode, panel_count};
use crate::quantize;

/// `[ceil(N / width)]` panels of `[block of c][ky][kx][2 steps][width / 16 pairs][32 lanes]`, a lane's
/// elements of one step and one pair of 8 columns each, zeros in all places beyond.
///
/// ```text
///              step        a block     a lane's elements, lane = 4 g + t
///   half       16 places   2 steps     k = 2t, 2t+1, 2t+8, 2t+9 of a column, then of another
///   otherwise   8 places   2 steps     k = t, t+4 of a column, then of another
/// ```
///
/// Lane `4 g + t` multiplies columns `4 (g / 2) + g % 2` and 2 more of the 16 of its pair, so that it
/// gets the sums of columns `4 t` to `4 t + 3`. INT8 lies behind its scales, `[K / block][width]` in
/// `f32`, columns in order.
///
/// Source: PTX ISA 8, "Matrix fragments for mma.m16n8k16 with floating point type" and
/// "mma.m16n8k8".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Fragments {
    /// Columns of a panel; a multiple of 16, for GEGLU of 32.
    pub width: usize,
    /// Storage type.
    pub dtype: DType,
    /// GEGLU: pairs of value columns alternate with the pairs of their gates.
    pub gated: bool,
    /// For products of FP16 numbers, otherwise of TF32 numbers.
    pub half: bool,
    /// INT8: places of the sum that share a scale. Otherwise 0.
    pub block: usize,
}

/// Where the parts of a panel of fragments begin, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPanel {
    /// Weights behind the scales.
    pub weights_at: usize,
    /// Of one block of channels.
    pub step_bytes: usize,
    /// The next panel.
    pub len: usize,
}

impl FragmentPanel {
    /// A panel for sums over `taps` times `channels` places.
    pub fn new(fragments: &Fragments, channels: usize, taps: usize) -> Self {
        let Fragments { width, dtype, block, .. } = *fragments;
        let scales = if block == 0 { 0 } else { (channels * taps).div_ceil(block) };
        let weights_at = scales * width * 4;
        let step_bytes = fragments.step() * width * dtype.size_bytes() as usize;
        let blocks = taps * channels.div_ceil(fragments.step());
        Self { weights_at, step_bytes, len: weights_at + blocks * step_bytes }
    }
}

impl Fragments {
    /// Places of a block.
    fn step(&self) -> usize {
        if self.half { 32 } else { 16 }
    }

    fn panel(&self, shape: &[usize]) -> FragmentPanel {
        let (channels, taps) = extents(shape);
        FragmentPanel::new(self, channels, taps)
    }

    /// Bytes of the packed form of a constant of that shape.
    pub fn size_bytes(&self, shape: &[usize]) -> u64 {
        (panel_count(shape[0], self.width, self.gated) * self.panel(shape).len) as u64
    }

    /// Packs a constant.
    pub fn pack(&self, shape: &[usize], values: &[f32]) -> Vec<u8> {
        let (panel, (channels, taps)) = (self.panel(shape), extents(shape));
        let mut out = vec![0u8; self.size_bytes(shape) as usize];
        let bytes = self.dtype.size_bytes() as usize;
        let mut quantized = vec![0i8; self.block];
        quantize::sums(shape, values, |row, sum| {
            let (index, column) = super::place(row, shape[0], self.width, self.gated);
            let (scales, weights) =
                out[index * panel.len..][..panel.len].split_at_mut(panel.weights_at);
            let mut put = |k: usize, value: &[u8]| {
                let (tap, c) = (k / channels, k % channels);
                let block = c / self.step() * taps + tap;
                let at = block * self.step() * self.width + self.element(c % self.step(), column);
                weights[at * bytes..][..bytes].copy_from_slice(value);
            };
            if self.block == 0 {
                let encoded = encode(self.dtype, sum.iter().copied());
                encoded.chunks_exact(bytes).enumerate().for_each(|(k, value)| put(k, value));
                return;
            }
            for (i, part) in sum.chunks(self.block).enumerate() {
                let scale = quantize::quantize(part, &mut quantized);
                let at = (i * self.width + column) * 4;
                scales[at..at + 4].copy_from_slice(&scale.to_le_bytes());
                for (j, q) in quantized[..part.len()].iter().enumerate() {
                    put(i * self.block + j, &[*q as u8]);
                }
            }
        });
        out
    }

    /// Where place `k` of a block's sum stands for a column of the panel, in elements.
    fn element(&self, k: usize, column: usize) -> usize {
        let (pair, c) = match (self.gated, self.width / 2) {
            (false, _) => (column / 16, column % 16),
            (true, half) => (column % half / 16 * 2 + column / half, column % half % 16),
        };
        // Column c of 16 is one of the two that lanes with this g multiply.
        let (g, second) = (c / 4 * 2 + c % 2, c % 4 / 2);
        let (step, t, place, places) = if self.half {
            (k / 16, k % 8 / 2, k % 16 / 8 * 2 + k % 2, 4)
        } else {
            (k / 8, k % 4, k % 8 / 4, 2)
        };
        let lane = 4 * g + t;
        ((step * (self.width / 16) + pair) * 32 + lane) * 2 * places + second * places + place
    }
}

/// Channels and taps of a constant.
fn extents(shape: &[usize]) -> (usize, usize) {
    (shape[1], shape[2..].iter().product())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the instruction multiplies with column `n` of 8 at place `k`: the lane and its element,
    /// by the tables of the PTX ISA.
    fn holder(half: bool, k: usize, n: usize) -> (usize, usize) {
        match half {
            // b0, b1: rows (lane % 4) * 2 + i, of b2, b3 8 more; column lane / 4.
            true => (0..32)
                .flat_map(|lane| (0..4).map(move |i| (lane, i)))
                .find(|(l, i)| (l % 4) * 2 + (i & 1) + (i / 2) * 8 == k && l / 4 == n),
            // b0: row lane % 4; b1: 4 more; column lane / 4.
            false => (0..32)
                .flat_map(|lane| (0..2).map(move |i| (lane, i)))
                .find(|(l, i)| l % 4 + i * 4 == k && l / 4 == n),
        }
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
            let fragments = Fragments { width: 64, dtype, gated, half, block: 0 };
            let (n, channels, step) = (70, 40, if half { 16 } else { 8 });
            let shape = [if gated { 2 * n } else { n }, channels, 3, 3];
            let count = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| (i % 2039) as f32).collect();
            let packed = fragments.pack(&shape, &values);
            assert_eq!(packed.len() as u64, fragments.size_bytes(&shape));
            let size = dtype.size_bytes() as usize;
            let read = |at: usize| match dtype {
                DType::F16 => half::f16::from_le_bytes([packed[at], packed[at + 1]]).to_f32(),
                _ => f32::from_le_bytes(packed[at..at + 4].try_into().unwrap()),
            };
            let panel = fragments.panel(&shape);
            let places = if half { 4 } else { 2 };
            for (row, c, tap) in [(0, 0, 0), (5, 17, 3), (69, 39, 8), (33, 31, 4), (64, 8, 1)] {
                let (out, gate) = (row % n, row / n);
                let stored = if gated { 32 } else { 64 };
                let in_panel = out % stored;
                let pair = if gated { in_panel / 16 * 2 + gate } else { in_panel / 16 };
                let (second, n8) = (0..2)
                    .flat_map(|s| (0..8).map(move |n| (s, n)))
                    .find(|(s, n)| column(*s, *n) == in_panel % 16)
                    .unwrap();
                let (lane, place) = holder(half, c % step, n8);
                let index = ((c % (2 * step) / step * 4 + pair) * 32 + lane) * 2 * places;
                let at = out / stored * panel.len
                    + (c / (2 * step) * 9 + tap) * panel.step_bytes
                    + (index + second * places + place) * size;
                assert_eq!(read(at), values[(row * channels + c) * 9 + tap], "{row} {c} {tap}");
            }
        }
    }

    #[test]
    fn scales_stand_before_the_weights() {
        let fragments =
            Fragments { width: 16, dtype: DType::I8, gated: false, half: true, block: 32 };
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
