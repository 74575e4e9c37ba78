//! Matrix multiplication with constant weights: linear layers and 1x1 convolutions.

use super::epilogue::Epilogue;
use super::{expect_eq, expect_inputs};
use crate::parallel::contract;
use crate::{ContractionOperands, IrError, OpDef, Tensor, TensorType};

/// `rows x K` by weights `[N, K]` transposed.
///
/// Inputs: `sources` values that are read as one, concatenated along channels; weights; then the
/// epilogue's operands. Output: the shape of the first source with `N` channels (`N/2` after
/// GEGLU).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Matmul {
    /// Number of values that are read as one.
    pub sources: usize,
    /// Operations after the sum.
    pub epilogue: Epilogue,
}

impl Default for Matmul {
    fn default() -> Self {
        Self { sources: 1, epilogue: Epilogue::default() }
    }
}

impl Matmul {
    /// Indices of the operands.
    pub fn operands(&self) -> ContractionOperands<usize> {
        ContractionOperands::new(self.sources, false, &self.epilogue)
    }
}

impl OpDef for Matmul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let operands = self.operands();
        expect_inputs(Self::NAME, inputs, operands.count())?;
        let mut k = 0;
        for source in &inputs[..self.sources] {
            expect_eq(Self::NAME, "rows of a source", source.rows(), inputs[0].rows())?;
            k += source.channels();
        }
        let weights = inputs[operands.weights];
        expect_eq(Self::NAME, "rank of the weights", weights.shape.len(), 2)?;
        expect_eq(Self::NAME, "columns of the weights", weights.shape[1], k)?;
        let n = weights.shape[0];
        let out = inputs[0].with_channels(self.epilogue.out_channels(n));
        self.epilogue.check(Self::NAME, inputs, &operands, n, &out)?;
        Ok(out)
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        2 * output.rows() as u64 * inputs[self.operands().weights].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = &inputs[..self.sources];
        let operands = self.operands();
        let weights = inputs[operands.weights];
        let n = weights.shape[0];
        let acc = contract(x[0].rows(), n, &weights.data, |r, row| {
            let mut start = 0;
            for source in x {
                let part = source.row(r);
                row[start..start + part.len()].copy_from_slice(part);
                start += part.len();
            }
        });
        let out = self.epilogue.apply(acc, n, inputs, &operands);
        let mut shape = x[0].shape.clone();
        *shape.last_mut().expect("a matrix has columns") = self.epilogue.out_channels(n);
        Tensor::new(&shape, out)
    }

    fn attributes(&self) -> String {
        let sources =
            if self.sources > 1 { format!("sources={}", self.sources) } else { String::new() };
        (sources + &self.epilogue.attributes()).trim().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::epilogue::Activation;
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn reads_sources_as_one() {
        let a = Tensor::new(&[2, 1], vec![1., 2.]);
        let b = Tensor::new(&[2, 2], vec![3., 4., 5., 6.]);
        let w = Tensor::new(&[2, 3], vec![1., 10., 100., -1., 0., 0.5]);
        let op = Matmul { sources: 2, ..Matmul::default() };
        assert_eval(&op, &[&a, &b, &w], &[2, 2], &[431., 1., 652., 1.]);
    }

    #[test]
    fn the_epilogue_follows_in_its_order() {
        let x = Tensor::new(&[1, 1], vec![1.0]);
        let w = Tensor::new(&[2, 1], vec![1., 2.]);
        let bias = Tensor::new(&[2], vec![-1.5, -3.]);
        let row = Tensor::new(&[1, 3], vec![9., 1., 4.]);
        let residual = Tensor::new(&[1, 2], vec![10., 20.]);
        let epilogue = Epilogue {
            bias: true,
            row_offset: Some(1),
            activation: Activation::Silu,
            residual: true,
        };
        let op = Matmul { sources: 1, epilogue };
        let expected = [10.311229665600928, 22.8577223804673];
        assert_eval(&op, &[&x, &w, &bias, &row, &residual], &[1, 2], &expected);
        assert_eq!(op.attributes(), "bias row=1 act=silu residual");
    }

    #[test]
    fn geglu_halves_the_columns() {
        let x = Tensor::new(&[1, 1], vec![1.0]);
        let w = Tensor::new(&[4, 1], vec![2., 3., 1., -1.]);
        let epilogue = Epilogue { activation: Activation::Geglu, ..Epilogue::default() };
        let op = Matmul { sources: 1, epilogue };
        let expected = [2.0 * 0.8413447460685429, 3.0 * -0.15865525393145707];
        assert_eval(&op, &[&x, &w], &[1, 2], &expected);
    }

    #[test]
    fn rules() {
        let found = error(&Matmul::default(), &[&[2, 3], &[5, 4]]);
        assert_eq!(found, "matmul: columns of the weights is 4, must be 3");
    }
}
