//! Chooses a kernel variant for every op of a network.

use anyhow::{Context, Result, anyhow, bail};
use kiln_bundle::plan::Phase;
use kiln_ir::{DType, Graph, NodeKind, Op, ValueId};
use kiln_kernels::{Lowering, Operand, Packing, Problem, Target, candidates};
use std::collections::HashMap;

use super::dispatch::{self, Part};
use super::schedule::schedule;
use super::time::{LaunchCost, launch_costs};
use crate::device::DeviceProfile;
use crate::passes::part_norm;
use crate::quantize::{Choices, Stored};

/// A network before anything is lowered.
#[derive(Clone)]
pub struct NetworkGraph {
    /// Name in the plan.
    pub name: String,
    /// When it runs.
    pub phase: Phase,
    /// What it computes.
    pub graph: Graph,
}

/// How an op is done.
#[derive(Clone)]
pub enum Work {
    /// By kernels.
    Kernels {
        /// Name of the variant.
        variant: &'static str,
        /// Its launches.
        lowering: Lowering,
        /// What each launch takes.
        costs: Vec<LaunchCost>,
        /// The work-items of each launch.
        parts: Vec<Part>,
        /// Inputs whose memory the output may take.
        in_place: Vec<usize>,
    },
    /// By reading rows of a table from the bundle.
    Gather,
}

/// An op and how it is done.
pub struct LoweredOp {
    /// The node.
    pub id: ValueId,
    /// What it does.
    pub work: Work,
}

impl LoweredOp {
    /// Instants that the op takes.
    pub fn launch_count(&self) -> usize {
        match &self.work {
            Work::Kernels { lowering, .. } => lowering.launches.len(),
            Work::Gather => 1,
        }
    }

    /// Storage order of a constant input.
    pub fn packing(&self, input: usize, storage: DType) -> Packing {
        let chosen = match &self.work {
            Work::Kernels { lowering, .. } => {
                lowering.packings.iter().find(|(i, _)| *i == input).map(|(_, p)| *p)
            }
            Work::Gather => None,
        };
        chosen.unwrap_or(Packing::RowMajor(storage))
    }
}

/// A network as launches in execution order.
pub struct LoweredNetwork {
    /// Where it came from.
    pub source: NetworkGraph,
    /// Its ops, scheduled.
    pub ops: Vec<LoweredOp>,
}

/// What decides between variants that all apply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preference {
    /// The target's first choice.
    Fastest,
    /// The target's first choice among those with at most so many bytes of scratch memory; if
    /// there is none, the one with the least, `naive` only if there is no other.
    ScratchUpTo(u64),
}

/// How variants are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Between variants that all apply.
    pub preference: Preference,
    /// Largest run of weights that one launch reads.
    pub max_weight_bytes: u64,
    /// How much the time that reading an op's weights takes counts beside its arithmetic where a variant
    /// needs larger ones. Nothing if they stay or reading is always hidden; much if all waits for it.
    pub reading_percent: u64,
}

impl Preference {
    /// Scratch memory that a variant may take if another takes less.
    pub fn scratch_bytes(self) -> u64 {
        match self {
            Preference::Fastest => u64::MAX,
            Preference::ScratchUpTo(bytes) => bytes,
        }
    }
}

/// Storage types of a compilation.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// Weights of contractions. Norms and biases stay in `f32`.
    pub weights: Weights<'a>,
    /// The narrowest type that values between ops may have.
    pub activations: DType,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// All in one floating-point type.
    Float(DType),
    /// Those of contractions as chosen one by one, other matrices in `f16`.
    Int8(&'a Choices),
}

impl Storage<'_> {
    /// How a constant input of an op is stored: only matrices and filters are worth shrinking.
    pub fn of(self, graph: &Graph, op: ValueId, input: usize) -> Stored {
        let value = graph.operands(op)[input];
        let node = graph.node(value);
        let plain = |dtype| Stored { dtype, block: None, relative_error: None };
        let choices = match self.weights {
            _ if node.ty.dtype != DType::F32 => return plain(node.ty.dtype),
            _ if node.ty.shape.len() < 2 => return plain(DType::F32),
            Weights::Float(dtype) => return plain(dtype),
            Weights::Int8(choices) => choices,
        };
        match &node.kind {
            NodeKind::Weight(expr) if weight_indices(graph, op).contains(&input) => {
                choices.of(expr)
            }
            _ => plain(DType::F16),
        }
    }
}

/// Which operands are the weights of a contraction.
pub fn weight_indices(graph: &Graph, op: ValueId) -> Vec<usize> {
    graph.node(op).op().map(Op::weights).unwrap_or_default()
}

/// What was lowered already for a profile, by problem: networks and strategies have most in common.
#[derive(Default)]
pub struct Known(HashMap<String, Vec<Chosen>>);

