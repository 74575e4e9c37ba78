//! A view of `conv2d` and `matmul` nodes that the fusing passes share: named operands instead of
//! slots.

use anyhow::Result;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::{Graph, Op, ValueId};

/// A contraction taken apart.
#[derive(Clone)]
pub struct Contraction {
    /// The node's op; its source count, prologue, epilogue and upsampling are replaced by the fields below.
    pub op: Op,
    /// Values read as one, concatenated along channels.
    pub sources: Vec<ValueId>,
    /// Scales and shifts of what is read, and the activation behind them (convolutions only).
    pub prologue: Option<(ValueId, Activation)>,
    /// Weights.
    pub weight: ValueId,
    /// Bias.
    pub bias: Option<ValueId>,
    /// Row vector and its first column.
    pub row: Option<(ValueId, usize)>,
    /// Activation.
    pub activation: Activation,
    /// Residual.
    pub residual: Option<ValueId>,
    /// Reads the picture doubled (convolutions only).
    pub upsample: bool,
}

impl Contraction {
    /// Takes a node apart; `None` if it is not a contraction.
    pub fn of(graph: &Graph, id: ValueId) -> Option<Self> {
        let op = graph.node(id).op()?.clone();
        let (source_count, prologue, epilogue, upsample) = match &op {
            Op::Conv2d(c) => (c.sources, c.prologue, c.epilogue.clone(), c.upsample),
            Op::Matmul(m) => (m.sources, None, m.epilogue.clone(), false),
            _ => return None,
        };
        let mut operands = graph.operands(id).into_iter();
        let sources = operands.by_ref().take(source_count).collect();
        let mut next = || operands.next().expect("a verified graph has all operands");
        Some(Self {
            sources,
            prologue: prologue.map(|activation| (next(), activation)),
            weight: next(),
            bias: epilogue.bias.then(&mut next),
            row: epilogue.row_offset.map(|offset| (next(), offset)),
            activation: epilogue.activation,
            residual: epilogue.residual.then(&mut next),
            upsample,
            op,
        })
    }

    /// Index of the weights among the operands.
    pub fn weight_index(&self) -> usize {
        self.sources.len() + usize::from(self.prologue.is_some())
    }

    /// Whether nothing follows the sum.
    pub fn is_bare(&self) -> bool {
        self.bias.is_none() && self.is_linear()
    }

    /// Whether at most a bias follows the sum.
    pub fn is_linear(&self) -> bool {
        self.row.is_none() && self.activation == Activation::None && self.residual.is_none()
    }

    /// Whether it is a convolution.
    pub fn is_conv(&self) -> bool {
        matches!(self.op, Op::Conv2d(_))
    }

    /// Puts it together again in place of node `id`.
    pub fn rewrite(self, graph: &mut Graph, id: ValueId) -> Result<()> {
        let (op, inputs) = self.assemble();
        Ok(graph.rewrite(id, op, &inputs)?)
    }

    /// Adds it as a new node.
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
        let mut inputs = self.sources;
        inputs.extend(self.prologue.map(|(value, _)| value));
        inputs.push(self.weight);
        inputs.extend(self.bias);
        inputs.extend(self.row.map(|(value, _)| value));
        inputs.extend(self.residual);
        (op, inputs)
    }
}
