//! The graph. A node has one output. An edge is labelled with the input slot of its reader.

use petgraph::Direction::{Incoming, Outgoing};
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use std::collections::{BTreeSet, HashMap};

use crate::{IrError, Op, Tensor, TensorType};

/// A node and its value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ValueId(NodeIndex<u32>);

impl ValueId {
    /// A small number, unique in its graph.
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// The recipe of a constant from a checkpoint. Constants are evaluated one at a time when weights
/// are packed.
#[derive(Clone, PartialEq, Debug)]
pub enum WeightExpr {
    /// A tensor of the checkpoint in row-major order, by its key in Stability's single-file layout.
    /// The node's type may be another view of the elements.
    Tensor {
        /// Key.
        key: String,
        /// Shape in the checkpoint.
        shape: Vec<usize>,
    },
    /// Values known to the compiler.
    Literal(Tensor),
    /// Concatenation along axis 0.
    Concat(Vec<WeightExpr>),
    /// An op applied to constants, evaluated by the op's reference. Each constant has its type
    /// beside it.
    Apply(Box<Op>, Vec<(WeightExpr, TensorType)>),
}

impl WeightExpr {
    /// Every `(key, shape)` that the expression reads from the checkpoint.
    pub fn tensors(&self) -> Vec<(&str, &[usize])> {
        match self {
            WeightExpr::Tensor { key, shape } => vec![(key, shape)],
            WeightExpr::Literal(_) => vec![],
            WeightExpr::Concat(parts) => parts.iter().flat_map(|p| p.tensors()).collect(),
            WeightExpr::Apply(_, args) => args.iter().flat_map(|(p, _)| p.tensors()).collect(),
        }
    }
}

/// The kind of a node.
#[derive(Clone, PartialEq, Debug)]
pub enum NodeKind {
    /// An input of the graph.
    Input,
    /// A constant.
    Weight(WeightExpr),
    /// The result of an op.
    Op(Op),
}

/// A node.
#[derive(Clone, PartialEq, Debug)]
pub struct Node {
    /// Name, unique in its graph: the module path of an op, the port's name of an input.
    pub name: String,
    /// Kind of the node.
    pub kind: NodeKind,
    /// Type of the node's value.
    pub ty: TensorType,
}

impl Node {
    /// The op, if it is one.
    pub fn op(&self) -> Option<&Op> {
        if let NodeKind::Op(op) = &self.kind { Some(op) } else { None }
    }

    /// Whether the value is known at compile time.
    pub fn is_weight(&self) -> bool {
        matches!(self.kind, NodeKind::Weight(_))
    }
}

/// A typed static graph.
#[derive(Clone, Debug)]
pub struct Graph {
    /// Name of the network.
    pub name: String,
    graph: StableDiGraph<Node, usize, u32>,
    outputs: Vec<(String, ValueId)>,
    names: HashMap<String, usize>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        let (graph, outputs, names) = Default::default();
        Self { name: name.into(), graph, outputs, names }
    }

    fn add(&mut self, name: String, kind: NodeKind, ty: TensorType) -> ValueId {
        let count = self.names.entry(name.clone()).or_insert(0);
        *count += 1;
        let name = if *count == 1 { name } else { format!("{name}#{count}") };
        ValueId(self.graph.add_node(Node { name, kind, ty }))
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.add(name.to_string(), NodeKind::Input, ty)
    }

    /// Adds a constant.
    pub fn weight(&mut self, name: &str, expr: WeightExpr, ty: TensorType) -> ValueId {
        self.add(name.to_string(), NodeKind::Weight(expr), ty)
    }

    /// Adds a tensor of the checkpoint with shape `shape`, seen as shape `view` if given.
    pub fn tensor(&mut self, key: &str, shape: &[usize], view: Option<&[usize]>) -> ValueId {
        let expr = WeightExpr::Tensor { key: key.to_string(), shape: shape.to_vec() };
        self.weight(key, expr, TensorType::f32(view.unwrap_or(shape)))
    }

