//! Writes the bundle: constants are evaluated and packed one op at a time, in execution order.

use anyhow::{Context, Result, bail};
use kiln_bundle::format::{BundleWriter, hash, sealed_row};
use kiln_bundle::plan::{BlockKind, Plan, Step};
use kiln_ir::{DType, NodeKind, WeightExpr};
use kiln_kernels::packing::Packing;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::constants::{check_finite, check_tensors, evaluate, name};
use crate::plan::Planned;
use crate::plan::blocks::BlockDraft;
use crate::plan::lower::{LoweredNetwork, Work};
use crate::storage::Wide;
use crate::weights::TensorSource;

/// Elements of a table that are read and written at once.
const TABLE_CHUNK_ELEMS: usize = 1 << 20;

/// Bytes of all weights that plans pack. The unit of [`emit`]'s progress.
pub fn weight_bytes(planned: &[Planned]) -> u64 {
    planned.iter().flat_map(|p| &p.blocks.drafts).map(|b| b.len_bytes).sum()
}

/// Constants with values beyond FP16, in which the plan stores them.
#[derive(Debug, thiserror::Error)]
#[error("FP16 cannot hold the values of {}", names_of(.0))]
pub struct Overflow(pub Wide);

fn names_of(wide: &Wide) -> String {
    wide.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Writes a complete bundle, or nothing. It has a plan for each size of picture, the
/// default first. Weights that several plans pack equally are written once.
///
/// `progress` is called with the bytes of weights packed so far. At most the constants of one op
/// are in memory at a time.
///
/// Errors: tensors that the checkpoint lacks or has in another shape, all in one error; a value
/// that is not finite; [`Overflow`] with all constants that FP16 cannot hold; a failed read or
/// write.
pub fn emit(
    planned: &[Planned],
    source: &dyn TensorSource,
    tokenizer: &[u8],
    mut writer: BundleWriter,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<Plan>, u64)> {
    let networks = planned.iter().flat_map(|p| &p.networks);
    check_tensors(networks.map(|n| &n.source.graph), source)?;
    let (mut plans, mut overflows): (Vec<Plan>, _) = (vec![], Wide::new());
    let (mut tables, mut packed_bytes) = (HashMap::new(), 0);
    for planned in planned {
        let mut emitter = Emitter {
            planned,
            source,
            plan: planned.plan.clone(),
            writer: &mut writer,
            written: written(&plans),
            tables: &mut tables,
            packed_bytes,
            overflows: &mut overflows,
        };
        for index in 0..planned.networks.len() {
            emitter.network(index, progress).with_context(|| {
                format!("packing the weights of {}", planned.networks[index].source.name)
            })?;
        }
        packed_bytes = emitter.packed_bytes;
        plans.push(emitter.plan);
    }
    if !overflows.is_empty() {
        return Err(Overflow(overflows).into());
    }
    let file_bytes = writer.finish_sizes(&plans, tokenizer)?;
    Ok((plans, file_bytes))
}

/// Offsets of written blocks by length and checksum.
type Written = HashMap<(u64, u64), Vec<u64>>;

/// The blocks of plans.
fn written(plans: &[Plan]) -> Written {
    let mut written = Written::new();
    for block in plans.iter().flat_map(|plan| &plan.blocks) {
        let offsets = written.entry((block.len_bytes, block.checksum)).or_default();
        if !offsets.contains(&block.offset_bytes) {
            offsets.push(block.offset_bytes);
        }
    }
    written
}

struct Emitter<'a> {
    planned: &'a Planned,
    source: &'a dyn TensorSource,
    plan: Plan,
    writer: &'a mut BundleWriter,
    /// Blocks of other plans. Each may be a block of this plan once.
    written: Written,
    /// Offsets of tables by key and element type.
    tables: &'a mut HashMap<(String, DType), u64>,
    packed_bytes: u64,
    overflows: &'a mut Wide,
}

