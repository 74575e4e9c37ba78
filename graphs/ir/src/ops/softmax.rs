//! Softmax of rows.

use super::{expect_one, map_rows};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `exp(x - max) / sum(exp(x - max))` over the last axis.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Softmax;

impl OpDef for Softmax {
    const NAME: &'static str = "softmax";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_one(Self::NAME, inputs, 1).cloned()
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        5 * inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = inputs[0];
        map_rows(x, x.channels(), |row| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f64> = row.iter().map(|v| f64::from(v - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|e| (e / sum) as f32).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn rows_sum_to_one_whatever_their_offset() {
        let row = [1f32, 2., 4., 7.];
        let x: Vec<f32> = row.iter().copied().chain(row.iter().map(|v| v + 1000.0)).collect();
        let p = [0.0023406452862919295, 0.006362533548595672, 0.04701311732190172, 0.944283703843];
        assert_eval(&Softmax, &[&Tensor::new(&[2, 4], x)], &[2, 4], &[p, p].concat());
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Softmax, &[&[2], &[2]]), "softmax: takes 1 inputs, got 2");
    }
}
