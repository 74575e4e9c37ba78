//! Rounding errors of the contractions' variants, in addition to those of sums in FP32.
//!
//! The errors are bounds for tests. Values of at most `largest`, evenly distributed, are multiplied
//! by weights of up to `2 / sqrt(K)`, so that sums are about 1. Errors of random sign are bounded
//! by six standard deviations.

use super::mobile::mean_error;
use crate::{Problem, Rounding, Target};
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::{DType, Op};

/// Half a unit in the last place of an FP16 value, relative to the value.
pub const FP16_ROUNDING: f32 = 1.0 / 2048.0;
/// Standard deviations of a sum of errors that a bound covers.
const DEVIATIONS: f32 = 6.0;

/// Whether a problem's values are first multiplied by a scale and shifted.
fn normalized(problem: &Problem) -> bool {
    problem.op.contraction().is_some_and(|operands| operands.affine.is_some())
}

/// Values of about 1 are rounded to FP16 before they are multiplied by weights of `1.2 / sqrt(K)`
/// on average.
fn rounded_values() -> f32 {
    DEVIATIONS * 1.2 * FP16_ROUNDING / 3f32.sqrt()
}

fn in_halves(problem: &Problem) -> bool {
    problem.inputs[0].ty.dtype == DType::F16
}

/// A normalized copy is stored in the type of its source.
pub fn of_copies(problem: &Problem, _: &Target, _: f32) -> Rounding {
    let abs = if normalized(problem) && in_halves(problem) { rounded_values() } else { 0.0 };
    Rounding { abs, ..Rounding::FP32 }
}

/// Tensor cores truncate addends below the sum's last place, at each step of 8 or 16. FP16 weights
/// of a window over doubled pixels are added to one another and rounded again.
pub fn of_tensor_cores(problem: &Problem, target: &Target, largest: f32) -> Rounding {
    let k = problem.op.weights().first().map_or(0, |weights| {
        let shape = &problem.inputs[*weights].ty.shape;
        shape[1..].iter().product::<usize>()
    });
    let half_constant = problem.inputs.iter().any(|i| i.constant && i.ty.dtype == DType::F16);
    let folds = matches!(problem.op, Op::Conv2d(op) if op.upsample) && half_constant;
    let copies = of_copies(problem, target, largest).abs;
    let rounded = if folds { rounded_values() } else { copies };
    let cut = if in_halves(problem) { largest * k as f32 / 4.0 * f32::EPSILON } else { 0.0 };
    Rounding { abs: rounded + cut, ..Rounding::FP32 }
}

/// Factor by which the epilogue multiplies the errors of sums. GEGLU multiplies a sum by the GELU of
/// another, so that each multiplies the other's error. Sums are about 1, hardly any over 2 where an
/// error is near its bound; a GELU's derivative is about 1; the two errors are independent.
fn of_epilogue(problem: &Problem) -> f32 {
    let epilogue = match problem.op {
        Op::Matmul(op) => &op.epilogue,
        Op::Conv2d(op) => &op.epilogue,
        _ => return 1.0,
    };
    if epilogue.activation == Activation::Geglu { 8f32.sqrt() } else { 1.0 }
}

/// Runs of products are added in FP16. Values are `1 / sqrt(3)` on average, `2 / 3` if normalized,
/// and weights are `2 / sqrt(3 K)`.
pub fn of_half_arithmetic(problem: &Problem, target: &Target, largest: f32) -> Rounding {
    let mean = if normalized(problem) { 2.0 / 3.0 } else { 1.0 / 3f32.sqrt() };
    let halved = DEVIATIONS * mean * 2.0 / 3f32.sqrt() * mean_error(target.half_run);
    let copies = of_copies(problem, target, largest);
    Rounding { abs: (copies.abs + halved) * of_epilogue(problem), ..copies }
}

/// Winograd's transforms multiply by up to 5 and 8 in each direction and cancel. Sums, of about 1,
/// are several times larger before the inverse transform. `winograd2` rounds transformed FP16
/// windows to 11 bits; `winograd4` keeps them in FP32.
pub fn of_winograd(problem: &Problem, _: &Target, _: f32) -> Rounding {
    let rounded = problem.inputs.iter().any(|i| i.constant && i.ty.dtype == DType::F16);
    Rounding { scale: 8.0, abs: if rounded { 4.0 * FP16_ROUNDING } else { 0.0 } }
}

/// Activations are rounded to whole multiples of a 127th of the largest of their block, with even
/// errors.
pub fn of_bytes(problem: &Problem, _: &Target, largest: f32) -> Rounding {
    of_integers(problem, largest, 127.0)
}

/// [`of_bytes`] for 16 bits.
pub fn of_shorts(problem: &Problem, _: &Target, largest: f32) -> Rounding {
    of_integers(problem, largest, 32767.0)
}

/// Weights are `2 / sqrt(3 K)` on average.
fn of_integers(problem: &Problem, largest: f32, steps: f32) -> Rounding {
    let step = largest / steps;
    let errors = DEVIATIONS * step / 12f32.sqrt() * 2.0 / 3f32.sqrt();
    Rounding { abs: errors * of_epilogue(problem), ..Rounding::FP32 }
}