impl Emitter<'_> {
    fn network(&mut self, index: usize, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let planned = self.planned;
        let network = &planned.networks[index];
        let drafts = planned.blocks.drafts.iter().enumerate().filter(|(_, d)| d.network == index);
        let (small, large): (Vec<_>, Vec<_>) =
            drafts.partition(|(_, d)| d.kind == BlockKind::Constants);
        let mut small: Vec<(usize, Vec<u8>)> =
            small.iter().map(|(b, d)| (*b, vec![0; d.len_bytes as usize])).collect();
        for op in 0..network.ops.len() {
            if let Work::Gather = network.ops[op].work {
                self.table(index, op)?;
                continue;
            }
            let mut packed: HashMap<usize, Vec<u8>> = HashMap::new();
            for (block, draft) in large.iter().filter(|(_, d)| d.pieces[0].op == op) {
                let mut bytes = vec![0; draft.len_bytes as usize];
                self.fill(network, op, draft, &mut packed, &mut bytes)?;
                self.write(*block, &bytes, progress)?;
            }
            for (block, bytes) in &mut small {
                self.fill(network, op, &planned.blocks.drafts[*block], &mut packed, bytes)?;
            }
        }
        for (block, bytes) in small {
            self.write(block, &bytes, progress)?;
        }
        Ok(())
    }

    fn write(&mut self, block: usize, bytes: &[u8], progress: &mut dyn FnMut(u64)) -> Result<()> {
        let (len_bytes, checksum) = (bytes.len() as u64, hash(bytes));
        let offset_bytes = match self.written.get_mut(&(len_bytes, checksum)).and_then(Vec::pop) {
            Some(offset_bytes) => offset_bytes,
            None => self.writer.write_block(bytes)?.0,
        };
        let entry = &mut self.plan.blocks[block];
        (entry.offset_bytes, entry.len_bytes, entry.checksum) = (offset_bytes, len_bytes, checksum);
        self.packed_bytes += len_bytes;
        progress(self.packed_bytes);
        Ok(())
    }

    /// Copies an op's pieces of a block into the block's bytes. Packs each constant when it is
    /// first needed.
    fn fill(
        &mut self,
        network: &LoweredNetwork,
        op: usize,
        draft: &BlockDraft,
        packed: &mut HashMap<usize, Vec<u8>>,
        bytes: &mut [u8],
    ) -> Result<()> {
        for piece in draft.pieces.iter().filter(|p| p.op == op) {
            let packed = match packed.entry(piece.input) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.pack(network, op, piece.input)?),
            };
            let from = piece.offset_bytes as usize;
            let (at, len) = (piece.at_bytes as usize, piece.len_bytes as usize);
            let source = packed.get(from..from + len).with_context(|| {
                format!("a kernel reads {from}+{len} of {} packed bytes", packed.len())
            })?;
            bytes[at..at + len].copy_from_slice(source);
        }
        Ok(())
    }

    fn pack(&mut self, network: &LoweredNetwork, op: usize, input: usize) -> Result<Vec<u8>> {
        let graph = &network.source.graph;
        let node = graph.node(graph.operands(network.ops[op].id)[input]);
        let NodeKind::Weight(expr) = &node.kind else { unreachable!("pieces are constants") };
        let tensor = evaluate(expr, &node.ty, self.source)?;
        let packing = network.ops[op].packing(input);
        let packed = packing.pack(&node.ty.shape, &tensor.data);
        if packing.overflows(&packed) {
            self.overflows.insert(name(expr));
        }
        Ok(packed)
    }

    /// Streams the table of a gather and enters its offset in the plan.
    fn table(&mut self, index: usize, op: usize) -> Result<()> {
        let network = &self.planned.networks[index];
        let graph = &network.source.graph;
        let id = network.ops[op].id;
        let table = graph.node(graph.operands(id)[1]);
        let dtype = graph.ty(id).dtype;
        let NodeKind::Weight(WeightExpr::Tensor { key, shape }) = &table.kind else {
            bail!("the table of {} is not a tensor of the checkpoint", graph.node(id).name);
        };
        let (rows, columns) = (shape[0], shape[1]);
        let rows_at_a_time = (TABLE_CHUNK_ELEMS / columns).max(1);
        let source = self.source;
        let chunks = (0..rows).step_by(rows_at_a_time).map(|first| -> Result<Vec<u8>> {
            let len = rows_at_a_time.min(rows - first) * columns;
            let values = source.read_f32_range(key, first * columns, len)?;
            check_finite(source, key, first * columns, &values)?;
            let bytes = encode(dtype, &values);
            if Packing::RowMajor(dtype).overflows(&bytes) {
                bail!("FP16 cannot hold the values of `{key}`; compile with --precision fp32");
            }
            Ok(values
                .chunks_exact(columns)
                .flat_map(|row| sealed_row(&encode(dtype, row)))
                .collect())
        });
        let offset_bytes = match self.tables.entry((key.clone(), dtype)) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => *entry.insert(self.writer.write_stream(chunks)?),
        };
        // The steps of a network follow its ops.
        let is_gather = |work: &Work| matches!(work, Work::Gather);
        let before = network.ops[..op].iter().filter(|op| is_gather(&op.work)).count();
        let steps = self.plan.networks[index].steps.iter_mut();
        let mut gathers = steps.filter_map(|step| match step {
            Step::Gather(gather) => Some(gather),
            _ => None,
        });
        let gather = gathers.nth(before).context("every gather has a step")?;
        gather.table_offset_bytes = offset_bytes;
        Ok(())
    }
}

fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    kiln_kernels::packing::encode(dtype, values.iter().copied())
}
