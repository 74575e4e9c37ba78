//! Mean of rows.

use super::{expect_one, map_rows, moments};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Mean over the last axis: `[.., C]` to `[.., 1]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Mean;

impl OpDef for Mean {
    const NAME: &'static str = "mean";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        Ok(expect_one(Self::NAME, inputs, 1)?.with_channels(1))
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map_rows(inputs[0], 1, |row| vec![moments(row.iter().copied()).0 as f32])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn mean_of_rows() {
        let x = Tensor::new(&[2, 4], vec![1., 2., 4., 7., -1., 0.5, 0., 3.]);
        assert_eval(&Mean, &[&x], &[2, 1], &[3.5, 0.625]);
    }

    #[test]
    fn rules() {
        let found = error(&Mean, &[&[2, 0]]);
        assert_eq!(found, "mean: f32[2,0] must have 1 or more axes, none empty");
    }
}
