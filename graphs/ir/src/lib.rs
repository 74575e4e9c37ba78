//! The definition of a program: typed static graphs over a closed set of ops.
//!
//! # Semantics
//! A [`Graph`] is directed and acyclic. A node is an input, a constant ([`WeightExpr`]) or an
//! [`Op`] applied to other nodes. It has exactly one output, whose [`TensorType`] is fixed when the
//! node is created. Shapes are static. A *value* and its node share one id.
//!
//! Activations are channels last: feature maps are `[N, H, W, C]`, token sequences `[N, L, C]`.
//! *Rows* are all axes except the last, taken together. Linear layers, 1x1 convolutions and
//! attention therefore read a feature map as a sequence of tokens without moving it. Axis 0 is the
//! batch.
//!
//! Every op is one file in [`ops`] or one line of a table there: attributes, shape rule, arithmetic
//! count, and a plain reference evaluation in `f32` ([`Op::eval`]), with which kernels are
//! compared.
#![forbid(unsafe_code)]

pub mod dot;
pub mod error;
pub mod graph;
pub mod op;
pub mod operands;
pub mod ops;
mod parallel;
pub mod reference;
pub mod tensor;
pub mod text;
pub mod verify;

pub use error::IrError;
pub use graph::{Graph, Node, NodeKind, ValueId, WeightExpr};
pub use op::{Op, OpDef};
pub use operands::{ContractionOperands, NormOperands};
pub use tensor::{DType, Tensor, TensorType};
pub use verify::verify;
