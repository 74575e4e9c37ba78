//! Storage of each tensor: element types, and scales of INT8 weights.

use kiln_ir::{DType, Graph, NodeKind, Op, ValueId};
use kiln_kernels::Operand;

use std::collections::BTreeSet;

use crate::constants::name;
use crate::quantize::{Choices, Stored};

/// Names of constants that stay in FP32 because FP16 cannot hold their values.
pub type Wide = BTreeSet<String>;

static NONE: Wide = Wide::new();

/// Storage types of a compilation.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// Storage of the weights of contractions. Norms and biases stay in FP32.
    pub weights: Weights<'a>,
    /// The narrowest type of values between ops.
    pub activations: DType,
    /// Constants that are stored in FP32 instead of FP16.
    pub wide: &'a Wide,
}

/// Storage of weights.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// All weights in one floating-point type.
    Float(DType),
    /// Weights of contractions by individual choice, other matrices in FP16.
    Int8(&'a Choices),
}

impl<'a> Storage<'a> {
    /// Weights and activations in FP32.
    pub const FP32: Self = Self::float(DType::F32);
    /// Weights in FP16. Activations too, if a strategy says so.
    pub const FP16: Self = Self::float(DType::F16);

    /// Weights in a floating-point type, which is also the narrowest type of activations.
    pub const fn float(dtype: DType) -> Self {
        Self { weights: Weights::Float(dtype), activations: dtype, wide: &NONE }
    }

    /// Weights in INT8 by choice. Activations in FP16, if a strategy says so.
    pub const fn int8(choices: &'a Choices) -> Self {
        Self { weights: Weights::Int8(choices), activations: DType::F16, wide: &NONE }
    }

    /// Storage of a constant operand of an op.
    pub fn of(self, graph: &Graph, op: ValueId, operand: usize) -> Stored {
        let stored = self.narrow(graph, op, operand);
        match &graph.node(graph.operands(op)[operand]).kind {
            NodeKind::Weight(expr)
                if stored.dtype == DType::F16 && self.wide.contains(&name(expr)) =>
            {
                Stored { dtype: DType::F32, scale_group: None, relative_error: None }
            }
            _ => stored,
        }
    }

    /// [`Storage::of`] for values that FP16 can hold. Vectors stay in FP32, because only matrices
    /// and filters are large.
    fn narrow(self, graph: &Graph, op: ValueId, operand: usize) -> Stored {
        let node = graph.node(graph.operands(op)[operand]);
        let plain = |dtype| Stored { dtype, scale_group: None, relative_error: None };
        let choices = match self.weights {
            _ if node.ty.dtype != DType::F32 => return plain(node.ty.dtype),
            _ if node.ty.shape.len() < 2 => return plain(DType::F32),
            Weights::Float(dtype) => return plain(dtype),
            Weights::Int8(choices) => choices,
        };
        match &node.kind {
            NodeKind::Weight(expr) if weight_indices(graph, op).contains(&operand) => {
                choices.of(expr)
            }
            _ => plain(DType::F16),
        }
    }

    /// The operands of an op for kernels.
    pub fn operands(self, graph: &Graph, op: ValueId) -> Vec<Operand> {
        let operand = |(index, value): (usize, ValueId)| {
            let mut ty = graph.ty(value).clone();
            if !graph.node(value).is_weight() {
                return Operand::new(ty);
            }
            let stored = self.of(graph, op, index);
            let scale_group = match stored.dtype {
                DType::I8 => stored.scale_group.unwrap_or_else(|| ty.elem_count() / ty.shape[0]),
                _ => 0,
            };
            ty.dtype = stored.dtype;
            Operand { scale_group, ..Operand::constant(ty) }
        };
        graph.operands(op).into_iter().enumerate().map(operand).collect()
    }
}

/// Indices of an op's operands that are weights of a contraction.
pub fn weight_indices(graph: &Graph, op: ValueId) -> Vec<usize> {
    graph.node(op).op().map(Op::weights).unwrap_or_default()
}
