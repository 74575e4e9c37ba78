//! Multiplication by a constant.

use super::{expect_one, map};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `x * factor`.
#[derive(Clone, PartialEq, Debug)]
pub struct Scale {
    /// The factor.
    pub factor: f32,
}

impl OpDef for Scale {
    const NAME: &'static str = "scale";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_one(Self::NAME, inputs, 1).cloned()
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map(inputs[0], |v| v * self.factor)
    }

    fn attributes(&self) -> String {
        format!("factor={}", self.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn scales() {
        let x = Tensor::new(&[1, 3], vec![1., -2., 0.5]);
        assert_eval(&Scale { factor: -0.5 }, &[&x], &[1, 3], &[-0.5, 1.0, -0.25]);
    }

    #[test]
    fn rules() {
        let op = Scale { factor: 0.18215 };
        assert_eq!(error(&op, &[]), "scale: takes 1 inputs, got 0");
        assert_eq!(op.attributes(), "factor=0.18215");
    }
}
