//! GELU-gated linear unit.

use super::epilogue::gelu;
use super::{expect_eq, expect_one, map_rows};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Columns `[value | gate]` give `value * gelu(gate)`: `[.., 2C]` to `[.., C]`.
///
/// Source: Shazeer 2020 (arXiv:2002.05202).
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Geglu;

impl OpDef for Geglu {
    const NAME: &'static str = "geglu";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let x = expect_one(Self::NAME, inputs, 1)?;
        expect_eq(Self::NAME, "columns modulo 2", x.channels() % 2, 0)?;
        Ok(x.with_channels(x.channels() / 2))
    }

    fn flops(&self, _inputs: &[&TensorType], output: &TensorType) -> u64 {
        13 * output.elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let half = inputs[0].channels() / 2;
        map_rows(inputs[0], half, |row| {
            let (value, gate) = row.split_at(half);
            value.iter().zip(gate).map(|(v, g)| v * gelu(*g)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn the_second_half_gates_the_first() {
        let x = Tensor::new(&[2, 4], vec![2., 3., 1., -1., 1., -4., 0.5, 2.]);
        let (one, minus_one) = (0.8413447460685429, -0.15865525393145707);
        let expected = [2.0 * one, 3.0 * minus_one, 0.34573123063700656, -4.0 * 1.9544997361036416];
        assert_eval(&Geglu, &[&x], &[2, 2], &expected);
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Geglu, &[&[2, 3]]), "geglu: columns modulo 2 is 1, must be 0");
    }
}
