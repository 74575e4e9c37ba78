//! Live ranges: the buffers, and the launches over which each is live.
//!
//! Time here counts launches over all networks in execution order. Loads and frees of weights are
//! inserted between launches later and change no order.

use anyhow::Result;
use kiln_bundle::plan::{BlockKind, BufferKind, Role, Slice};
use kiln_ir::{NodeKind, ValueId};
use std::collections::HashMap;
use std::ops::Range;

use super::blocks::Blocks;
use super::edges::{Edge, edges};
use super::lower::{LoweredNetwork, Work};

/// A buffer without an address.
#[derive(Clone, Debug)]
pub struct BufferDraft {
    /// Name of the value in the buffer.
    pub name: String,
    /// Kind of the contents.
    pub kind: BufferKind,
    /// Length in bytes.
    pub len_bytes: u64,
    /// First launch of the live range.
    pub lower: u32,
    /// First launch after the live range.
    pub upper: u32,
}

/// All buffers except resident weights, which are chosen later.
#[derive(Default)]
pub struct Lifetimes {
    /// Sources of each network's inputs, in the order of the graph's inputs.
    pub edges: Vec<Vec<Edge>>,
    /// Half-open interval of launches of each network.
    pub spans: Vec<(u32, u32)>,
    /// The buffers.
    pub buffers: Vec<BufferDraft>,
    /// Index of the buffer of each value, by network.
    pub values: HashMap<(usize, ValueId), usize>,
    /// Indices of the buffers of each op's scratch memory, by network and op.
    pub scratch: HashMap<(usize, usize), Vec<usize>>,
    /// Index of the buffer of each small block.
    pub small: HashMap<usize, usize>,
}

impl Lifetimes {
    /// Computes the live ranges for networks in execution order.
    ///
    /// Errors: an input has no source.
    pub fn new(networks: &[LoweredNetwork], blocks: &Blocks) -> Result<Self> {
        let mut this = Self { edges: edges(networks)?, ..Self::default() };
        let mut at = 0;
        for network in networks {
            let count: usize = network.ops.iter().map(|op| op.launch_count()).sum();
            this.spans.push((at, at + count as u32));
            at += count as u32;
        }
        for index in 0..networks.len() {
            this.inputs(networks, index);
            this.ops(networks, index);
            for (_, id) in networks[index].source.graph.outputs() {
                let buffer = this.values[&(index, *id)];
                this.extend(buffer, this.spans[index].1);
                this.buffers[buffer].kind = BufferKind::Port;
            }
        }
        this.outlive_the_loop(networks);
        for (block, draft) in blocks.drafts.iter().enumerate() {
            if draft.kind == BlockKind::Weights {
                continue;
            }
            let (lower, upper) = this.weight_span(networks, draft.network);
            let (name, kind) = (draft.name.clone(), BufferKind::Constants);
            let len_bytes = draft.len_bytes;
            let id = this.push(BufferDraft { name, kind, len_bytes, lower, upper });
            this.small.insert(block, id);
        }
        Ok(this)
    }

    /// Adds the buffer for the factors of LoRAs, live all the time, if it has a length.
    pub fn add_factors(&mut self, len_bytes: u64) {
        let (name, kind) = ("loras".to_string(), BufferKind::Factors);
        let upper = self.spans.last().map_or(0, |span| span.1);
        if len_bytes > 0 {
            self.push(BufferDraft { name, kind, len_bytes, lower: 0, upper });
        }
    }

    /// Keeps the values that networks of the sampler's loop read of each other over the networks of
    /// the loop that come before their producer, as these may run again before the value is read:
    /// the timestep projection's outputs over the tiny decoder, the denoiser's over both.
    fn outlive_the_loop(&mut self, networks: &[LoweredNetwork]) {
        let looped = looped(networks);
        let read = looped.clone().flat_map(|index| &self.edges[index]);
        let read = read.filter_map(|edge| match *edge {
            Edge::Output { network, output, .. } if looped.contains(&network) => {
                let (_, value) = networks[network].source.graph.outputs()[output];
                Some((network, self.values[&(network, value)]))
            }
            _ => None,
        });
        let first = self.spans.get(looped.start).map_or(0, |span| span.0);
        for (producer, buffer) in read.collect::<Vec<_>>() {
            if producer > looped.start {
                let buffer = &mut self.buffers[buffer];
                buffer.lower = buffer.lower.min(first);
            }
        }
    }

