//! Upsampling by nearest neighbour.

use super::expect_inputs;
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Doubles height and width: `[N, H, W, C]` to `[N, 2H, 2W, C]`, each pixel four times.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Upsample;

impl OpDef for Upsample {
    const NAME: &'static str = "upsample";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_inputs(Self::NAME, inputs, 1)?;
        let x = inputs[0];
        let [n, h, w, c] =
            x.nhwc().ok_or_else(|| shape_error(Self::NAME, format!("{x} is not [N,H,W,C]")))?;
        Ok(TensorType::new(x.dtype, &[n, 2 * h, 2 * w, c]))
    }

    fn flops(&self, _inputs: &[&TensorType], _output: &TensorType) -> u64 {
        0
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = inputs[0];
        let (n, h, w, c) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3]);
        let mut out = Vec::with_capacity(4 * x.data.len());
        for y in (0..n * h).flat_map(|y| [y, y]) {
            for column in (0..w).flat_map(|i| [i, i]) {
                out.extend_from_slice(x.row(y * w + column));
            }
        }
        Tensor::new(&[n, 2 * h, 2 * w, c], out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn each_pixel_four_times() {
        let x = Tensor::new(&[2, 1, 2, 2], vec![1., 2., 3., 4., 5., 6., 7., 8.]);
        let (a, b, c, d) = ([1., 2.], [3., 4.], [5., 6.], [7., 8.]);
        let expected = [
            [a, a, b, b].concat(),
            [a, a, b, b].concat(),
            [c, c, d, d].concat(),
            [c, c, d, d].concat(),
        ];
        assert_eval(&Upsample, &[&x], &[2, 2, 4, 2], &expected.concat());
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Upsample, &[&[2, 3]]), "upsample: f32[2,3] is not [N,H,W,C]");
    }
}
