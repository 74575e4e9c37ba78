//! Layer normalization.

use super::{expect_eq, expect_inputs, expect_rank, map_rows, moments};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Normalizes each row over its columns, then scales and shifts.
///
/// Inputs: `x` `[.., C]`, `gamma` `[C]`, `beta` `[C]`. Output: the type of `x`.
/// Source: Ba, Kiros & Hinton 2016 (arXiv:1607.06450).
#[derive(Clone, PartialEq, Debug)]
pub struct LayerNorm {
    /// Addend of the variance.
    pub eps: f32,
}

impl OpDef for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_inputs(Self::NAME, inputs, 3)?;
        let x = inputs[0];
        expect_rank(Self::NAME, x, 1)?;
        expect_eq(Self::NAME, "length of gamma", inputs[1].elem_count(), x.channels())?;
        expect_eq(Self::NAME, "length of beta", inputs[2].elem_count(), x.channels())?;
        Ok(x.clone())
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        7 * inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let (x, gamma, beta) = (inputs[0], &inputs[1].data, &inputs[2].data);
        map_rows(x, x.channels(), |row| {
            let (mean, variance) = moments(row.iter().copied());
            let rstd = 1.0 / (variance + f64::from(self.eps)).sqrt();
            let affine = row.iter().zip(gamma.iter().zip(beta));
            affine
                .map(|(v, (g, b))| {
                    ((f64::from(*v) - mean) * rstd * f64::from(*g) + f64::from(*b)) as f32
                })
                .collect()
        })
    }

    fn attributes(&self) -> String {
        format!("eps={:e}", self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn normalizes_rows() {
        let x = Tensor::new(&[2, 4], vec![1., 2., 4., 7., -1., 0.5, 0., 3.]);
        let gamma = Tensor::new(&[4], vec![1., 2., 0.5, -1.]);
        let beta = Tensor::new(&[4], vec![0., 0.1, 0.2, 0.3]);
        let expected = [
            -1.0910884120486357,
            -1.209306094458363,
            0.3091088412048636,
            -1.22752377686809,
            -1.1026430701280177,
            -0.06963739540431041,
            -0.012046744255388014,
            -1.311555256340949,
        ];
        assert_eval(&LayerNorm { eps: 1e-5 }, &[&x, &gamma, &beta], &[2, 4], &expected);
    }

    #[test]
    fn rules() {
        let op = LayerNorm { eps: 1e-5 };
        let found = error(&op, &[&[2, 4], &[4], &[5]]);
        assert_eq!(found, "layer_norm: length of beta is 5, must be 4");
        assert_eq!(error(&op, &[&[2, 4]]), "layer_norm: takes 3 inputs, got 1");
        assert_eq!(op.attributes(), "eps=1e-5");
    }
}