    /// Interval over which resident weights of a network must stay. The timestep projection and
    /// variants of the denoiser may run between two passes of the denoiser, so the interval of its
    /// weights includes them.
    pub fn weight_span(&self, networks: &[LoweredNetwork], index: usize) -> (u32, u32) {
        let (lower, upper) = self.spans[index];
        if networks[index].source.role != Role::Denoiser {
            return (lower, upper);
        }
        let projection = networks.iter().position(|n| n.source.role == Role::TimestepProjection);
        let lower = projection.map_or(lower, |projection| lower.min(self.spans[projection].0));
        (lower, self.spans[looped(networks).end - 1].1)
    }

    fn push(&mut self, draft: BufferDraft) -> usize {
        self.buffers.push(draft);
        self.buffers.len() - 1
    }

    fn extend(&mut self, buffer: usize, upper: u32) {
        let draft = &mut self.buffers[buffer];
        draft.upper = draft.upper.max(upper);
    }

    fn inputs(&mut self, networks: &[LoweredNetwork], index: usize) {
        let network = &networks[index];
        let (lower, upper) = self.spans[index];
        let repeats = network.source.role.is_denoiser();
        let looped = looped(networks);
        let last = if looped.contains(&index) { looped.end - 1 } else { index };
        let read_until = self.spans[last].1;
        for (input, id) in network.source.graph.inputs().into_iter().enumerate() {
            let node = network.source.graph.node(id);
            if let Edge::Output { network: from, output, slice } = self.edges[index][input] {
                let (_, value) = networks[from].source.graph.outputs()[output];
                let buffer = self.values[&(from, value)];
                if slice != Slice::InPlace || repeats {
                    self.extend(buffer, read_until);
                }
                if slice == Slice::InPlace {
                    self.values.insert((index, id), buffer);
                    continue;
                }
            }
            let upper = if repeats { upper } else { lower + 1 };
            let len_bytes = node.ty.size_bytes();
            let name = format!("{}.{}", network.source.name, node.name);
            let kind = BufferKind::Port;
            let buffer = self.push(BufferDraft { name, kind, len_bytes, lower, upper });
            self.values.insert((index, id), buffer);
        }
    }

    fn ops(&mut self, networks: &[LoweredNetwork], index: usize) {
        let network = &networks[index];
        let graph = &network.source.graph;
        let mut now = self.spans[index].0;
        for (op_index, op) in network.ops.iter().enumerate() {
            let end = now + op.launch_count() as u32;
            for operand in graph.operands(op.id) {
                if !matches!(graph.node(operand).kind, NodeKind::Weight(_)) {
                    let buffer = self.values[&(index, operand)];
                    self.extend(buffer, end);
                }
            }
            let node = graph.node(op.id);
            let draft = |name: String, kind, len_bytes| BufferDraft {
                name,
                kind,
                len_bytes,
                lower: now,
                upper: end,
            };
            let name = format!("{}.{}", network.source.name, node.name);
            if let Work::Kernels { lowering, .. } = &op.work {
                let scratch = lowering
                    .scratch_bytes
                    .iter()
                    .enumerate()
                    .map(|(i, bytes)| {
                        self.push(draft(format!("{name}.scratch{i}"), BufferKind::Scratch, *bytes))
                    })
                    .collect();
                self.scratch.insert((index, op_index), scratch);
            }
            let buffer = match in_place(network, op_index) {
                Some(operand) => self.values[&(index, operand)],
                None => self.push(draft(name, BufferKind::Activation, node.ty.size_bytes())),
            };
            self.extend(buffer, end);
            self.values.insert((index, op.id), buffer);
            now = end;
        }
    }
}

/// The networks that may run again within the sampler's loop.
fn looped(networks: &[LoweredNetwork]) -> Range<usize> {
    let is_looped = |network: &LoweredNetwork| network.source.role.is_looped();
    let first = networks.iter().position(is_looped).unwrap_or(0);
    first..networks.iter().rposition(is_looped).map_or(first, |last| last + 1)
}

