//! Writes the decisions as the plan that the runtime executes.

use anyhow::{Context, Result, bail};
use kiln_bundle::plan::{
    Access, Arg, Block, BlockId, BlockKind, Buffer, BufferId, BufferKind, Dispatch, ElementType,
    Gather, HALF_EXTENSION, Input, Kernel, KernelId, LoraRoom, Manifest, MemoryPlan, Network,
    NetworkId, Plan, Port, Rationale, Requirements, Residency, SlotId, Source, Step,
};
use kiln_ir::ValueId;
use kiln_kernels::{Argument, Launch, SourceText, program};
use std::collections::{BTreeSet, HashMap};

use super::blocks::Blocks;
use super::cost::LaunchCost;
use super::dispatch::Part;
use super::edges::Edge;
use super::lifetime::Lifetimes;
use super::lora;
use super::lower::{LoweredNetwork, LoweredOp, Work};
use super::residency::Placement;

/// Build options of all kernels. `-w` disables warnings: the sources are tested, and drivers print
/// warnings on the user's terminal.
fn build_options(mad: bool) -> &'static str {
    if mad { "-w -Dfma=mad" } else { "-w" }
}

/// Kernels of a program. Drivers do some work once a program, such as reading the library of
/// built-in functions. Few kernels in each let several processes compile programs side by side.
const PROGRAM_KERNELS: usize = 8;

/// All decisions of the planner.
pub struct Decisions<'a> {
    /// The networks as launches.
    pub networks: &'a [LoweredNetwork],
    /// The networks' constants.
    pub blocks: &'a Blocks,
    /// The networks' buffers.
    pub lifetimes: &'a Lifetimes,
    /// Addresses.
    pub placement: &'a Placement,
    /// The parts of the budget.
    pub memory: MemoryPlan,
    /// Alignment of every offset, in bytes.
    pub align_bytes: u64,
    /// Longest predicted launch in nanoseconds; 0 for no limit.
    pub max_dispatch_ns: u64,
    /// [`Target::mad`](kiln_kernels::Target::mad).
    pub mad: bool,
    /// Name of the instructions of [`Target::vnni`](kiln_kernels::Target::vnni).
    pub vnni: &'static str,
}

/// Makes the plan, without its rationale. Offsets and checksums of weights are zero until the
/// weights are written.
pub fn assemble(decisions: &Decisions, manifest: Manifest) -> Result<Plan> {
    let mut assembler = Assembler::new(decisions);
    let networks =
        (0..decisions.networks.len()).map(|i| assembler.network(i)).collect::<Result<Vec<_>>>()?;
    assembler.begin_program();
    let Decisions { networks: lowered, blocks, placement, .. } = decisions;
    let factors = placement.buffers.iter().position(|b| b.kind == BufferKind::Factors);
    let kernel = |launch: &Launch| assembler.kernel(launch, "lora", launch.entry);
    let lora = match factors {
        Some(factors) => lora::room(lowered, blocks, BufferId(factors as u32), kernel)?,
        None => LoraRoom::default(),
    };
    let Assembler { sources, kernels, local_mem_bytes, work_group_size, times, .. } = assembler;
    let buffers = assemble_buffers(decisions, &times);
    let blocks = decisions
        .blocks
        .drafts
        .iter()
        .enumerate()
        .map(|(i, draft)| Block {
            name: draft.name.clone(),
            kind: draft.kind,
            offset_bytes: 0,
            len_bytes: draft.len_bytes,
            checksum: 0,
            residency: match resident(decisions, i) {
                Some(buffer) => Residency::Resident(BufferId(buffer as u32)),
                None => Residency::Streamed,
            },
        })
        .collect();
    let memory = &decisions.memory;
    let slots = memory.slot_bytes.iter().copied().max().unwrap_or(0);
    let requirements = Requirements {
        max_alloc_bytes: memory.arena_part_bytes.max(slots).max(memory.staging_bytes),
        local_mem_bytes,
        work_group_size,
        base_align_bytes: decisions.align_bytes,
        max_dispatch_ns: decisions.max_dispatch_ns,
        extensions: extensions(&kernels),
    };
    let memory = decisions.memory.clone();
    let rationale = Rationale::default();
    let mut plan = Plan {
        manifest,
        requirements,
        memory,
        sources,
        kernels,
        blocks,
        buffers,
        networks,
        lora,
        rationale,
    };
    for index in 0..plan.networks.len() {
        let (loads, overwrites) = (loads(&plan, index), overwrites(&plan, index));
        let network = &mut plan.networks[index];
        (network.loads, network.overwrites) = (loads, overwrites);
    }
    Ok(plan)
}