    /// Adds an op and infers its type. Errors name the node.
    pub fn push(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> Result<ValueId, IrError> {
        let op = op.into();
        let ty = self.infer(name, &op, inputs)?;
        let id = self.add(name.to_string(), NodeKind::Op(op), ty);
        self.connect(id, inputs);
        Ok(id)
    }

    fn infer(&self, name: &str, op: &Op, inputs: &[ValueId]) -> Result<TensorType, IrError> {
        let types: Vec<&TensorType> = inputs.iter().map(|i| self.ty(*i)).collect();
        op.infer(&types).map_err(|e| IrError::Graph { node: name.to_string(), what: e.to_string() })
    }

    fn connect(&mut self, id: ValueId, inputs: &[ValueId]) {
        for (slot, input) in inputs.iter().enumerate() {
            self.graph.add_edge(input.0, id.0, slot);
        }
    }

    /// Replaces the op and the inputs of a node, and infers its type again.
    pub fn rewrite(
        &mut self,
        id: ValueId,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> Result<(), IrError> {
        let op = op.into();
        let ty = self.infer(&self.node(id).name.clone(), &op, inputs)?;
        let old: Vec<_> = self.graph.edges_directed(id.0, Incoming).map(|e| e.id()).collect();
        old.into_iter().for_each(|e| {
            self.graph.remove_edge(e);
        });
        self.connect(id, inputs);
        let node = &mut self.graph[id.0];
        (node.kind, node.ty) = (NodeKind::Op(op), ty);
        Ok(())
    }

    /// Names an output of the graph.
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.to_string(), value));
    }

    /// The outputs by name.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// The inputs in order of creation.
    pub fn inputs(&self) -> Vec<ValueId> {
        self.ids().filter(|i| matches!(self.node(*i).kind, NodeKind::Input)).collect()
    }

    /// All nodes in order of creation.
    pub fn ids(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.graph.node_indices().map(ValueId)
    }

    /// A node.
    pub fn node(&self, id: ValueId) -> &Node {
        &self.graph[id.0]
    }

    /// A node, mutable. A change of the type must leave the graph valid.
    pub fn node_mut(&mut self, id: ValueId) -> &mut Node {
        &mut self.graph[id.0]
    }

    /// Type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.graph[id.0].ty
    }

    /// The operands of a node, by slot.
    pub fn operands(&self, id: ValueId) -> Vec<ValueId> {
        let mut edges: Vec<_> = self
            .graph
            .edges_directed(id.0, Incoming)
            .map(|e| (*e.weight(), ValueId(e.source())))
            .collect();
        edges.sort();
        edges.into_iter().map(|(_, v)| v).collect()
    }

    /// The sorted slots of a node's incoming edges; `0..n` in a well-formed graph.
    pub fn operand_slots(&self, id: ValueId) -> Vec<usize> {
        let mut slots: Vec<_> =
            self.graph.edges_directed(id.0, Incoming).map(|e| *e.weight()).collect();
        slots.sort_unstable();
        slots
    }

    /// The readers of a value, each once, in order of creation.
    pub fn users(&self, id: ValueId) -> Vec<ValueId> {
        let set: BTreeSet<_> = self.graph.neighbors_directed(id.0, Outgoing).collect();
        set.into_iter().map(ValueId).collect()
    }

    /// Whether the value is an output of the graph.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|(_, v)| *v == id)
    }

    /// Replaces `old` by `new` in all readers and outputs.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let edges: Vec<_> = self
            .graph
            .edges_directed(old.0, Outgoing)
            .map(|e| (e.id(), e.target(), *e.weight()))
            .collect();
        for (edge, target, slot) in edges {
            if target != new.0 {
                self.graph.remove_edge(edge);
                self.graph.add_edge(new.0, target, slot);
            }
        }
        self.outputs.iter_mut().filter(|(_, v)| *v == old).for_each(|(_, v)| *v = new);
    }

    /// Removes every op and constant that no output depends on. Inputs stay. Returns the number of
    /// removed nodes.
    pub fn remove_dead(&mut self) -> usize {
        let mut live: BTreeSet<NodeIndex<u32>> = BTreeSet::new();
        let mut stack: Vec<_> = self.outputs.iter().map(|(_, v)| v.0).collect();
        while let Some(n) = stack.pop() {
            if live.insert(n) {
                stack.extend(self.graph.neighbors_directed(n, Incoming));
            }
        }
        let before = self.graph.node_count();
        self.graph.retain_nodes(|g, n| live.contains(&n) || matches!(g[n].kind, NodeKind::Input));
        before - self.graph.node_count()
    }

    /// The nodes in topological order. Ties go to the node that was created first.
    ///
    /// Errors: the graph has a cycle.
    pub fn topological(&self) -> Result<Vec<ValueId>, IrError> {
        let mut missing: HashMap<_, usize> = HashMap::new();
        let mut ready = BTreeSet::new();
        for n in self.graph.node_indices() {
            let count = self.graph.edges_directed(n, Incoming).count();
            missing.insert(n, count);
            if count == 0 {
                ready.insert(n);
            }
        }
        let mut order = Vec::with_capacity(missing.len());
        while let Some(n) = ready.pop_first() {
            order.push(ValueId(n));
            for e in self.graph.edges_directed(n, Outgoing) {
                let left = missing.get_mut(&e.target()).expect("every node was counted");
                *left -= 1;
                if *left == 0 {
                    ready.insert(e.target());
                }
            }
        }
        if order.len() == self.graph.node_count() {
            return Ok(order);
        }
        Err(IrError::Graph { node: self.name.clone(), what: "the graph has a cycle".to_string() })
    }
}
