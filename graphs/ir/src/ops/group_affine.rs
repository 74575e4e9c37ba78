//! Group normalization as a scale and a shift for each channel.

use super::group_norm::{eval_source, infer_source, statistics};
use crate::{DType, IrError, NormOperands, OpDef, Tensor, TensorType};

/// The statistics of [`super::group_norm::GroupNorm`] without the normalized values. A reader
/// normalizes by `x * scale + shift`.
///
/// Inputs: those of `GroupNorm`. Output `f32` `[N, 2, C]`: `scale = gamma / sqrt(variance + eps)`,
/// then `shift = beta - mean * scale`. If the mean is many standard deviations, `shift` has a
/// rounding error like that of `x` itself.
/// Source: Wu & He 2018 (arXiv:1803.08494), section 3.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupAffine {
    /// Number of values that are read as one.
    pub sources: usize,
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Addend of the variance.
    pub eps: f32,
}

impl GroupAffine {
    /// Indices of the operands.
    pub fn operands(&self) -> NormOperands {
        NormOperands::new(self.sources)
    }
}

impl OpDef for GroupAffine {
    const NAME: &'static str = "group_affine";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let x = infer_source(Self::NAME, inputs, self.sources, self.groups)?;
        Ok(TensorType::new(DType::F32, &[x.batch(), 2, x.channels()]))
    }

    fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
        5 * inputs[..self.sources].iter().map(|x| x.elem_count() as u64).sum::<u64>()
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = eval_source(inputs, self.sources);
        let operands = self.operands();
        let (gamma, beta) = (&inputs[operands.gamma].data, &inputs[operands.beta].data);
        let (n, c) = (x.shape[0], x.channels());
        let width = c / self.groups;
        let mut out = Vec::with_capacity(2 * n * c);
        for entry in x.data.chunks_exact(x.data.len() / n) {
            let stats = statistics(entry, c, self.groups, self.eps);
            let scale = |i: usize| stats[i / width].1 * f64::from(gamma[i]);
            let shift = |i: usize| f64::from(beta[i]) - stats[i / width].0 * scale(i);
            out.extend((0..c).map(|i| scale(i) as f32));
            out.extend((0..c).map(|i| shift(i) as f32));
        }
        Tensor::new(&[n, 2, c], out)
    }

    fn attributes(&self) -> String {
        let sources =
            if self.sources > 1 { format!(" sources={}", self.sources) } else { String::new() };
        format!("groups={} eps={:e}{sources}", self.groups, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::concat::Concat;
    use super::super::epilogue::Activation;
    use super::super::group_norm::GroupNorm;
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn scales_then_shifts_of_each_entry() {
        let x = Tensor::new(&[2, 2], vec![1., 3., 10., 30.]);
        let (g, b) = (Tensor::new(&[2], vec![2.0, 1.0]), Tensor::new(&[2], vec![0.5, 0.0]));
        let op = GroupAffine { sources: 1, groups: 1, eps: 0.0 };
        // Means 2 and 20, standard deviations 1 and 10.
        let expected = [2.0, 1.0, -3.5, -2.0, 0.2, 0.1, -3.5, -2.0];
        assert_eval(&op, &[&x, &g, &b], &[2, 2, 2], &expected);
    }

    #[test]
    fn applied_it_is_group_normalization() {
        let wave = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let (a, b) = (Tensor::new(&[2, 3, 1, 2], wave(12)), Tensor::new(&[2, 3, 1, 4], wave(24)));
        let (gamma, beta) = (Tensor::new(&[6], wave(6)), Tensor::new(&[6], wave(6)));
        let inputs = [&a, &b, &gamma, &beta];
        let affine = GroupAffine { sources: 2, groups: 3, eps: 1e-5 }.eval(&inputs);
        let norm = GroupNorm { sources: 2, groups: 3, eps: 1e-5, activation: Activation::None };
        let x = Concat.eval(&[&a, &b]);
        for (i, (x, y)) in x.data.iter().zip(&norm.eval(&inputs).data).enumerate() {
            let row = &affine.data[i / 18 * 12..];
            assert!((x * row[i % 6] + row[6 + i % 6] - y).abs() < 1e-5, "element {i}");
        }
    }

    #[test]
    fn rules() {
        let op = GroupAffine { sources: 1, groups: 3, eps: 1e-6 };
        let found = error(&op, &[&[1, 2, 1, 4], &[4], &[4]]);
        assert_eq!(found, "group_affine: 3 groups do not divide the channels of f32[1,2,1,4]");
        assert_eq!(op.attributes(), "groups=3 eps=1e-6");
    }
}
