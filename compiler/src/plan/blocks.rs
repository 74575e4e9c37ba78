//! Groups the constants of a network into blocks, which are loaded and freed as a whole.
//!
//! The large constants of an op form one block for each launch that first reads them. An op whose
//! weights are split over launches therefore streams piece by piece. The small constants of a
//! network (biases, norms) form one block that stays resident while the network runs.

use anyhow::{Context, Result};
use kiln_bundle::plan::BlockKind;
use kiln_kernels::Argument;
use std::collections::HashMap;

use super::lower::{LoweredNetwork, Work};

/// Smallest region with a read of its own, in bytes.
const SMALL_BYTES: u64 = 64 << 10;

/// A region of a packed constant, and its position in a block.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Index into [`LoweredNetwork::ops`].
    pub op: usize,
    /// Index of the op's input.
    pub input: usize,
    /// Start in the packed constant, in bytes.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Start in the block, in bytes.
    pub at_bytes: u64,
}

/// A network's use of a block.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Index of the network.
    pub network: usize,
    /// First launch that reads the block, counted over the network.
    pub first: u32,
    /// Last launch that reads the block.
    pub last: u32,
}

/// A block before its bytes exist.
#[derive(Clone, Debug)]
pub struct BlockDraft {
    /// Name of the op that reads the block.
    pub name: String,
    /// Index of the network.
    pub network: usize,
    /// Contents of the block.
    pub pieces: Vec<Piece>,
    /// Length in bytes.
    pub len_bytes: u64,
    /// The networks that read the block, its own first.
    pub uses: Vec<Use>,
    /// Kind of the constants. [`BlockKind::Constants`] are always resident.
    pub kind: BlockKind,
    /// Arithmetic of the launches that read the block, in FLOP. The block's load can hide behind
    /// it.
    pub flops: u64,
}

/// Positions of constant arguments: `(network, op, input, offset)` -> block and start in it.
pub type Places = HashMap<(usize, usize, usize, u64), (usize, u64)>;

/// Blocks of all networks, in the order in which they are written.
#[derive(Default)]
pub struct Blocks {
    /// The blocks.
    pub drafts: Vec<BlockDraft>,
    /// Position of each constant argument.
    pub places: Places,
}

impl Blocks {
    /// Adds the blocks of network number `index`.
    pub fn add(&mut self, index: usize, network: &LoweredNetwork, align_bytes: u64) {
        let graph = &network.source.graph;
        let mut small = BlockDraft {
            name: format!("{}.small", network.source.name),
            network: index,
            pieces: vec![],
            len_bytes: 0,
            uses: vec![],
            kind: BlockKind::Constants,
            flops: 0,
        };
        let mut small_places = Vec::new();
        let mut launch_index = 0;
        for (op_index, op) in network.ops.iter().enumerate() {
            let Work::Kernels { lowering, .. } = &op.work else {
                launch_index += 1;
                continue;
            };
            let operands = graph.operands(op.id);
            for launch in &lowering.launches {
                let mut own: Option<usize> = None;
                for arg in &launch.args {
                    let Argument::Input { index: input, offset_bytes, len_bytes } = *arg else {
                        continue;
                    };
                    if !graph.node(operands[input]).is_weight() {
                        continue;
                    }
                    let key = (index, op_index, input, offset_bytes);
                    let piece =
                        |at_bytes| Piece { op: op_index, input, offset_bytes, len_bytes, at_bytes };
                    if let Some((block, _)) = self.places.get(&key) {
                        self.drafts[*block].note_use(index, launch_index);
                    } else if len_bytes < SMALL_BYTES {
                        if !small_places.iter().any(|(k, _)| *k == key) {
                            small_places.push((key, small.len_bytes));
                            small.push(piece, align_bytes);
                        }
                    } else {
                        let block = *own.get_or_insert_with(|| {
                            self.drafts.push(BlockDraft {
                                name: graph.node(op.id).name.clone(),
                                network: index,
                                pieces: vec![],
                                len_bytes: 0,
                                uses: vec![],
                                kind: BlockKind::Weights,
                                flops: launch.flops,
                            });
                            self.drafts.len() - 1
                        });
                        let draft = &mut self.drafts[block];
                        draft.note_use(index, launch_index);
                        self.places.insert(key, (block, draft.len_bytes));
                        draft.push(piece, align_bytes);
                    }
                }
                launch_index += 1;
            }
        }
        if !small.pieces.is_empty() {
            let block = self.drafts.len();
            self.places.extend(small_places.into_iter().map(|(k, at)| (k, (block, at))));
            self.drafts.push(small);
        }
    }

    /// Adds network number `index`, a variant of network number `whole` whose blocks are there. It
    /// reads the same blocks and has none of its own.
    ///
    /// Errors: a launch reads a constant that the whole network does not pack so.
    pub fn add_variant(
        &mut self,
        (index, network): (usize, &LoweredNetwork),
        (whole_index, whole): (usize, &LoweredNetwork),
    ) -> Result<()> {
        let graph = &network.source.graph;
        let mut launch_index = 0;
        for (op_index, op) in network.ops.iter().enumerate() {
            let node = graph.node(op.id);
            let same = whole.op_named(&node.name);
            let operands = graph.operands(op.id);
            let launches = match &op.work {
                Work::Kernels { lowering, .. } => &lowering.launches[..],
                Work::Gather => &[],
            };
            for args in launches.iter().map(|launch| &launch.args) {
                for arg in args {
                    let Argument::Input { index: input, offset_bytes, .. } = *arg else { continue };
                    if !graph.node(operands[input]).is_weight() {
                        continue;
                    }
                    let place =
                        same.filter(|&same| reads_alike((network, op_index), (whole, same), input));
                    let place = place.map(|same| (whole_index, same, input, offset_bytes));
                    let place = place.and_then(|key| self.places.get(&key)).copied();
                    let (block, at_bytes) = place.with_context(|| {
                        let (name, of) = (&network.source.name, &whole.source.name);
                        format!(
                            "{name} reads weights of {} otherwise than {of} packs them",
                            node.name
                        )
                    })?;
                    self.places.insert((index, op_index, input, offset_bytes), (block, at_bytes));
                    self.drafts[block].note_use(index, launch_index);
                }
                launch_index += 1;
            }
            launch_index += u32::from(matches!(op.work, Work::Gather));
        }
        Ok(())
    }
}

/// Whether two networks pack the same constant alike for an input of an op of each.
fn reads_alike(
    (network, op): (&LoweredNetwork, usize),
    (whole, same): (&LoweredNetwork, usize),
    input: usize,
) -> bool {
    let constant = |network: &LoweredNetwork, op: usize| {
        let (graph, op) = (&network.source.graph, &network.ops[op]);
        let value = graph.operands(op.id).get(input).copied()?;
        Some((graph.node(value).kind.clone(), op.packing(input)))
    };
    constant(network, op) == constant(whole, same)
}

impl BlockDraft {
    /// The use of a network.
    pub fn use_of(&self, network: usize) -> Option<&Use> {
        self.uses.iter().find(|of| of.network == network)
    }

    fn note_use(&mut self, network: usize, launch: u32) {
        match self.uses.iter_mut().find(|of| of.network == network) {
            Some(of) => of.last = launch,
            None => self.uses.push(Use { network, first: launch, last: launch }),
        }
    }

    fn push(&mut self, piece: impl Fn(u64) -> Piece, align_bytes: u64) {
        let piece = piece(self.len_bytes);
        self.len_bytes = (self.len_bytes + piece.len_bytes).next_multiple_of(align_bytes);
        self.pieces.push(piece);
    }
}