/// The value whose memory an op's result reuses. The same network computed it, no later op reads
/// it, and the op's kernels allow it.
fn in_place(network: &LoweredNetwork, op_index: usize) -> Option<ValueId> {
    let graph = &network.source.graph;
    let op = &network.ops[op_index];
    let Work::Kernels { in_place, .. } = &op.work else { return None };
    let operands = graph.operands(op.id);
    let dies = |value: ValueId| {
        let later = network.ops[op_index + 1..].iter().map(|op| op.id);
        let users: Vec<_> = graph.users(value);
        graph.node(value).op().is_some()
            && !graph.is_output(value)
            && !later.into_iter().any(|id| users.contains(&id))
    };
    let only_there = |value: ValueId| {
        operands.iter().enumerate().all(|(i, v)| *v != value || in_place.contains(&i))
    };
    in_place.iter().map(|i| operands[*i]).find(|value| dies(*value) && only_there(*value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceProfile;
    use crate::model::NetworkGraph;
    use crate::plan::lower::{LoweringCache, lower};
    use crate::storage::Storage;
    use crate::strategy::{ReadPrice, Scratch, Selection};
    use kiln_ir::ops::matmul::Matmul;
    use kiln_ir::ops::pointwise::Silu;
    use kiln_ir::ops::{epilogue::Epilogue, pointwise::Add};
    use kiln_ir::{Graph, TensorType, WeightExpr};

    /// Builds `silu(x) W + residual`. Returns whether the sum reuses the residual's memory.
    fn shares(build: impl Fn(&mut Graph, ValueId, ValueId) -> (ValueId, ValueId)) -> bool {
        let mut graph = Graph::new("test");
        let x = graph.input("latent", TensorType::f32(&[8, 64]));
        let expr = WeightExpr::Tensor { key: "w".into(), shape: vec![64, 64] };
        let w = graph.weight("w", expr, TensorType::f32(&[64, 64]));
        let (residual, out) = build(&mut graph, x, w);
        graph.output("y", out);
        let source = NetworkGraph { name: "test".into(), role: Role::Decoder, graph };
        let (_, profile) = DeviceProfile::load("cpu-avx512").unwrap();
        let selection = Selection {
            scratch: Scratch::Unlimited,
            max_weight_bytes: 1 << 20,
            read_price: ReadPrice::FULL,
        };
        let cache = &mut LoweringCache::default();
        let network = lower(source, &profile, Storage::FP32, selection, cache).unwrap();
        let sum = network.source.graph.ids().find(|id| {
            let op = network.source.graph.node(*id).op();
            matches!(op, Some(kiln_ir::Op::Matmul(op)) if op.epilogue.residual)
        });
        let mut blocks = Blocks::default();
        blocks.add(0, &network, 64);
        let lifetimes = Lifetimes::new(&[network], &blocks).unwrap();
        let of = |value| lifetimes.values[&(0, value)];
        of(residual) == of(sum.unwrap())
    }

    fn sum(graph: &mut Graph, x: ValueId, w: ValueId, residual: ValueId) -> ValueId {
        let epilogue = Epilogue { residual: true, ..Epilogue::default() };
        graph.push("sum", Matmul { sources: 1, epilogue }, &[x, w, residual]).unwrap()
    }

    #[test]
    fn a_sum_takes_the_memory_of_a_residual_that_nothing_else_reads() {
        let silu = |graph: &mut Graph, x| graph.push("residual", Silu, &[x]).unwrap();
        assert!(shares(|graph, x, w| {
            let residual = silu(graph, x);
            (residual, sum(graph, x, w, residual))
        }));
        // A later op reads the residual.
        assert!(!shares(|graph, x, w| {
            let residual = silu(graph, x);
            let y = sum(graph, x, w, residual);
            (residual, graph.push("later", Add, &[y, residual]).unwrap())
        }));
        // The sum multiplies and adds the same value.
        assert!(!shares(|graph, x, w| {
            let residual = silu(graph, x);
            (residual, sum(graph, residual, w, residual))
        }));
        // The host wrote the value.
        assert!(!shares(|graph, x, w| (x, sum(graph, x, w, x))));
    }
}
