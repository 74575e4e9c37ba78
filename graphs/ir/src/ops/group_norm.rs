//! Group normalization.

use super::concat::Concat;
use super::epilogue::{Activation, silu};
use super::{expect_eq, expect_inputs, expect_rank, moments};
use crate::error::shape_error;
use crate::{IrError, NormOperands, OpDef, Tensor, TensorType};

/// Normalizes groups of adjacent channels of each batch entry, then applies scale, shift and
/// activation.
///
/// Inputs: `sources` values `[N, .., *]` that are read as one of `C` channels, `gamma` `[C]`,
/// `beta` `[C]`. A group may extend over two sources. Mean and biased variance are over all axes
/// except the first, and over the `C / groups` channels of a group. Output: `[N, .., C]`.
/// Source: Wu & He 2018 (arXiv:1803.08494), section 3.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupNorm {
    /// Number of values that are read as one.
    pub sources: usize,
    /// Number of groups; divides the channels.
    pub groups: usize,
    /// Addend of the variance.
    pub eps: f32,
    /// `None` or `Silu`.
    pub activation: Activation,
}

impl GroupNorm {
    /// Indices of the operands.
    pub fn operands(&self) -> NormOperands {
        NormOperands::new(self.sources)
    }
}

/// Type of the normalized values, checked against the groups, `gamma` and `beta`.
pub(super) fn infer_source(
    op: &'static str,
    inputs: &[&TensorType],
    sources: usize,
    groups: usize,
) -> Result<TensorType, IrError> {
    let operands = NormOperands::new(sources);
    expect_inputs(op, inputs, operands.count())?;
    expect_rank(op, inputs[0], 2)?;
    let x = match sources {
        1 => inputs[0].clone(),
        _ => Concat.infer(&inputs[..sources])?,
    };
    let c = x.channels();
    if groups == 0 || !c.is_multiple_of(groups) {
        return Err(shape_error(op, format!("{groups} groups do not divide the channels of {x}")));
    }
    expect_eq(op, "length of gamma", inputs[operands.gamma].elem_count(), c)?;
    expect_eq(op, "length of beta", inputs[operands.beta].elem_count(), c)?;
    Ok(x)
}

/// The values to normalize.
pub(super) fn eval_source(inputs: &[&Tensor], sources: usize) -> Tensor {
    match sources {
        1 => inputs[0].clone(),
        _ => Concat.eval(&inputs[..sources]),
    }
}

/// Mean and reciprocal standard deviation of each group of a batch entry with `c` channels.
pub(super) fn statistics(entry: &[f32], c: usize, groups: usize, eps: f32) -> Vec<(f64, f64)> {
    let (rows, width) = (entry.len() / c, c / groups);
    let of_group = |g: usize| {
        let at = |i: usize| entry[i / width * c + g * width + i % width];
        let (mean, variance) = moments((0..rows * width).map(at));
        (mean, 1.0 / (variance + f64::from(eps)).sqrt())
    };
    (0..groups).map(of_group).collect()
}

