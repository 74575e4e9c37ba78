//! The ops, one file each. Ops that differ in a line share a table. To add an op: its file or line
//! here, and its line in `ops!` of [`crate::op`].

pub mod attention;
pub mod chain;
pub mod concat;
pub mod conv2d;
pub mod embedding;
pub mod epilogue;
pub mod geglu;
pub mod group_affine;
pub mod group_norm;
pub mod layer_norm;
pub mod matmul;
pub mod permute;
pub mod pointwise;
pub mod reductions;
pub mod scale;
pub mod slice;
pub mod timestep_embedding;
pub mod upsample;

use crate::{IrError, Tensor, TensorType, error::shape_error};

/// Checks the number of inputs.
pub(crate) fn expect_inputs(
    op: &'static str,
    inputs: &[&TensorType],
    expected: usize,
) -> Result<(), IrError> {
    if inputs.len() == expected {
        return Ok(());
    }
    Err(IrError::InputCount { op, expected: expected.to_string(), found: inputs.len() })
}

/// Checks one extent.
pub(crate) fn expect_eq(
    op: &'static str,
    what: &str,
    found: usize,
    expected: usize,
) -> Result<(), IrError> {
    if found == expected {
        return Ok(());
    }
    Err(shape_error(op, format!("{what} is {found}, must be {expected}")))
}

/// Checks that there is exactly one input, with at least `rank` axes and at least one column.
pub(crate) fn expect_one<'a>(
    op: &'static str,
    inputs: &[&'a TensorType],
    rank: usize,
) -> Result<&'a TensorType, IrError> {
    expect_inputs(op, inputs, 1)?;
    expect_rank(op, inputs[0], rank)?;
    Ok(inputs[0])
}

/// Checks that a type has at least `rank` axes, none of them empty.
pub(crate) fn expect_rank(op: &'static str, ty: &TensorType, rank: usize) -> Result<(), IrError> {
    if ty.shape.len() >= rank && !ty.shape.contains(&0) {
        return Ok(());
    }
    Err(shape_error(op, format!("{ty} must have {rank} or more axes, none empty")))
}

/// Checks that the second operand repeats over leading axes of the first: its element count is that
/// of the first, or of trailing axes of the first.
pub(crate) fn expect_repeats(op: &'static str, inputs: &[&TensorType]) -> Result<(), IrError> {
    expect_inputs(op, inputs, 2)?;
    let (a, b) = (inputs[0], inputs[1]);
    let trailing = |from: usize| a.shape[from..].iter().product::<usize>();
    if b.elem_count() > 0 && (0..=a.shape.len()).any(|from| trailing(from) == b.elem_count()) {
        return Ok(());
    }
    Err(shape_error(op, format!("{b} does not repeat over the leading axes of {a}")))
}

/// Applies a function of one element and one repeated element.
pub(crate) fn zip_repeated(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Tensor {
    let data = a.data.iter().zip(b.data.iter().cycle()).map(|(x, y)| f(*x, *y)).collect();
    Tensor::new(&a.shape, data)
}

/// Applies a function to each element.
pub(crate) fn map(x: &Tensor, f: impl Fn(f32) -> f32) -> Tensor {
    Tensor::new(&x.shape, x.data.iter().map(|v| f(*v)).collect())
}

/// Applies a function to each row. All results have `channels` elements.
pub(crate) fn map_rows(x: &Tensor, channels: usize, f: impl Fn(&[f32]) -> Vec<f32>) -> Tensor {
    let mut shape = x.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = channels;
    }
    Tensor::new(&shape, x.data.chunks_exact(x.channels()).flat_map(f).collect())
}

/// Mean and biased variance, in two passes in `f64`.
pub(crate) fn moments(values: impl ExactSizeIterator<Item = f32> + Clone) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.clone().map(f64::from).sum::<f64>() / count;
    let variance = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance)
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::{OpDef, Tensor, TensorType};

    /// Asserts that the op's result has the inferred shape and these elements, to 1e-6.
    pub fn assert_eval(op: &impl OpDef, inputs: &[&Tensor], shape: &[usize], expected: &[f64]) {
        let types: Vec<_> = inputs.iter().map(|t| TensorType::f32(&t.shape)).collect();
        let types: Vec<_> = types.iter().collect();
        let found = op.eval(inputs);
        assert_eq!(op.infer(&types).unwrap().shape, shape, "inferred shape");
        assert_eq!(found.shape, shape, "evaluated shape");
        assert_eq!(found.data.len(), expected.len(), "element count");
        for (i, (f, e)) in found.data.iter().zip(expected).enumerate() {
            let allowed = 1e-6 * e.abs().max(1.0);
            assert!((f64::from(*f) - e).abs() <= allowed, "element {i}: {f}, expected {e}");
        }
    }

    /// The message of the rule that inputs of these shapes break.
    pub fn error(op: &impl OpDef, shapes: &[&[usize]]) -> String {
        let types: Vec<_> = shapes.iter().map(|s| TensorType::f32(s)).collect();
        op.infer(&types.iter().collect::<Vec<_>>()).unwrap_err().to_string()
    }
}
