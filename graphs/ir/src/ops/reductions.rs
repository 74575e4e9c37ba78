//! Mean, variance and softmax of rows. No graph or pass makes these ops, because attention and the
//! norms contain them. They serve the thesis's comparison of kernels.

use super::{expect_one, map_rows, moments};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Declares ops on rows of one input. An entry has documentation, name, FLOP an element, columns of
/// the result as a function of the input's columns, and evaluation of a row.
macro_rules! reductions {
    ($($(#[$doc:meta])* $op:ident, $name:literal, $flops:literal, $columns:expr, $eval:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
        pub struct $op;

        impl OpDef for $op {
            const NAME: &'static str = $name;

            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
                let x = expect_one($name, inputs, 1)?;
                Ok(x.with_channels($columns(x.channels())))
            }

            fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
                $flops * inputs[0].elem_count() as u64
            }

            fn eval(&self, inputs: &[&Tensor]) -> Tensor {
                map_rows(inputs[0], $columns(inputs[0].channels()), $eval)
            }
        }
    )* };
}

reductions! {
    /// Mean over the last axis: `[.., C]` to `[.., 1]`.
    Mean, "mean", 1, |_| 1, |row| vec![moments(row.iter().copied()).0 as f32];
    /// Biased variance over the last axis: `[.., C]` to `[.., 1]`.
    Variance, "variance", 4, |_| 1, |row| vec![moments(row.iter().copied()).1 as f32];
    /// Softmax over the last axis. The shape does not change.
    Softmax, "softmax", 5, |columns| columns, softmax;
}

fn softmax(row: &[f32]) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = row.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| (e / sum) as f32).collect()
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
    fn mean_rules() {
        let found = error(&Mean, &[&[2, 0]]);
        assert_eq!(found, "mean: f32[2,0] must have 1 or more axes, none empty");
    }

    #[test]
    fn variance_biased_variance_of_rows() {
        let x = Tensor::new(&[2, 4], vec![1., 2., 4., 7., -1., 0.5, 0., 3.]);
        assert_eval(&Variance, &[&x], &[2, 1], &[5.25, 2.171875]);
        assert_eval(&Variance, &[&Tensor::new(&[1], vec![5.0])], &[1], &[0.0]);
    }

    #[test]
    fn variance_a_large_mean_does_not_cancel() {
        let x = Tensor::new(&[1, 4], vec![1e6 + 1., 1e6 + 2., 1e6 + 4., 1e6 + 7.]);
        assert_eval(&Variance, &[&x], &[1, 1], &[5.25]);
    }

    #[test]
    fn variance_rules() {
        assert_eq!(error(&Variance, &[]), "variance: takes 1 inputs, got 0");
    }

    #[test]
    fn softmax_rows_sum_to_one_whatever_their_offset() {
        let row = [1f32, 2., 4., 7.];
        let x: Vec<f32> = row.iter().copied().chain(row.iter().map(|v| v + 1000.0)).collect();
        let p = [0.0023406452862919295, 0.006362533548595672, 0.04701311732190172, 0.944283703843];
        assert_eval(&Softmax, &[&Tensor::new(&[2, 4], x)], &[2, 4], &[p, p].concat());
    }

    #[test]
    fn softmax_rules() {
        assert_eq!(error(&Softmax, &[&[2], &[2]]), "softmax: takes 1 inputs, got 2");
    }
}
