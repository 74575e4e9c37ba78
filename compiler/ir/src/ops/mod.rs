//! The ops, one file each. To add one: its file here and its line in `ops!` of [`crate::op`].

pub mod attention;
pub mod conv2d;
pub mod epilogue;
pub mod matmul;

use crate::{IrError, TensorType, error::shape_error};

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
