//! Concatenation along channels.

use super::expect_rank;
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Concatenates two or more inputs along the last axis; all other axes are equal.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Concat;

impl OpDef for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let op = Self::NAME;
        if inputs.len() < 2 {
            let expected = "2 or more".to_string();
            return Err(IrError::InputCount { op, expected, found: inputs.len() });
        }
        let first = inputs[0];
        let mut channels = 0;
        for ty in inputs {
            expect_rank(op, ty, 1)?;
            if ty.with_channels(1).shape != first.with_channels(1).shape {
                let what = format!("{ty} and {first} differ in more than the last axis");
                return Err(shape_error(op, what));
            }
            channels += ty.channels();
        }
        Ok(first.with_channels(channels))
    }

    fn flops(&self, _inputs: &[&TensorType], _output: &TensorType) -> u64 {
        0
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let mut shape = inputs[0].shape.clone();
        *shape.last_mut().expect("inferred before it is evaluated") =
            inputs.iter().map(|t| t.channels()).sum();
        let mut out = Vec::with_capacity(shape.iter().product());
        for r in 0..inputs[0].rows() {
            inputs.iter().for_each(|t| out.extend_from_slice(t.row(r)));
        }
        Tensor::new(&shape, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn joins_rows() {
        let a = Tensor::new(&[2, 1], vec![1., 2.]);
        let b = Tensor::new(&[2, 2], vec![3., 4., 5., 6.]);
        assert_eval(&Concat, &[&a, &b, &a], &[2, 4], &[1., 3., 4., 1., 2., 5., 6., 2.]);
    }

    #[test]
    fn rules() {
        let found = error(&Concat, &[&[2, 3], &[3, 3]]);
        assert_eq!(found, "concat: f32[3,3] and f32[2,3] differ in more than the last axis");
        assert_eq!(error(&Concat, &[&[2, 3]]), "concat: takes 2 or more inputs, got 1");
    }
}
