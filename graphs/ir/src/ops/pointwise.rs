//! Ops on single elements: GELU, SiLU, ReLU, tanh, addition and multiplication.

use super::epilogue::{gelu, quick_gelu, relu, silu};
use super::{expect_one, expect_repeats, map, zip_repeated};
use crate::{IrError, OpDef, Tensor, TensorType};

/// Declares ops on single elements, whose result has the shape of the first input. An entry has
/// documentation, name, FLOP an element, shape rule and evaluation.
macro_rules! pointwise {
    ($($(#[$doc:meta])* $op:ident, $name:literal, $flops:literal, $rule:expr, $eval:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
        pub struct $op;

        impl OpDef for $op {
            const NAME: &'static str = $name;

            fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
                $rule(inputs)?;
                Ok(inputs[0].clone())
            }

            fn flops(&self, inputs: &[&TensorType], _output: &TensorType) -> u64 {
                $flops * inputs[0].elem_count() as u64
            }

            fn eval(&self, inputs: &[&Tensor]) -> Tensor {
                $eval(inputs)
            }
        }
    )* };
}

pointwise! {
    /// `x/2 * (1 + erf(x / sqrt 2))`, the exact form.
    Gelu, "gelu", 12, |i| expect_one("gelu", i, 1), |i: &[&Tensor]| map(i[0], gelu);
    /// `x * sigmoid(1.702 x)`, the fast approximation of GELU.
    QuickGelu, "quick_gelu", 5, |i| expect_one("quick_gelu", i, 1),
        |i: &[&Tensor]| map(i[0], quick_gelu);
    /// `x * sigmoid(x)`.
    Silu, "silu", 4, |i| expect_one("silu", i, 1), |i: &[&Tensor]| map(i[0], silu);
    /// The larger of `x` and 0.
    Relu, "relu", 1, |i| expect_one("relu", i, 1), |i: &[&Tensor]| map(i[0], relu);
    /// Hyperbolic tangent.
    Tanh, "tanh", 4, |i| expect_one("tanh", i, 1), |i: &[&Tensor]| map(i[0], f32::tanh);
    /// Sum of two values, the second repeated over leading axes of the first.
    Add, "add", 1, |i| expect_repeats("add", i),
        |i: &[&Tensor]| zip_repeated(i[0], i[1], |a, b| a + b);
    /// Product of two values, the second repeated over leading axes of the first. No graph or pass
    /// makes this op. It serves the thesis's comparison of kernels.
    Mul, "mul", 1, |i| expect_repeats("mul", i),
        |i: &[&Tensor]| zip_repeated(i[0], i[1], |a, b| a * b);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn gelu_known_values() {
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
    fn gelu_rules() {
        assert_eq!(error(&Gelu, &[]), "gelu: takes 1 inputs, got 0");
    }

    #[test]
    fn quick_gelu_known_values() {
        let x = Tensor::new(&[2, 3], vec![-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]);
        let expected = [
            -0.06434137685579186,
            -0.1542042340671787,
            0.0,
            0.35038843660638014,
            0.8457957659328212,
            2.981928690292214,
        ];
        assert_eval(&QuickGelu, &[&x], &[2, 3], &expected);
    }

    #[test]
    fn quick_gelu_rules() {
        assert_eq!(error(&QuickGelu, &[]), "quick_gelu: takes 1 inputs, got 0");
    }

    #[test]
    fn silu_known_values() {
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
    fn silu_rules() {
        assert_eq!(error(&Silu, &[]), "silu: takes 1 inputs, got 0");
    }

    #[test]
    fn relu_known_values() {
        let x = Tensor::new(&[2, 3], vec![-2.0, -0.0, 0.0, 0.5, 7.0, -1e-38]);
        assert_eval(&Relu, &[&x], &[2, 3], &[0.0, 0.0, 0.0, 0.5, 7.0, 0.0]);
        let nan = Tensor::new(&[1], vec![f32::NAN]);
        assert!(Relu.eval(&[&nan]).data[0].is_nan());
    }

    #[test]
    fn tanh_known_values() {
        let x = Tensor::new(&[2, 3], vec![-2.0, -1.0, 0.0, 0.5, 1.0, 30.0]);
        let expected = [
            -0.9640275800758169,
            -0.7615941559557649,
            0.0,
            0.46211715726000973,
            0.7615941559557649,
            1.0,
        ];
        assert_eval(&Tanh, &[&x], &[2, 3], &expected);
    }

    #[test]
    fn relu_and_tanh_rules() {
        assert_eq!(error(&Relu, &[]), "relu: takes 1 inputs, got 0");
        assert_eq!(error(&Tanh, &[]), "tanh: takes 1 inputs, got 0");
    }

    #[test]
    fn add_the_second_operand_repeats() {
        let a = Tensor::new(&[3, 1, 3], (1..10).map(|v| v as f32).collect());
        let b = Tensor::new(&[3], vec![10., 20., 30.]);
        let expected = [11., 22., 33., 14., 25., 36., 17., 28., 39.];
        assert_eval(&Add, &[&a, &b], &[3, 1, 3], &expected);
    }

    #[test]
    fn add_equal_shapes() {
        let a = Tensor::new(&[2], vec![3., -1.]);
        assert_eval(&Add, &[&a, &a], &[2], &[3. + 3., -1. + -1.]);
    }

    #[test]
    fn add_rules() {
        let found = error(&Add, &[&[2, 77, 8], &[2, 8]]);
        assert_eq!(found, "add: f32[2,8] does not repeat over the leading axes of f32[2,77,8]");
        assert_eq!(error(&Add, &[&[2]]), "add: takes 2 inputs, got 1");
    }

    #[test]
    fn mul_the_second_operand_repeats() {
        let a = Tensor::new(&[3, 1, 3], (1..10).map(|v| v as f32).collect());
        let b = Tensor::new(&[3], vec![10., 20., 30.]);
        let expected = [10., 40., 90., 40., 100., 180., 70., 160., 270.];
        assert_eval(&Mul, &[&a, &b], &[3, 1, 3], &expected);
    }

    #[test]
    fn mul_equal_shapes() {
        let a = Tensor::new(&[2], vec![3., -1.]);
        assert_eval(&Mul, &[&a, &a], &[2], &[3. * 3., -1. * -1.]);
    }

    #[test]
    fn mul_rules() {
        let found = error(&Mul, &[&[2, 77, 8], &[2, 8]]);
        assert_eq!(found, "mul: f32[2,8] does not repeat over the leading axes of f32[2,77,8]");
        assert_eq!(error(&Mul, &[&[2]]), "mul: takes 2 inputs, got 1");
    }
}