/// Lowers a network.
///
/// Errors: an op without a variant for the target, by name.
pub fn lower(
    source: &NetworkGraph,
    profile: &DeviceProfile,
    storage: Storage<'_>,
    selection: Selection,
    known: &mut Known,
) -> Result<LoweredNetwork> {
    let graph = &source.graph;
    let mut ops = Vec::new();
    for id in schedule(graph)? {
        let op = graph.node(id).op().expect("the schedule holds ops only");
        if matches!(op, Op::Embedding(_)) {
            ops.push(LoweredOp { id, work: Work::Gather });
            continue;
        }
        let problem = Problem {
            op,
            inputs: &operands(graph, id, storage),
            output: graph.ty(id),
            max_weight_bytes: selection.max_weight_bytes,
            max_scratch_bytes: selection.preference.scratch_bytes(),
        };
        let work = kernels(&problem, profile, selection, known)
            .with_context(|| format!("{}: node '{}'", source.name, graph.node(id).name))?;
        ops.push(LoweredOp { id, work });
    }
    Ok(LoweredNetwork { source: source.clone(), ops })
}

/// The network with its small pictures normalized by ops of their own, where the target does that in one
/// launch and the preference has room for the copy.
pub fn part_norms(
    source: &NetworkGraph,
    profile: &DeviceProfile,
    selection: Selection,
) -> Result<NetworkGraph> {
    let mut parted = source.clone();
    let max_scratch_bytes = selection.preference.scratch_bytes();
    part_norm::run(&mut parted.graph, |graph, op, values| {
        let types: Vec<_> = values.iter().map(|v| graph.ty(*v)).collect();
        let Ok(output) = op.infer(&types) else { return false };
        let inputs: Vec<_> = types.into_iter().cloned().map(Operand::new).collect();
        let problem = Problem {
            op,
            inputs: &inputs,
            output: &output,
            max_weight_bytes: selection.max_weight_bytes,
            max_scratch_bytes,
        };
        let target = profile.target.tuned(&problem);
        output.size_bytes() <= max_scratch_bytes
            && candidates(&problem, &target).first().is_some_and(|v| v.name == "grouped")
    })?;
    Ok(parted)
}

/// The inputs of an op as its kernels see them.
pub fn operands(graph: &Graph, id: ValueId, storage: Storage<'_>) -> Vec<Operand> {
    let operand = |(input, value): (usize, ValueId)| {
        let mut ty = graph.ty(value).clone();
        if !graph.node(value).is_weight() {
            return Operand::new(ty);
        }
        let stored = storage.of(graph, id, input);
        let sum = || ty.elem_count() / ty.shape[0];
        let block = match stored.dtype {
            DType::I8 => stored.block.unwrap_or_else(sum),
            _ => 0,
        };
        ty.dtype = stored.dtype;
        Operand { block, ..Operand::constant(ty) }
    };
    graph.operands(id).into_iter().enumerate().map(operand).collect()
}

fn kernels(
    problem: &Problem,
    profile: &DeviceProfile,
    selection: Selection,
    known: &mut Known,
) -> Result<Work> {
    let key = format!("{problem:?}");
    if !known.0.contains_key(&key) {
        known.0.insert(key.clone(), options(problem, profile, selection.preference)?);
    }
    let chosen = best(&known.0[&key], profile, selection).cloned();
    let Some(Chosen { variant, mut lowering, mut costs, .. }) = chosen else {
        bail!(
            "no kernel variant of {} applies to {} on a {:?} device",
            problem.op.name(),
            problem.inputs.iter().map(|i| i.ty.to_string()).collect::<Vec<_>>().join(" x "),
            profile.target.class
        );
    };
    check_limits(&lowering, &profile.target).map_err(|e| anyhow!("variant {variant}: {e}"))?;
    let in_place = kiln_kernels::in_place(problem, &lowering);
    let rates = &profile.rates;
    let parts = dispatch::cut(&mut lowering, &mut costs, rates.max_dispatch_ns(), rates.launch_ns)
        .with_context(|| format!("variant {variant}"))?;
    Ok(Work::Kernels { variant, lowering, costs, parts, in_place })
}

/// A variant for an op.
#[derive(Clone)]
pub struct Chosen {
    /// Its name.
    pub variant: &'static str,
    /// Its launches.
    pub lowering: Lowering,
    /// What each launch takes.
    pub costs: Vec<LaunchCost>,
    weight_bytes: u64,
}

impl Chosen {
    fn new(
        problem: &Problem,
        variant: &'static str,
        lowering: Lowering,
        profile: &DeviceProfile,
    ) -> Self {
        let costs = launch_costs(problem, variant, &lowering, &profile.rates);
        let packed = lowering.packings.iter();
        let weight_bytes = packed.map(|(i, p)| p.size_bytes(&problem.inputs[*i].ty.shape)).sum();
        Self { variant, lowering, costs, weight_bytes }
    }

    fn scratch_bytes(&self) -> u64 {
        self.lowering.scratch_bytes.iter().sum()
    }

    fn enlarges(&self) -> bool {
        self.lowering.packings.iter().any(|(_, packing)| packing.enlarges())
    }

