//! Errors of graph construction.

use thiserror::Error;

/// A broken rule of the IR.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum IrError {
    /// An op was given the wrong number of inputs.
    #[error("{op}: takes {expected} inputs, got {found}")]
    InputCount {
        /// Name of the op.
        op: &'static str,
        /// Expected inputs.
        expected: String,
        /// Number of inputs given.
        found: usize,
    },
    /// The shapes of an op's inputs do not fit.
    #[error("{op}: {what}")]
    Shape {
        /// Name of the op.
        op: &'static str,
        /// The rule and the shapes, as text.
        what: String,
    },
    /// A graph is not well formed.
    #[error("node '{node}': {what}")]
    Graph {
        /// Name of the node.
        node: String,
        /// The broken rule.
        what: String,
    },
}

/// Makes a shape error.
pub(crate) fn shape_error(op: &'static str, what: impl Into<String>) -> IrError {
    IrError::Shape { op, what: what.into() }
}
