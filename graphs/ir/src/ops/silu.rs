//! Sigmoid linear unit.

use super::{epilogue, expect_one, map};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `x * sigmoid(x)` of each element.
/// Source: Elfwing, Uchibe & Doya 2017 (arXiv:1702.03118).
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Silu;

impl OpDef for Silu {
    const NAME: &'static str = "silu";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_one(Self::NAME, inputs, 1).cloned()
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        4 * inputs[0].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map(inputs[0], epilogue::silu)
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
            -0.2384058440442351,
            -0.2689414213699951,
            0.0,
            0.3112296656009273,
            0.7310585786300049,
            2.8577223804672998,
        ];
        assert_eval(&Silu, &[&x], &[2, 3], &expected);
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Silu, &[]), "silu: takes 1 inputs, got 0");
    }
}