impl OpDef for GroupNorm {
    const NAME: &'static str = "group_norm";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let x = infer_source(Self::NAME, inputs, self.sources, self.groups)?;
        if !matches!(self.activation, Activation::None | Activation::Silu) {
            let what = format!("activation {:?} is neither None nor Silu", self.activation);
            return Err(shape_error(Self::NAME, what));
        }
        Ok(x)
    }

    fn flops(&self, _inputs: &[&TensorType], output: &TensorType) -> u64 {
        let each = if self.activation == Activation::Silu { 11 } else { 7 };
        each * output.elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = eval_source(inputs, self.sources);
        let operands = self.operands();
        let (gamma, beta) = (&inputs[operands.gamma].data, &inputs[operands.beta].data);
        let c = x.channels();
        let width = c / self.groups;
        let entry_len = x.data.len() / x.shape[0];
        let mut out = Vec::with_capacity(x.data.len());
        for entry in x.data.chunks_exact(entry_len) {
            let stats = statistics(entry, c, self.groups, self.eps);
            out.extend(entry.iter().enumerate().map(|(i, v)| {
                let (mean, rstd) = stats[i % c / width];
                let normal = (f64::from(*v) - mean) * rstd;
                let y = (normal * f64::from(gamma[i % c]) + f64::from(beta[i % c])) as f32;
                if self.activation == Activation::Silu { silu(y) } else { y }
            }));
        }
        Tensor::new(&x.shape, out)
    }

    fn attributes(&self) -> String {
        let act = if self.activation == Activation::None {
            String::new()
        } else {
            format!(" act={:?}", self.activation).to_lowercase()
        };
        let sources =
            if self.sources > 1 { format!(" sources={}", self.sources) } else { String::new() };
        format!("groups={} eps={:e}{sources}{act}", self.groups, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    fn norm(groups: usize, activation: Activation) -> GroupNorm {
        GroupNorm { sources: 1, groups, eps: 1e-6, activation }
    }

    fn inputs() -> [Tensor; 3] {
        let x = Tensor::new(&[1, 2, 1, 4], vec![1., 2., 3., 4., 5., 6., 7., 10.]);
        [x, Tensor::new(&[4], vec![1.0; 4]), Tensor::new(&[4], vec![0.0; 4])]
    }

    #[test]
    fn normalizes_each_group_over_the_picture() {
        let [x, g, b] = inputs();
        let (p, q) = (1.2126779825136753, 0.7276067895082052);
        let (r, s) = (-1.0954450419806652, -0.7302966946537768);
        let expected = [-p, -q, r, s, q, p, 0.3651483473268884, 1.4605933893075536];
        assert_eval(&norm(2, Activation::None), &[&x, &g, &b], &[1, 2, 1, 4], &expected);
    }

    #[test]
    fn silu_follows_the_affine_part() {
        let [x, g, b] = inputs();
        let expected = [
            -0.2779792099381952,
            -0.2369961711785989,
            -0.2745123150911346,
            -0.23744108915347478,
            0.49061061832960634,
            0.9346987725754802,
            0.21554200481090222,
            1.185451795077001,
        ];
        assert_eval(&norm(2, Activation::Silu), &[&x, &g, &b], &[1, 2, 1, 4], &expected);
    }

    #[test]
    fn batch_entries_are_independent() {
        let x = Tensor::new(&[2, 2], vec![1., 3., 10., 30.]);
        let g = Tensor::new(&[2], vec![2.0, 1.0]);
        let b = Tensor::new(&[2], vec![0.5, 0.0]);
        let op = GroupNorm { sources: 1, groups: 1, eps: 0.0, activation: Activation::None };
        assert_eval(&op, &[&x, &g, &b], &[2, 2], &[-1.5, 1.0, -1.5, 1.0]);
    }

    #[test]
    fn two_sources_are_read_as_one() {
        let [x, g, b] = inputs();
        let part = |columns: std::ops::Range<usize>| {
            let data: Vec<f32> = (0..2).flat_map(|r| x.row(r)[columns.clone()].to_vec()).collect();
            Tensor::new(&[1, 2, 1, columns.len()], data)
        };
        let one = norm(2, Activation::Silu);
        let two = GroupNorm { sources: 2, ..one.clone() };
        let values: Vec<f64> = one.eval(&[&x, &g, &b]).data.iter().map(|v| f64::from(*v)).collect();
        assert_eval(&two, &[&part(0..1), &part(1..4), &g, &b], &[1, 2, 1, 4], &values);
    }

    #[test]
    fn rules() {
        let found = error(&norm(3, Activation::None), &[&[1, 2, 1, 4], &[4], &[4]]);
        assert_eq!(found, "group_norm: 3 groups do not divide the channels of f32[1,2,1,4]");
        let found = error(&norm(2, Activation::None), &[&[1, 2, 1, 4], &[3], &[4]]);
        assert_eq!(found, "group_norm: length of gamma is 3, must be 4");
        assert!(error(&norm(2, Activation::Gelu), &[&[1, 4], &[4], &[4]]).contains("Gelu"));
    }

    #[test]
    fn dump() {
        assert_eq!(norm(32, Activation::Silu).attributes(), "groups=32 eps=1e-6 act=silu");
    }
}
