//! Matrix multiplication with constant weights: linear layers and 1x1 convolutions.

use super::epilogue::Epilogue;
use super::{expect_eq, expect_inputs};
use crate::{IrError, OpDef, Tensor, TensorType};

/// `rows x K` by weights `[N, K]` transposed.
///
/// Inputs: `sources` values that are read as if concatenated along channels, weights, then the
/// epilogue's. Output: the shape of the first source with `N` channels (`N/2` after GEGLU).
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Matmul {
    /// Number of values read as one.
    pub sources: usize,
    /// What follows the sum.
    pub epilogue: Epilogue,
}

impl Default for Matmul {
    fn default() -> Self {
        Self { sources: 1, epilogue: Epilogue::default() }
    }
}

impl OpDef for Matmul {
    const NAME: &'static str = "matmul";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let own = self.sources + 1;
        expect_inputs(Self::NAME, inputs, own + self.epilogue.input_count())?;
        let mut k = 0;
        for source in &inputs[..self.sources] {
            expect_eq(Self::NAME, "rows of a source", source.rows(), inputs[0].rows())?;
            k += source.channels();
        }
        let weights = inputs[self.sources];
        expect_eq(Self::NAME, "rank of the weights", weights.shape.len(), 2)?;
        expect_eq(Self::NAME, "columns of the weights", weights.shape[1], k)?;
        let n = weights.shape[0];
        let out = inputs[0].with_channels(self.epilogue.out_channels(n));
        self.epilogue.check(Self::NAME, &inputs[own..], n, &out)?;
        Ok(out)
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        2 * output.rows() as u64 * inputs[self.sources].elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = &inputs[..self.sources];
        let weights = inputs[self.sources];
        let (n, k) = (weights.shape[0], weights.shape[1]);
        let mut acc = Vec::with_capacity(x[0].rows() * n);
        for r in 0..x[0].rows() {
            let row: Vec<f32> = x.iter().flat_map(|t| t.row(r)).copied().collect();
            for column in weights.data.chunks_exact(k) {
                let dot: f64 = column.iter().zip(&row).map(|(a, b)| f64::from(a * b)).sum();
                acc.push(dot as f32);
            }
        }
        let out = self.epilogue.apply(acc, n, &inputs[self.sources + 1..]);
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
