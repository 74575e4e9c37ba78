//! Reordering of axes. No graph or pass makes this op. It serves the thesis's comparison of
//! kernels.

use super::expect_inputs;
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Reorders axes: axis `i` of the output is axis `order[i]` of the input.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Permute {
    /// Each axis of the input once.
    pub order: Vec<usize>,
}

impl Permute {
    /// Element stride of the input along each axis of the output.
    pub fn strides(&self, input_shape: &[usize]) -> Vec<usize> {
        self.order.iter().map(|axis| input_shape[axis + 1..].iter().product()).collect()
    }
}

impl OpDef for Permute {
    const NAME: &'static str = "permute";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_inputs(Self::NAME, inputs, 1)?;
        let x = inputs[0];
        let mut axes = self.order.clone();
        axes.sort_unstable();
        if !axes.iter().copied().eq(0..x.shape.len()) {
            let what = format!("order {:?} does not name each axis of {x} once", self.order);
            return Err(shape_error(Self::NAME, what));
        }
        let shape: Vec<usize> = self.order.iter().map(|axis| x.shape[*axis]).collect();
        Ok(TensorType::new(x.dtype, &shape))
    }

    fn flops(&self, _inputs: &[&TensorType], _output: &TensorType) -> u64 {
        0
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let x = inputs[0];
        let shape: Vec<usize> = self.order.iter().map(|axis| x.shape[*axis]).collect();
        let strides = self.strides(&x.shape);
        let source = |mut i: usize| {
            let mut at = 0;
            for (extent, stride) in shape.iter().zip(&strides).rev() {
                at += i % extent * stride;
                i /= extent;
            }
            x.data[at]
        };
        Tensor::new(&shape, (0..x.data.len()).map(source).collect())
    }

    fn attributes(&self) -> String {
        let axes: Vec<String> = self.order.iter().map(usize::to_string).collect();
        format!("order={}", axes.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn transposes() {
        let x = Tensor::new(&[2, 3], vec![1., 2., 3., 4., 5., 6.]);
        let op = Permute { order: vec![1, 0] };
        assert_eval(&op, &[&x], &[3, 2], &[1., 4., 2., 5., 3., 6.]);
    }

    #[test]
    fn rotates_axes() {
        let x = Tensor::new(&[2, 1, 2, 2], (0..8).map(|v| v as f32).collect());
        let op = Permute { order: vec![2, 3, 0, 1] };
        assert_eval(&op, &[&x], &[2, 2, 2, 1], &[0., 4., 1., 5., 2., 6., 3., 7.]);
    }

    #[test]
    fn rules() {
        let found = error(&Permute { order: vec![0, 0] }, &[&[2, 3]]);
        assert_eq!(found, "permute: order [0, 0] does not name each axis of f32[2,3] once");
        assert_eq!(Permute { order: vec![0, 2, 1] }.attributes(), "order=0,2,1");
    }
}
