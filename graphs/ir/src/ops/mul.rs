//! Product of two values.

use super::{expect_repeats, zip_repeated};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `a * b` element by element; `b` repeats over the leading axes of `a`.
///
/// Inputs: `a`, and `b` with the element count of `a` or of some trailing axes of `a`, as in
/// `[2, 77, C]` and `[77, C]`. Output: the type of `a`.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Mul;

impl OpDef for Mul {
    const NAME: &'static str = "mul";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_repeats(Self::NAME, inputs)?;
        Ok(inputs[0].clone())
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        zip_repeated(inputs[0], inputs[1], |a, b| a * b)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn the_second_operand_repeats() {
        let a = Tensor::new(&[3, 1, 3], (1..10).map(|v| v as f32).collect());
        let b = Tensor::new(&[3], vec![10., 20., 30.]);
        let expected = [10., 40., 90., 40., 100., 180., 70., 160., 270.];
        assert_eval(&Mul, &[&a, &b], &[3, 1, 3], &expected);
    }

    #[test]
    fn equal_shapes() {
        let a = Tensor::new(&[2], vec![3., -1.]);
        assert_eval(&Mul, &[&a, &a], &[2], &[3. * 3., -1. * -1.]);
    }

    #[test]
    fn rules() {
        let found = error(&Mul, &[&[2, 77, 8], &[2, 8]]);
        assert_eq!(found, "mul: f32[2,8] does not repeat over the leading axes of f32[2,77,8]");
        assert_eq!(error(&Mul, &[&[2]]), "mul: takes 2 inputs, got 1");
    }
}
