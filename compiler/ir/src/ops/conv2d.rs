//! Two-dimensional convolution, with the concatenation and upsampling it may have absorbed.

use super::epilogue::Epilogue;
use super::{expect_eq, expect_inputs};
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Convolution with a square window over `[N, H, W, C]`.
///
/// Inputs: `sources` pictures that are read as if concatenated along channels, weights
/// `[O, C, k, k]` (C over all sources), then the epilogue's. With `upsample` the window slides
/// over the picture doubled by nearest neighbour. Output `[N, H', W', O]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Conv2d {
    /// Window width and height.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Zeros around the (upsampled) picture.
    pub padding: usize,
    /// Reads the picture doubled in both directions.
    pub upsample: bool,
    /// Number of pictures read as one.
    pub sources: usize,
    /// What follows the sum.
    pub epilogue: Epilogue,
}

impl Conv2d {
    /// A plain convolution, "same" padding for odd windows.
    pub fn new(kernel: usize, stride: usize) -> Self {
        let epilogue = Epilogue::default();
        Self { kernel, stride, padding: kernel / 2, upsample: false, sources: 1, epilogue }
    }

    /// Height and width of the picture that the window slides over.
    pub fn window_extent(&self, h: usize, w: usize) -> (usize, usize) {
        let f = if self.upsample { 2 } else { 1 };
        (h * f, w * f)
    }
}

impl OpDef for Conv2d {
    const NAME: &'static str = "conv2d";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let own = self.sources + 1;
        expect_inputs(Self::NAME, inputs, own + self.epilogue.input_count())?;
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
        let [o, wc, kh, kw] = picture(inputs[self.sources])?;
        expect_eq(Self::NAME, "input channels of the weights", wc, c)?;
        expect_eq(Self::NAME, "window height of the weights", kh, self.kernel)?;
        expect_eq(Self::NAME, "window width of the weights", kw, self.kernel)?;
        let (eh, ew) = self.window_extent(h, w);
        let (ph, pw) = (eh + 2 * self.padding, ew + 2 * self.padding);
        if ph < self.kernel || pw < self.kernel || self.stride == 0 {
            return Err(shape_error(
                Self::NAME,
                format!("window {0}x{0} over {ph}x{pw}", self.kernel),
            ));
        }
        let (oh, ow) = ((ph - self.kernel) / self.stride + 1, (pw - self.kernel) / self.stride + 1);
        let out = TensorType::new(inputs[0].dtype, &[n, oh, ow, self.epilogue.out_channels(o)]);
        self.epilogue.check(Self::NAME, &inputs[own..], o, &out)?;
        Ok(out)
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        2 * output.rows() as u64 * inputs[self.sources].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = &inputs[..self.sources];
        let weights = inputs[self.sources];
        let (n, h, w) = (x[0].shape[0], x[0].shape[1], x[0].shape[2]);
        let (o, c, k) = (weights.shape[0], weights.shape[1], self.kernel);
        let (eh, ew) = self.window_extent(h, w);
        let oh = (eh + 2 * self.padding - k) / self.stride + 1;
        let ow = (ew + 2 * self.padding - k) / self.stride + 1;
        let f = eh / h;
        let mut acc = Vec::with_capacity(n * oh * ow * o);
        let mut window = vec![0.0f32; c * k * k];
        for (b, oy, ox) in iter3(n, oh, ow) {
            window.fill(0.0);
            for (ky, kx) in (0..k * k).map(|i| (i / k, i % k)) {
                let y = (oy * self.stride + ky).wrapping_sub(self.padding);
                let xx = (ox * self.stride + kx).wrapping_sub(self.padding);
                if y >= eh || xx >= ew {
                    continue;
                }
                let row = (b * h + y / f) * w + xx / f;
                let pixel = x.iter().flat_map(|t| t.row(row));
                pixel.enumerate().for_each(|(ci, v)| window[(ci * k + ky) * k + kx] = *v);
            }
            for filter in weights.data.chunks_exact(c * k * k) {
                let dot: f64 = filter.iter().zip(&window).map(|(a, b)| f64::from(a * b)).sum();
                acc.push(dot as f32);
            }
        }
        let out = self.epilogue.apply(acc, o, &inputs[self.sources + 1..]);
        Tensor::new(&[n, oh, ow, self.epilogue.out_channels(o)], out)
    }

    fn attributes(&self) -> String {
        let mut s =
            format!("kernel={} stride={} padding={}", self.kernel, self.stride, self.padding);
        if self.upsample {
            s += " upsample";
        }
        if self.sources > 1 {
            s += &format!(" sources={}", self.sources);
        }
        s + &self.epilogue.attributes()
    }
}

fn iter3(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a * b * c).map(move |i| (i / (b * c), i / c % b, i % c))
}