/// The resident blocks that a network reads.
fn loads(plan: &Plan, network: usize) -> Vec<BlockId> {
    let args = plan.networks[network].steps.iter().flat_map(|step| match step {
        Step::Dispatch(dispatch) => dispatch.args.as_slice(),
        _ => &[],
    });
    let resident = args.filter_map(|arg| match *arg {
        Arg::Weight { block, .. } => {
            Some(block).filter(|block| plan.blocks[block.index()].residency != Residency::Streamed)
        }
        _ => None,
    });
    let mut blocks: Vec<BlockId> = resident.collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks
}

/// The resident blocks whose bytes another buffer reuses while a network runs.
fn overwrites(plan: &Plan, network: usize) -> Vec<BlockId> {
    let (lower, upper) = plan.span(network);
    let live = |buffer: &&Buffer| buffer.lower < upper && lower < buffer.upper;
    let live: Vec<&Buffer> = plan.buffers.iter().filter(live).collect();
    let is_overwritten = |block: &Block| {
        let Residency::Resident(own) = block.residency else { return false };
        let own = &plan.buffers[own.index()];
        let end_bytes = own.offset_bytes + block.len_bytes;
        live.iter().any(|other| {
            !std::ptr::eq(*other, own)
                && other.offset_bytes < end_bytes
                && own.offset_bytes < other.offset_bytes + other.len_bytes
        })
    };
    let blocks = (0..).map(BlockId).zip(&plan.blocks);
    blocks.filter(|(_, block)| is_overwritten(block)).map(|(id, _)| id).collect()
}

/// OpenCL extensions and instructions that the kernels need.
fn extensions(kernels: &[Kernel]) -> Vec<String> {
    let half = kernels.iter().any(|kernel| kernel.half_arithmetic);
    let half = half.then(|| HALF_EXTENSION.to_string());
    let instructions = kernels.iter().filter_map(|kernel| kernel.instructions.clone());
    let names: BTreeSet<String> = half.into_iter().chain(instructions).collect();
    names.into_iter().collect()
}

fn resident(decisions: &Decisions, block: usize) -> Option<usize> {
    let list = &decisions.placement.resident;
    list.iter().find(|(b, _)| *b == block).map(|(_, buffer)| *buffer)
}

/// The step of each launch, and the steps of each network. They convert launch time to step time.
#[derive(Default)]
struct Times {
    launches: Vec<u32>,
    spans: Vec<(u32, u32)>,
}

fn assemble_buffers(decisions: &Decisions, times: &Times) -> Vec<Buffer> {
    let spans = &decisions.lifetimes.spans;
    let lower = |t: u32| match spans.iter().position(|s| s.0 == t) {
        Some(i) => times.spans[i].0,
        None => times.launches[t as usize],
    };
    let upper = |t: u32| match spans.iter().position(|s| s.1 == t) {
        Some(i) => times.spans[i].1,
        None => times.launches[t as usize - 1] + 1,
    };
    let drafts = decisions.placement.buffers.iter().zip(&decisions.placement.offsets);
    drafts
        .map(|(draft, offset)| Buffer {
            name: draft.name.clone(),
            kind: draft.kind,
            offset_bytes: *offset,
            len_bytes: draft.len_bytes,
            lower: lower(draft.lower),
            upper: upper(draft.upper),
        })
        .collect()
}

struct Assembler<'a> {
    decisions: &'a Decisions<'a>,
    sources: Vec<String>,
    /// Position and program of each source.
    source_ids: HashMap<SourceText, (u32, u32)>,
    program: u32,
    /// Kernels of that program.
    program_kernels: usize,
    kernels: Vec<Kernel>,
    kernel_ids: HashMap<(SourceText, &'static str), KernelId>,
    times: Times,
    now: u32,
    local_mem_bytes: u64,
    work_group_size: u64,
    /// The block in each slot, and the time at which the slot was last freed.
    slots: Vec<(Option<usize>, u32)>,
}

impl<'a> Assembler<'a> {
    fn new(decisions: &'a Decisions<'a>) -> Self {
        Self {
            decisions,
            sources: vec![],
            source_ids: HashMap::new(),
            program: 0,
            program_kernels: 0,
            kernels: vec![],
            kernel_ids: HashMap::new(),
            times: Times::default(),
            now: 0,
            local_mem_bytes: 0,
            work_group_size: 1,
            slots: vec![(None, 0); decisions.memory.slot_bytes.len()],
        }
    }

