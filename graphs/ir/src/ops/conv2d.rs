//! Two-dimensional convolution, with optional concatenation, upsampling, prologue and epilogue.

use super::epilogue::{Activation, Epilogue, silu};
use super::{expect_eq, expect_inputs};
use crate::error::shape_error;
use crate::parallel::contract;
use crate::{ContractionOperands, IrError, OpDef, Tensor, TensorType};

/// Convolution with a square window over `[N, H, W, C]`.
///
/// Inputs: `sources` feature maps that are read as one, concatenated along channels; with
/// `prologue`, the scales and shifts `[N, 2, C]` of [`super::group_affine::GroupAffine`]; weights
/// `[O, C, k, k]` (C over all sources); then the epilogue's operands. With `upsample` the window
/// slides over the feature map doubled by nearest neighbour. Output `[N, H', W', O]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Conv2d {
    /// Window width and height.
    pub kernel: usize,
    /// Distance of windows in pixels.
    pub stride: usize,
    /// Zeros above and left of the (upsampled) feature map.
    pub padding: usize,
    /// Zeros below and right of the (upsampled) feature map.
    pub padding_end: usize,
    /// Whether the feature map is read doubled in both directions.
    pub upsample: bool,
    /// Number of feature maps that are read as one.
    pub sources: usize,
    /// Function of each element `x` that is read: `activation(x * scale[n, c] + shift[n, c])`, with
    /// `None` or `Silu`. Padding stays zero.
    pub prologue: Option<Activation>,
    /// Operations after the sum.
    pub epilogue: Epilogue,
}

impl Conv2d {
    /// A plain convolution with "same" padding for odd windows.
    pub fn new(kernel: usize, stride: usize) -> Self {
        let epilogue = Epilogue::default();
        let padding = kernel / 2;
        let padding_end = padding;
        let (upsample, sources, prologue) = (false, 1, None);
        Self { kernel, stride, padding, padding_end, upsample, sources, prologue, epilogue }
    }

    /// Height or width with padding, from the height or width of the (upsampled) feature map.
    fn padded(&self, extent: usize) -> usize {
        extent + self.padding + self.padding_end
    }

    /// Indices of the operands.
    pub fn operands(&self) -> ContractionOperands<usize> {
        ContractionOperands::new(self.sources, self.prologue.is_some(), &self.epilogue)
    }

    /// The sources after the prologue. `None` if there is no prologue.
    fn normalized(&self, inputs: &[&Tensor]) -> Option<Vec<Tensor>> {
        let activation = self.prologue?;
        let affine = inputs[self.operands().affine?];
        let c = affine.channels();
        let mut first = 0;
        let source = |x: &&Tensor| {
            let (own, base) = (x.channels(), first);
            first += own;
            let per_picture = x.data.len() / x.shape[0];
            let value = |(i, v): (usize, &f32)| {
                let of_picture = &affine.data[i / per_picture * 2 * c..];
                let at = base + i % own;
                let y = v * of_picture[at] + of_picture[c + at];
                if activation == Activation::Silu { silu(y) } else { y }
            };
            Tensor::new(&x.shape, x.data.iter().enumerate().map(value).collect())
        };
        Some(inputs[..self.sources].iter().map(source).collect())
    }

    /// Height and width of the feature map that the window slides over.
    pub fn window_extent(&self, h: usize, w: usize) -> (usize, usize) {
        let f = if self.upsample { 2 } else { 1 };
        (h * f, w * f)
    }
}

