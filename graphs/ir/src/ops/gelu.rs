//! Gaussian error linear unit.

use super::{epilogue, expect_one, map};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `x/2 * (1 + erf(x / sqrt 2))` of each element, the exact form.
/// Source: Hendrycks & Gimpel 2016 (arXiv:1606.08415).
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Gelu;

impl OpDef for Gelu {
    const NAME: &'static str = "gelu";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_one(Self::NAME, inputs, 1).cloned()
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        12 * inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map(inputs[0], epilogue::gelu)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn known_values() {
        let x = Tensor::new(&[2, 3], vec![-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]);
        let expected = [
            -0.04550026389635842,
            -0.15865525393145707,
            0.0,
            0.34573123063700656,
            0.8413447460685429,
            2.99595030590511,
        ];
        assert_eval(&Gelu, &[&x], &[2, 3], &expected);
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Gelu, &[]), "gelu: takes 1 inputs, got 0");
    }
}