    /// Its arithmetic, and of the reading of its weights what the selection counts.
    fn ns(&self, profile: &DeviceProfile, selection: Selection) -> u64 {
        let reading_ns = profile.rates.in_plan().load_ns(self.weight_bytes);
        let counted_ns = (reading_ns / 100).saturating_mul(selection.reading_percent);
        self.costs.iter().map(|c| c.ns).sum::<u64>().saturating_add(counted_ns)
    }
}

/// The variants to choose between: the target's first choice among those with as little scratch memory
/// as is preferred (if there is none, the one with the least), and where it needs larger weights, those
/// after it, up to the first that does not.
fn options(
    problem: &Problem,
    profile: &DeviceProfile,
    preference: Preference,
) -> Result<Vec<Chosen>> {
    let allowed_bytes = preference.scratch_bytes();
    let target = &*profile.target.tuned(problem);
    let mut list: Vec<Chosen> = vec![];
    let mut refused: Option<Chosen> = None;
    for variant in candidates(problem, target) {
        // The oracle takes no scratch memory, but the time that it takes is no price for that.
        if variant.name == "naive" && (!list.is_empty() || refused.is_some()) {
            break;
        }
        let lowering = (variant.lower)(problem, target)
            .with_context(|| format!("variant {}", variant.name))?;
        let next = Chosen::new(problem, variant.name, lowering, profile);
        if next.scratch_bytes() > allowed_bytes {
            let less = |r: &Chosen| next.scratch_bytes() < r.scratch_bytes();
            if refused.as_ref().is_none_or(less) {
                refused = Some(next);
            }
            continue;
        }
        let enlarges = next.enlarges();
        list.push(next);
        if !enlarges {
            break;
        }
    }
    if list.is_empty() {
        list.extend(refused);
    }
    Ok(list)
}

/// The first of the options; if that needs larger weights than a later one, only where it is faster, too,
/// the reading that is counted included.
fn best<'a>(
    options: &'a [Chosen],
    profile: &DeviceProfile,
    selection: Selection,
) -> Option<&'a Chosen> {
    let ns = |option: &Chosen| option.ns(profile, selection);
    options.iter().reduce(|best, next| {
        let pays = next.weight_bytes < best.weight_bytes && ns(next) <= ns(best);
        if pays { next } else { best }
    })
}

/// The variant for an op; `None` if none applies.
pub fn choose(
    problem: &Problem,
    profile: &DeviceProfile,
    selection: Selection,
) -> Result<Option<Chosen>> {
    let options = options(problem, profile, selection.preference)?;
    Ok(best(&options, profile, selection).cloned())
}

/// What every launch must keep, whatever its variant thinks of the target.
fn check_limits(lowering: &Lowering, target: &Target) -> Result<()> {
    if lowering.launches.is_empty() {
        bail!("lowers to no launch");
    }
    if lowering.launches.iter().any(|l| l.global.contains(&0)) {
        bail!("a launch has no work-items");
    }
    for launch in &lowering.launches {
        let items = launch.local.map_or(1, |local| local.iter().product());
        if items > u64::from(target.max_work_group) {
            bail!("a work-group has {items} work-items, the device {}", target.max_work_group);
        }
        if launch.local_mem_bytes > target.local_mem_bytes {
            let (needs, has) = (launch.local_mem_bytes, target.local_mem_bytes);
            bail!("a work-group needs {needs} bytes of local memory, the device has {has}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::TensorType;
    use kiln_ir::ops::conv2d::Conv2d;

    /// The variant for a convolution of square pictures whose weights are read at such a share.
    fn chosen(channels: usize, extent: usize, reading_percent: u64, scratch: u64) -> &'static str {
        let (_, profile) = DeviceProfile::load("cpu-avx512").unwrap();
        let op: Op = Conv2d::new(3, 1).into();
        let picture = TensorType::f32(&[2, extent, extent, channels]);
        let weights = TensorType::f32(&[channels, channels, 3, 3]);
        let inputs = [Operand::new(picture.clone()), Operand::constant(weights)];
        let max_weight_bytes = profile.memory.max_block_bytes;
        let problem = Problem {
            op: &op,
            inputs: &inputs,
            output: &picture,
            max_weight_bytes,
            max_scratch_bytes: scratch,
        };
        let preference = Preference::ScratchUpTo(scratch);
        let selection = Selection { preference, max_weight_bytes, reading_percent };
        choose(&problem, &profile, selection).unwrap().unwrap().variant
    }

    /// Directly, 1280 channels at 16x16 take 66 ms of arithmetic and 59 MB of weights; with 2x2 tiles
    /// 37 ms and 105 MB, with 4x4 tiles 21 ms and 236 MB, a millisecond of reading each.
    #[test]
    fn larger_weights_must_pay_for_their_reading() {
        let most = u64::MAX;
        assert_eq!(chosen(1280, 16, 0, most), "winograd4");
        assert_eq!(chosen(1280, 16, 25, most), "winograd2");
        assert_eq!(chosen(1280, 16, 100, most), "tiled_cpu");
        assert_eq!(chosen(320, 64, 100, most), "winograd4");
        assert_eq!(chosen(320, 64, 100, 1 << 10), "tiled_cpu");
    }
}