    fn network(&mut self, index: usize) -> Result<Network> {
        // The programs of a network are compiled before those of the networks after it.
        self.begin_program();
        let network = &self.decisions.networks[index];
        let graph = &network.source.graph;
        let start = self.now;
        let mut steps = Vec::new();
        let mut launch_index = 0;
        for (op_index, op) in network.ops.iter().enumerate() {
            for i in 0..op.launch_count() {
                self.load(index, launch_index, &mut steps)?;
                self.times.launches.push(start + steps.len() as u32);
                steps.push(match &op.work {
                    Work::Kernels { variant, lowering, costs, parts, .. } => {
                        Step::Dispatch(self.dispatch(
                            (index, op_index),
                            op,
                            variant,
                            (&lowering.launches[i], costs[i], parts[i]),
                        )?)
                    }
                    Work::Gather => Step::Gather(self.gather(index, op)),
                });
                self.free(index, launch_index, start, &mut steps);
                launch_index += 1;
            }
        }
        self.now = start + steps.len() as u32;
        self.times.spans.push((start, self.now));
        let port = |name: &str, id: ValueId| Port {
            name: name.to_string(),
            buffer: self.buffer(index, id),
            dtype: dtype(graph.ty(id).dtype),
            shape: graph.ty(id).shape.iter().map(|d| *d as u32).collect(),
        };
        Ok(Network {
            name: network.source.name.clone(),
            role: network.source.role,
            inputs: (graph.inputs().into_iter().zip(&self.decisions.lifetimes.edges[index]))
                .map(|(id, edge)| Input {
                    port: port(&graph.node(id).name, id),
                    source: source(*edge),
                })
                .collect(),
            outputs: graph.outputs().iter().map(|(name, id)| port(name, *id)).collect(),
            loads: vec![],
            overwrites: vec![],
            steps,
        })
    }

    /// Streamed blocks of a network whose first (or last) launch is `launch`.
    fn streamed(&self, network: usize, launch: u32, first: bool) -> Vec<usize> {
        let drafts = self.decisions.blocks.drafts.iter().enumerate();
        drafts
            .filter(|(i, d)| {
                let at = d.use_of(network).map(|of| if first { of.first } else { of.last });
                d.kind == BlockKind::Weights
                    && at == Some(launch)
                    && resident(self.decisions, *i).is_none()
            })
            .map(|(i, _)| i)
            .collect()
    }

    fn load(&mut self, network: usize, launch: u32, steps: &mut Vec<Step>) -> Result<()> {
        for block in self.streamed(network, launch, true) {
            let free = self.slots.iter().enumerate().filter(|(_, s)| s.0.is_none());
            let (slot, _) = free.min_by_key(|(_, s)| s.1).with_context(|| {
                format!("no slot for {}", self.decisions.blocks.drafts[block].name)
            })?;
            self.slots[slot].0 = Some(block);
            steps.push(Step::Load { block: BlockId(block as u32), slot: SlotId(slot as u32) });
        }
        Ok(())
    }

    fn free(&mut self, network: usize, launch: u32, start: u32, steps: &mut Vec<Step>) {
        for block in self.streamed(network, launch, false) {
            let now = start + steps.len() as u32 + 1;
            for slot in self.slots.iter_mut().filter(|s| s.0 == Some(block)) {
                *slot = (None, now);
            }
            steps.push(Step::Free { block: BlockId(block as u32) });
        }
    }

    fn buffer(&self, network: usize, id: ValueId) -> BufferId {
        BufferId(self.decisions.lifetimes.values[&(network, id)] as u32)
    }

    fn gather(&self, network: usize, op: &LoweredOp) -> Gather {
        let graph = &self.decisions.networks[network].source.graph;
        let operands = graph.operands(op.id);
        let (table, ty) = (graph.ty(operands[1]), graph.ty(op.id));
        Gather {
            name: graph.node(op.id).name.clone(),
            table_offset_bytes: 0,
            row_bytes: table.shape[1] as u64 * ty.dtype.size_bytes(),
            row_count: table.shape[0] as u32,
            indices: self.buffer(network, operands[0]),
            index_count: graph.ty(operands[0]).elem_count() as u32,
            output: self.buffer(network, op.id),
        }
    }

