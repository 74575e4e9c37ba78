//! Variance of rows.

use super::{expect_one, map_rows, moments};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Biased variance over the last axis: `[.., C]` to `[.., 1]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Variance;

impl OpDef for Variance {
    const NAME: &'static str = "variance";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        Ok(expect_one(Self::NAME, inputs, 1)?.with_channels(1))
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        4 * inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map_rows(inputs[0], 1, |row| vec![moments(row.iter().copied()).1 as f32])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn biased_variance_of_rows() {
        let x = Tensor::new(&[2, 4], vec![1., 2., 4., 7., -1., 0.5, 0., 3.]);
        assert_eval(&Variance, &[&x], &[2, 1], &[5.25, 2.171875]);
        assert_eval(&Variance, &[&Tensor::new(&[1], vec![5.0])], &[1], &[0.0]);
    }

    #[test]
    fn a_large_mean_does_not_cancel() {
        let x = Tensor::new(&[1, 4], vec![1e6 + 1., 1e6 + 2., 1e6 + 4., 1e6 + 7.]);
        assert_eval(&Variance, &[&x], &[1, 1], &[5.25]);
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Variance, &[]), "variance: takes 1 inputs, got 0");
    }
}
