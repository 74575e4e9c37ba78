//! Errors of graph construction.

use thiserror::Error;

/// A rule of the IR that was broken.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum IrError {
    /// An op was given the wrong number of inputs.
    #[error("{op}: takes {expected} inputs, got {found}")]
    InputCount {
        /// Name of the op.
        op: &'static str,
        /// What it takes.
        expected: String,
        /// What it got.
        found: usize,
    },
    /// An op was given inputs whose shapes do not fit.
    #[error("{op}: {what}")]
    Shape {
        /// Name of the op.
        op: &'static str,
        /// The rule and the shapes, for people.
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

/// Shorthand for a shape error.
pub(crate) fn shape_error(op: &'static str, what: impl Into<String>) -> IrError {
    IrError::Shape { op, what: what.into() }
}
