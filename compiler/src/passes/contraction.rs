//! A `conv2d` or `matmul` node with its operands by role, for passes that fuse.

use anyhow::Result;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::{ContractionOperands, Graph, Op, ValueId};

/// A contraction of a graph, taken apart.
#[derive(Clone)]
pub struct ContractionNode {
    /// The node's op. The fields below replace its source count, prologue, epilogue and upsampling.
    pub op: Op,
    /// Values that are read as one, concatenated along channels.
    pub sources: Vec<ValueId>,
    /// Scales and shifts of the sources, and the activation after them (convolutions only).
    pub prologue: Option<(ValueId, Activation)>,
    /// Weights.
    pub weight: ValueId,
    /// Bias.
    pub bias: Option<ValueId>,
    /// Row vector, and its first column that is added.
    pub row: Option<(ValueId, usize)>,
    /// Activation.
    pub activation: Activation,
    /// Residual.
    pub residual: Option<ValueId>,
    /// Whether the feature map is read doubled (convolutions only).
    pub upsample: bool,
}

impl ContractionNode {
    /// Takes a node apart. `None` if it is not a contraction.
    pub fn of(graph: &Graph, id: ValueId) -> Option<Self> {
        let op = graph.node(id).op()?.clone();
        let values = graph.operands(id);
        let operands = op.contraction()?.map(|index| values[index]);
        let (prologue, epilogue, upsample) = match &op {
            Op::Conv2d(c) => (c.prologue, &c.epilogue, c.upsample),
            Op::Matmul(m) => (None, &m.epilogue, false),
            _ => return None,
        };
        Some(Self {
            sources: operands.sources,
            prologue: operands.affine.zip(prologue),
            weight: operands.weights,
            bias: operands.bias,
            row: operands.row.zip(epilogue.row_offset),
            activation: epilogue.activation,
            residual: operands.residual,
            upsample,
            op,
        })
    }

    /// Whether the epilogue is empty.
    pub fn is_bare(&self) -> bool {
        self.bias.is_none() && self.is_linear()
    }

    /// Whether the epilogue has at most a bias.
    pub fn is_linear(&self) -> bool {
        self.row.is_none() && self.activation == Activation::None && self.residual.is_none()
    }

    /// Whether the op is a convolution.
    pub fn is_conv(&self) -> bool {
        matches!(self.op, Op::Conv2d(_))
    }

    /// Replaces node `id` by the contraction.
    pub fn rewrite(self, graph: &mut Graph, id: ValueId) -> Result<()> {
        let (op, inputs) = self.assemble();
        Ok(graph.rewrite(id, op, &inputs)?)
    }

    /// Adds the contraction as a new node.
    pub fn push(self, graph: &mut Graph, name: &str) -> Result<ValueId> {
        let (op, inputs) = self.assemble();
        Ok(graph.push(name, op, &inputs)?)
    }

    fn assemble(self) -> (Op, Vec<ValueId>) {
        let epilogue = Epilogue {
            bias: self.bias.is_some(),
            row_offset: self.row.map(|(_, offset)| offset),
            activation: self.activation,
            residual: self.residual.is_some(),
        };
        let mut op = self.op;
        match &mut op {
            Op::Conv2d(c) => {
                (c.sources, c.epilogue, c.upsample) = (self.sources.len(), epilogue, self.upsample);
                c.prologue = self.prologue.map(|(_, activation)| activation);
            }
            Op::Matmul(m) => (m.sources, m.epilogue) = (self.sources.len(), epilogue),
            _ => unreachable!("made from a contraction"),
        }
        let operands = ContractionOperands {
            sources: self.sources,
            affine: self.prologue.map(|(value, _)| value),
            weights: self.weight,
            bias: self.bias,
            row: self.row.map(|(value, _)| value),
            residual: self.residual,
        };
        (op, operands.in_order())
    }
}
