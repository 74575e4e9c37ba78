//! Chooses a kernel variant for every op of a network.

use anyhow::{Context, Result, anyhow, bail};
use kiln_bundle::plan::Phase;
use kiln_ir::{DType, Graph, NodeKind, Op, ValueId};
use kiln_kernels::{Lowering, Operand, Packing, Problem, candidates};

use super::schedule::schedule;
use super::time::{LaunchCost, launch_costs};
use crate::device::DeviceProfile;
use crate::passes::contraction::Contraction;
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
pub enum Work {
    /// By kernels.
    Kernels {
        /// Name of the variant.
        variant: &'static str,
        /// Its launches.
        lowering: Lowering,
        /// What each launch takes.
        costs: Vec<LaunchCost>,
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
    /// there is none, the one with the least.
    ScratchUpTo(u64),
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
        match (Contraction::of(graph, op), &node.kind) {
            (Some(contraction), NodeKind::Weight(expr)) if contraction.weight == value => {
                choices.of(expr)
            }
            _ => plain(DType::F16),
        }
    }
}

/// Lowers a network.
///
/// Errors: an op without a variant for the target, by name.
pub fn lower(
    source: &NetworkGraph,
    profile: &DeviceProfile,
    storage: Storage<'_>,
    preference: Preference,
    max_weight_bytes: u64,
) -> Result<LoweredNetwork> {
    let graph = &source.graph;
    let mut ops = Vec::new();
    for id in schedule(graph)? {
        let op = graph.node(id).op().expect("the schedule holds ops only");
        let work = match op {
            Op::Embedding(_) => Work::Gather,
            _ => kernels(graph, id, op, profile, storage, preference, max_weight_bytes)
                .with_context(|| format!("{}: node '{}'", source.name, graph.node(id).name))?,
        };
        ops.push(LoweredOp { id, work });
    }
    Ok(LoweredNetwork { source: source.clone(), ops })
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
    graph: &Graph,
    id: ValueId,
    op: &Op,
    profile: &DeviceProfile,
    storage: Storage<'_>,
    preference: Preference,
    max_weight_bytes: u64,
) -> Result<Work> {
    let inputs = operands(graph, id, storage);
    let problem = Problem { op, inputs: &inputs, output: graph.ty(id), max_weight_bytes };
    let allowed_bytes = match preference {
        Preference::Fastest => u64::MAX,
        Preference::ScratchUpTo(bytes) => bytes,
    };
    let target = &*profile.target.tuned(&problem);
    let mut lowered = Vec::new();
    for variant in candidates(&problem, target) {
        let lowering = (variant.lower)(&problem, target)
            .with_context(|| format!("variant {}", variant.name))?;
        let scratch: u64 = lowering.scratch_bytes.iter().sum();
        lowered.push((scratch, variant.name, lowering));
        if scratch <= allowed_bytes {
            let last = lowered.len() - 1;
            lowered.drain(..last);
            break;
        }
    }
    let best = lowered.into_iter().min_by_key(|(scratch, ..)| *scratch);
    let Some((_, variant, lowering)) = best else {
        bail!(
            "no kernel variant of {} applies to {} on a {:?} device",
            op.name(),
            inputs.iter().map(|i| i.ty.to_string()).collect::<Vec<_>>().join(" x "),
            target.class
        );
    };
    check_scalar_limits(&lowering).map_err(|e| anyhow!("variant {variant}: {e}"))?;
    let costs = launch_costs(&problem, variant, &lowering, &profile.rates);
    Ok(Work::Kernels { variant, lowering, costs })
}

fn check_scalar_limits(lowering: &Lowering) -> Result<()> {
    if lowering.launches.is_empty() {
        bail!("lowers to no launch");
    }
    if lowering.launches.iter().any(|l| l.global.contains(&0)) {
        bail!("a launch has no work-items");
    }
    Ok(())
}
