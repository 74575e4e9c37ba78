//! A convolution and a reader of its result, as one op. The result between them need not exist as a
//! whole.

use super::conv2d::Conv2d;
use super::epilogue::Activation;
use super::group_affine::GroupAffine;
use super::matmul::Matmul;
use crate::{DType, IrError, Op, OpDef, Tensor, TensorType};

/// The second op of a [`Chain`].
#[derive(Clone, PartialEq, Debug)]
pub enum Link {
    /// A convolution of one source.
    Conv2d(Conv2d),
    /// A matrix multiplication of one source, a convolution without a window.
    Matmul(Matmul),
    /// The scales and shifts of a group normalization of one source.
    GroupAffine(GroupAffine),
}

/// Two ops in sequence: `second(first(..), ..)`.
///
/// Inputs: those of `first`, then those of `second` without its source. Output: that of `second`.
/// Kernels may compute `first` in stripes of lines and discard each stripe when `second` has read
/// it.
#[derive(Clone, PartialEq, Debug)]
pub struct Chain {
    /// The convolution.
    pub first: Conv2d,
    /// Storage type of the convolution's result.
    pub between: DType,
    /// The reader of the result.
    pub second: Link,
}

impl Link {
    /// The link as an op of its own.
    pub fn op(&self) -> Op {
        match self.clone() {
            Link::Conv2d(op) => op.into(),
            Link::Matmul(op) => op.into(),
            Link::GroupAffine(op) => op.into(),
        }
    }
}

impl Chain {
    /// Number of inputs of `first`, which come first.
    pub fn first_inputs(&self) -> usize {
        self.first.operands().count()
    }

    /// Type of the value between the two ops.
    pub fn between(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let ty = self.first.infer(&inputs[..self.first_inputs().min(inputs.len())])?;
        Ok(TensorType { dtype: self.between, ..ty })
    }
}

impl OpDef for Chain {
    const NAME: &'static str = "chain";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let between = self.between(inputs)?;
        let rest = inputs[self.first_inputs()..].iter().copied();
        self.second.op().infer(&std::iter::once(&between).chain(rest).collect::<Vec<_>>())
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        let Ok(between) = self.between(inputs) else { return 0 };
        let rest = inputs[self.first_inputs()..].iter().copied();
        let second: Vec<_> = std::iter::once(&between).chain(rest).collect();
        let first = self.first.flops(&inputs[..self.first_inputs()], &between);
        first + self.second.op().flops(&second, output)
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let between = self.first.eval(&inputs[..self.first_inputs()]);
        let rest = inputs[self.first_inputs()..].iter().copied();
        let second: Vec<_> = std::iter::once(&between).chain(rest).collect();
        self.second.op().eval(&second)
    }

    fn attributes(&self) -> String {
        let second = self.second.op();
        let (first, second, name) = (self.first.attributes(), second.attributes(), second.name());
        format!("conv2d({first}) {} {name}({second})", self.between)
    }
}

/// Whether a convolution may be the first op of a chain: a window over one source, with at most a
/// bias.
pub fn may_be_first(op: &Conv2d) -> bool {
    let e = &op.epilogue;
    let linear = e.row_offset.is_none() && e.activation == Activation::None && !e.residual;
    op.kernel > 1 && op.sources == 1 && linear
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn the_second_reads_what_the_first_makes() {
        let ones = Tensor::new(&[1, 1, 3, 3], vec![1.0; 9]);
        let picture = Tensor::new(&[1, 3, 3, 1], (1..10).map(|v| v as f32).collect());
        let twice = Tensor::new(&[1, 1], vec![2.0]);
        let (first, between) = (Conv2d::new(3, 1), DType::F32);
        let second = Link::Matmul(Matmul::default());
        let chain = Chain { first, between, second };
        let sums = [12., 21., 16., 27., 45., 33., 24., 39., 28.];
        let expected = sums.map(|v| 2.0 * v);
        assert_eval(&chain, &[&picture, &ones, &twice], &[1, 3, 3, 1], &expected);

        let second = Link::GroupAffine(GroupAffine { sources: 1, groups: 1, eps: 0.0 });
        let chain = Chain { first: Conv2d::new(3, 1), between, second };
        let (gamma, beta) = (Tensor::new(&[1], vec![1.0]), Tensor::new(&[1], vec![0.0]));
        // Mean 245 / 9, variance 7565 / 9 - mean^2 = 99.5.
        let scale = 1.0 / (7565.0f64 / 9.0 - (245.0f64 / 9.0).powi(2)).sqrt();
        let expected = [scale, -245.0 / 9.0 * scale];
        assert_eval(&chain, &[&picture, &ones, &gamma, &beta], &[1, 2, 1], &expected);
        let text = "conv2d(kernel=3 stride=1 padding=1) f32 group_affine(groups=1 eps=0e0)";
        assert_eq!(chain.attributes(), text);
    }

    #[test]
    fn rules_are_those_of_both() {
        let second = Link::Conv2d(Conv2d::new(1, 1));
        let chain = Chain { first: Conv2d::new(3, 1), between: DType::F32, second };
        let found = error(&chain, &[&[1, 4, 4, 2], &[8, 2, 3, 3], &[3, 7, 1, 1]]);
        assert_eq!(found, "conv2d: input channels of the weights is 7, must be 8");
        let found = error(&chain, &[&[1, 4, 4, 2], &[8, 3, 3, 3], &[3, 8, 1, 1]]);
        assert_eq!(found, "conv2d: input channels of the weights is 3, must be 2");
    }
}