impl OpDef for Conv2d {
    const NAME: &'static str = "conv2d";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let operands = self.operands();
        expect_inputs(Self::NAME, inputs, operands.count())?;
        let picture = |t: &TensorType| {
            t.nhwc().ok_or_else(|| shape_error(Self::NAME, format!("{t} is not [N,H,W,C]")))
        };
        let [n, h, w, mut c] = picture(inputs[0])?;
        for extra in &inputs[1..self.sources] {
            let [n1, h1, w1, c1] = picture(extra)?;
            expect_eq(Self::NAME, "batch of a further source", n1, n)?;
            expect_eq(Self::NAME, "height of a further source", h1, h)?;
            expect_eq(Self::NAME, "width of a further source", w1, w)?;
            c += c1;
        }
        if let (Some(activation), Some(affine)) = (self.prologue, operands.affine) {
            if !matches!(activation, Activation::None | Activation::Silu) {
                let what = format!("prologue {activation:?} is neither None nor Silu");
                return Err(shape_error(Self::NAME, what));
            }
            let affine = inputs[affine];
            if affine.shape != [n, 2, c] {
                let what = format!("scales and shifts {affine} are not [{n},2,{c}]");
                return Err(shape_error(Self::NAME, what));
            }
        }
        let [o, wc, kh, kw] = picture(inputs[operands.weights])?;
        expect_eq(Self::NAME, "input channels of the weights", wc, c)?;
        expect_eq(Self::NAME, "window height of the weights", kh, self.kernel)?;
        expect_eq(Self::NAME, "window width of the weights", kw, self.kernel)?;
        let (eh, ew) = self.window_extent(h, w);
        let (ph, pw) = (self.padded(eh), self.padded(ew));
        if ph < self.kernel || pw < self.kernel || self.stride == 0 {
            return Err(shape_error(
                Self::NAME,
                format!("window {0}x{0} over {ph}x{pw}", self.kernel),
            ));
        }
        let (oh, ow) = ((ph - self.kernel) / self.stride + 1, (pw - self.kernel) / self.stride + 1);
        let out = TensorType::new(inputs[0].dtype, &[n, oh, ow, self.epilogue.out_channels(o)]);
        self.epilogue.check(Self::NAME, inputs, &operands, o, &out)?;
        Ok(out)
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        2 * output.rows() as u64 * inputs[self.operands().weights].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let normalized = self.normalized(inputs);
        let x: Vec<&Tensor> = match &normalized {
            Some(x) => x.iter().collect(),
            None => inputs[..self.sources].to_vec(),
        };
        let operands = self.operands();
        let weights = inputs[operands.weights];
        let (n, h, w) = (x[0].shape[0], x[0].shape[1], x[0].shape[2]);
        let (o, c, k) = (weights.shape[0], weights.shape[1], self.kernel);
        let (eh, ew) = self.window_extent(h, w);
        let oh = (self.padded(eh) - k) / self.stride + 1;
        let ow = (self.padded(ew) - k) / self.stride + 1;
        let f = eh / h;
        let filters = taps_outermost(&weights.data, c, k * k);
        let acc = contract(n * oh * ow, o, &filters, |r, window| {
            let (b, oy, ox) = (r / (oh * ow), r / ow % oh, r % ow);
            for (tap, pixel) in window.chunks_exact_mut(c).enumerate() {
                let y = (oy * self.stride + tap / k).wrapping_sub(self.padding);
                let xx = (ox * self.stride + tap % k).wrapping_sub(self.padding);
                if y >= eh || xx >= ew {
                    continue;
                }
                let mut start = 0;
                for source in &x {
                    let part = source.row((b * h + y / f) * w + xx / f);
                    pixel[start..start + part.len()].copy_from_slice(part);
                    start += part.len();
                }
            }
        });
        let out = self.epilogue.apply(acc, o, inputs, &operands);
        Tensor::new(&[n, oh, ow, self.epilogue.out_channels(o)], out)
    }

    fn attributes(&self) -> String {
        let mut s =
            format!("kernel={} stride={} padding={}", self.kernel, self.stride, self.padding);
        if self.padding_end != self.padding {
            s += &format!(" padding_end={}", self.padding_end);
        }
        if self.upsample {
            s += " upsample";
        }
        if self.sources > 1 {
            s += &format!(" sources={}", self.sources);
        }
        match self.prologue {
            Some(Activation::None) => s += " normalized",
            Some(act) => s += &format!(" normalized={act:?}").to_lowercase(),
            None => {}
        }
        s + &self.epilogue.attributes()
    }
}