    fn dispatch(
        &mut self,
        (network, op_index): (usize, usize),
        op: &LoweredOp,
        variant: &'static str,
        (launch, cost, part): (&Launch, LaunchCost, Part),
    ) -> Result<Dispatch> {
        let graph = &self.decisions.networks[network].source.graph;
        let node = graph.node(op.id);
        let operands = graph.operands(op.id);
        let args = launch
            .args
            .iter()
            .map(|arg| match *arg {
                Argument::U32(v) => Ok(Arg::U32(v)),
                Argument::F32(v) => Ok(Arg::F32(v)),
                Argument::Late(slot) => bail!("argument {slot:?} of a kernel is not bound"),
                Argument::Output => Ok(self.whole(self.buffer(network, op.id), Access::Write)),
                Argument::Scratch { index, written } => {
                    let id = self.decisions.lifetimes.scratch[&(network, op_index)][index];
                    let access = if written { Access::Write } else { Access::Read };
                    Ok(self.whole(BufferId(id as u32), access))
                }
                Argument::Input { index, offset_bytes, len_bytes } => {
                    let value = operands[index];
                    if graph.node(value).is_weight() {
                        let key = (network, op_index, index, offset_bytes);
                        let place = self.decisions.blocks.places.get(&key);
                        let (block, at) = *place.context("a constant argument has no block")?;
                        let block = BlockId(block as u32);
                        Ok(Arg::Weight { block, offset_bytes: at, len_bytes })
                    } else {
                        let buffer = self.buffer(network, value);
                        let access = Access::Read;
                        Ok(Arg::Buffer { buffer, offset_bytes, len_bytes, access })
                    }
                }
            })
            .collect::<Result<Vec<_>>>()
            .with_context(|| format!("node '{}'", node.name))?;
        self.local_mem_bytes = self.local_mem_bytes.max(launch.local_mem_bytes);
        if let Some(local) = launch.local {
            self.work_group_size = self.work_group_size.max(local.iter().product());
        }
        Ok(Dispatch {
            name: node.name.clone(),
            kernel: self.kernel(launch, node.op().map_or("", |op| op.name()), variant),
            args,
            global: launch.global,
            offset: part.offset,
            range: part.range,
            local: launch.local,
            flops: launch.flops,
            bytes: cost.bytes,
            predicted_ns: cost.ns,
        })
    }

    fn whole(&self, buffer: BufferId, access: Access) -> Arg {
        let len_bytes = self.decisions.placement.buffers[buffer.index()].len_bytes;
        Arg::Buffer { buffer, offset_bytes: 0, len_bytes, access }
    }

    fn begin_program(&mut self) {
        self.program += u32::from(self.program_kernels > 0);
        self.program_kernels = 0;
    }

    fn kernel(&mut self, launch: &Launch, op: &str, variant: &str) -> KernelId {
        let key = (launch.source.clone(), launch.entry);
        if let Some(id) = self.kernel_ids.get(&key) {
            return *id;
        }
        let part = program::part(&launch.source, launch.entry);
        let (source, program) = match self.source_ids.get(&launch.source) {
            Some(ids) => *ids,
            None => {
                if self.program_kernels == PROGRAM_KERNELS {
                    self.begin_program();
                }
                self.program_kernels += 1;
                self.sources.push(part.source.to_string());
                let ids = (self.sources.len() as u32 - 1, self.program);
                *self.source_ids.entry(launch.source.clone()).or_insert(ids)
            }
        };
        self.kernels.push(Kernel {
            program,
            source,
            entry: part.entry,
            op: op.to_string(),
            variant: variant.to_string(),
            options: build_options(self.decisions.mad).to_string(),
            half_arithmetic: launch.half_arithmetic,
            instructions: launch.vnni.then(|| self.decisions.vnni.to_string()),
        });
        let id = KernelId(self.kernels.len() as u32 - 1);
        *self.kernel_ids.entry(key).or_insert(id)
    }
}

fn source(edge: Edge) -> Source {
    match edge {
        Edge::Host(feed) => Source::Host(feed),
        Edge::Output { network, output, slice } => {
            let (network, output) = (NetworkId(network as u32), output as u32);
            Source::Output { network, output, slice }
        }
    }
}

/// The plan's type for a storage type.
pub fn dtype(dtype: kiln_ir::DType) -> ElementType {
    match dtype {
        kiln_ir::DType::F32 => ElementType::F32,
        kiln_ir::DType::F16 => ElementType::F16,
        kiln_ir::DType::I8 => ElementType::I8,
        kiln_ir::DType::I32 => ElementType::I32,
    }
}
