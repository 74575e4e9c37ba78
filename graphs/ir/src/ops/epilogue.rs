//! Operations of a contraction on its accumulators before they are stored.

use super::expect_eq;
use crate::{ContractionOperands, IrError, Op, Tensor, TensorType};

/// A function applied to each accumulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Activation {
    /// Identity.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x/2 * (1 + erf(x / sqrt 2))`, the exact form.
    Gelu,
    /// `x * sigmoid(1.702 x)`, the fast approximation of GELU.
    QuickGelu,
    /// Columns `[value | gate]` -> `value * gelu(gate)`. Halves the number of columns.
    Geglu,
    /// The larger of `x` and 0.
    Relu,
}

impl Activation {
    /// Name of the activation in dumps and templates.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// The activation that equals an op.
    pub fn of(op: &Op) -> Option<Self> {
        match op {
            Op::Silu(_) => Some(Activation::Silu),
            Op::Gelu(_) => Some(Activation::Gelu),
            Op::QuickGelu(_) => Some(Activation::QuickGelu),
            Op::Geglu(_) => Some(Activation::Geglu),
            Op::Relu(_) => Some(Activation::Relu),
            _ => None,
        }
    }
}

/// Epilogue of a contraction with `n` output columns. Operations in order: `+ bias[n]`,
/// `+ row[offset + n]`, activation, `+ residual[m, n]`.
///
/// [`ContractionOperands`] has its inputs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Epilogue {
    /// Whether an input of shape `[n]` is added.
    pub bias: bool,
    /// `offset` of a one-row input (the timestep projection). Its columns `[offset, offset + n)`
    /// are added to every row. `None` if there is no such input.
    pub row_offset: Option<usize>,
    /// The activation.
    pub activation: Activation,
    /// Whether an input of the output's shape is added.
    pub residual: bool,
}

impl Epilogue {
    /// Number of stored columns for `n` accumulator columns.
    pub fn out_channels(&self, n: usize) -> usize {
        if self.activation == Activation::Geglu { n / 2 } else { n }
    }

    /// Checks the epilogue's operands among the op's inputs for `n` accumulator columns and an
    /// output type.
    pub fn check(
        &self,
        op: &'static str,
        inputs: &[&TensorType],
        operands: &ContractionOperands<usize>,
        n: usize,
        output: &TensorType,
    ) -> Result<(), IrError> {
        if let Some(bias) = operands.bias {
            expect_eq(op, "bias length", inputs[bias].elem_count(), n)?;
        }
        if let (Some(row), Some(offset)) = (operands.row, self.row_offset) {
            let row = inputs[row];
            expect_eq(op, "rows of the row vector", row.rows(), 1)?;
            if offset + n > row.channels() {
                let what = format!("row vector {row} is shorter than {offset} + {n}");
                return Err(crate::error::shape_error(op, what));
            }
        }
        if self.activation == Activation::Geglu {
            expect_eq(op, "columns modulo 2 for GEGLU", n % 2, 0)?;
        }
        if let Some(residual) = operands.residual {
            let residual = inputs[residual];
            expect_eq(op, "residual rows", residual.rows(), output.rows())?;
            expect_eq(op, "residual columns", residual.channels(), output.channels())?;
        }
        Ok(())
    }

    /// Applies the epilogue to accumulators `[rows, n]`, in place for all activations but GEGLU.
    pub fn apply(
        &self,
        mut acc: Vec<f32>,
        n: usize,
        inputs: &[&Tensor],
        operands: &ContractionOperands<usize>,
    ) -> Vec<f32> {
        if let Some(bias) = operands.bias {
            let bias = inputs[bias];
            acc.iter_mut().enumerate().for_each(|(i, v)| *v += bias.data[i % n]);
        }
        if let (Some(row), Some(offset)) = (operands.row, self.row_offset) {
            let row = inputs[row];
            acc.iter_mut().enumerate().for_each(|(i, v)| *v += row.data[offset + i % n]);
        }
        match self.activation {
            Activation::None => {}
            Activation::Silu => acc.iter_mut().for_each(|v| *v = silu(*v)),
            Activation::Gelu => acc.iter_mut().for_each(|v| *v = gelu(*v)),
            Activation::QuickGelu => acc.iter_mut().for_each(|v| *v = quick_gelu(*v)),
            Activation::Relu => acc.iter_mut().for_each(|v| *v = relu(*v)),
            Activation::Geglu => {
                let half = n / 2;
                acc = acc
                    .chunks_exact(n)
                    .flat_map(|r| (0..half).map(|i| r[i] * gelu(r[half + i])).collect::<Vec<_>>())
                    .collect();
            }
        }
        if let Some(residual) = operands.residual {
            acc.iter_mut().zip(&inputs[residual].data).for_each(|(v, r)| *v += r);
        }
        acc
    }

    /// Attributes for dumps.
    pub fn attributes(&self) -> String {
        let mut s = String::new();
        if self.bias {
            s += " bias";
        }
        if let Some(offset) = self.row_offset {
            s += &format!(" row={offset}");
        }
        if self.activation != Activation::None {
            s += &format!(" act={}", self.activation.name());
        }
        if self.residual {
            s += " residual";
        }
        s
    }
}

/// `x * sigmoid(x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// `x * sigmoid(1.702 x)`.
pub fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + (-1.702 * x).exp())
}

/// The larger of `x` and 0. NaN stays NaN, as an error must not become a value.
pub fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// GELU in its exact form, through `erf`.
pub fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// Error function by its Maclaurin series (|x| < 3) or continued fraction of erfc. The error is
/// under 1e-12.
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / n as f64;
            let add = term / (2 * n + 1) as f64;
            sum += add;
            if add.abs() < 1e-17 {
                break;
            }
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 6.0 {
        let tail = (1..60).rev().fold(a, |acc, k| a + k as f64 / 2.0 / acc);
        1.0 - (-a * a).exp() / (tail * std::f64::consts::PI.sqrt())
    } else {
        1.0
    };
    value.copysign(x)
}