/// Reorders `[O, C, taps]` to `[O, taps, C]`, so that a window is gathered one pixel at a time.
fn taps_outermost(weights: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    let filter = |f: &[f32]| -> Vec<f32> {
        (0..taps * channels).map(|i| f[i % channels * taps + i / channels]).collect()
    };
    weights.chunks_exact(channels * taps).flat_map(filter).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    fn picture() -> Tensor {
        Tensor::new(&[1, 3, 3, 1], (1..10).map(|v| v as f32).collect())
    }

    #[test]
    fn same_padding_reads_zeros_outside() {
        let w = Tensor::new(&[1, 1, 3, 3], vec![1.0; 9]);
        let expected = [12., 21., 16., 27., 45., 33., 24., 39., 28.];
        assert_eval(&Conv2d::new(3, 1), &[&picture(), &w], &[1, 3, 3, 1], &expected);
    }

    #[test]
    fn stride_and_tap_order() {
        let w = Tensor::new(&[1, 1, 3, 3], vec![0., 0., 0., 0., 1., 10., 0., 100., 0.]);
        let expected = [421., 603., 87., 9.];
        assert_eval(&Conv2d::new(3, 2), &[&picture(), &w], &[1, 2, 2, 1], &expected);
    }

    #[test]
    fn zeros_at_the_end_only() {
        let w = Tensor::new(&[1, 1, 3, 3], vec![1., 0., 0., 0., 0., 0., 0., 0., 10.]);
        let op = Conv2d { padding: 0, padding_end: 1, ..Conv2d::new(3, 2) };
        let picture = Tensor::new(&[1, 4, 4, 1], (1..17).map(|v| v as f32).collect());
        assert_eval(&op, &[&picture, &w], &[1, 2, 2, 1], &[111., 3., 9., 11.]);
        assert_eq!(op.attributes(), "kernel=3 stride=2 padding=0 padding_end=1");
    }

    #[test]
    fn two_sources_upsampled() {
        let a = Tensor::new(&[1, 1, 2, 1], vec![1., 2.]);
        let b = Tensor::new(&[1, 1, 2, 1], vec![10., 20.]);
        let w = Tensor::new(&[1, 2, 1, 1], vec![1., 2.]);
        let op = Conv2d { upsample: true, sources: 2, ..Conv2d::new(1, 1) };
        let row = [21., 21., 42., 42.];
        assert_eval(&op, &[&a, &b, &w], &[1, 2, 4, 1], &[row, row].concat());
    }

    #[test]
    fn what_is_read_is_normalized_and_zeros_outside_stay_zeros() {
        let a = Tensor::new(&[2, 1, 2, 1], vec![1., 2., 3., 4.]);
        let b = Tensor::new(&[2, 1, 2, 1], vec![5., 6., 7., 8.]);
        // Of feature map 0: a - 1, 2 b; of feature map 1: 10 a, b + 1.
        let affine = Tensor::new(&[2, 2, 2], vec![1., 2., -1., 0., 10., 1., 0., 1.]);
        let w = Tensor::new(&[1, 2, 3, 3], vec![1.0; 18]);
        let op = Conv2d { sources: 2, prologue: Some(Activation::None), ..Conv2d::new(3, 1) };
        let (first, second) = (0. + 1. + 10. + 12., 30. + 40. + 8. + 9.);
        let expected = [first, first, second, second];
        assert_eval(&op, &[&a, &b, &affine, &w], &[2, 1, 2, 1], &expected);
        let silu = Conv2d { prologue: Some(Activation::Silu), ..Conv2d::new(1, 1) };
        let x = Tensor::new(&[1, 1, 1, 1], vec![3.0]);
        let affine = Tensor::new(&[1, 2, 1], vec![2.0, -5.0]);
        let w = Tensor::new(&[1, 1, 1, 1], vec![1.0]);
        assert_eval(&silu, &[&x, &affine, &w], &[1, 1, 1, 1], &[0.731_058_578_630_004_9]);
        assert_eq!(silu.attributes(), "kernel=1 stride=1 padding=0 normalized=silu");
    }

    #[test]
    fn rules() {
        let found = error(&Conv2d::new(3, 1), &[&[1, 4, 4, 2], &[8, 3, 3, 3]]);
        assert_eq!(found, "conv2d: input channels of the weights is 3, must be 2");
        let normalized = Conv2d { prologue: Some(Activation::Silu), ..Conv2d::new(3, 1) };
        let found = error(&normalized, &[&[2, 4, 4, 2], &[1, 2, 2], &[8, 2, 3, 3]]);
        assert_eq!(found, "conv2d: scales and shifts f32[1,2,2] are not [2,2,2]");
        assert_eq!(Conv2d::new(3, 2).attributes(), "kernel=3 stride=2 padding=1");
    }
}
