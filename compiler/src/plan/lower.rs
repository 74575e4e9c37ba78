//! Chooses a kernel variant for every op of a network.

use anyhow::{Context, Result, anyhow, bail};
use kiln_bundle::plan::Phase;
use kiln_ir::{DType, Graph, Op, ValueId};
use kiln_kernels::{Lowering, Operand, Packing, Problem, Target, candidates};

use super::schedule::schedule;

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
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storage {
    /// Weights of contractions. Norms and biases stay in `f32`.
    pub weights: DType,
}

impl Storage {
    /// Storage type of a constant: only matrices and filters are worth shrinking.
    pub fn of(self, rank: usize) -> DType {
        if rank >= 2 { self.weights } else { DType::F32 }
    }
}

/// Lowers a network.
///
/// Errors: an op without a variant for the target, by name.
pub fn lower(
    source: &NetworkGraph,
    target: &Target,
    storage: Storage,
    preference: Preference,
    max_weight_bytes: u64,
) -> Result<LoweredNetwork> {
    let graph = &source.graph;
    let mut ops = Vec::new();
    for id in schedule(graph)? {
        let op = graph.node(id).op().expect("the schedule holds ops only");
        let work = match op {
            Op::Embedding(_) => Work::Gather,
            _ => kernels(graph, id, op, target, storage, preference, max_weight_bytes)
                .with_context(|| format!("{}: node '{}'", source.name, graph.node(id).name))?,
        };
        ops.push(LoweredOp { id, work });
    }
    Ok(LoweredNetwork { source: source.clone(), ops })
}

/// The inputs of an op as its kernels see them.
pub fn operands(graph: &Graph, id: ValueId, storage: Storage) -> Vec<Operand> {
    let operand = |v: ValueId| {
        let (mut ty, constant) = (graph.ty(v).clone(), graph.node(v).is_weight());
        if constant && ty.dtype == DType::F32 {
            ty.dtype = storage.of(ty.shape.len());
        }
        Operand { ty, constant }
    };
    graph.operands(id).into_iter().map(operand).collect()
}

fn kernels(
    graph: &Graph,
    id: ValueId,
    op: &Op,
    target: &Target,
    storage: Storage,
    preference: Preference,
    max_weight_bytes: u64,
) -> Result<Work> {
    let inputs = operands(graph, id, storage);
    let problem = Problem { op, inputs: &inputs, output: graph.ty(id), max_weight_bytes };
    let allowed_bytes = match preference {
        Preference::Fastest => u64::MAX,
        Preference::ScratchUpTo(bytes) => bytes,
    };
    let mut lowered = Vec::new();
    for variant in candidates(&problem, target) {
        let lowering = (variant.lower)(&problem, target)
            .with_context(|| format!("variant {}", variant.name))?;
        let scratch: u64 = lowering.scratch_bytes.iter().sum();
        lowered.push((scratch, Work::Kernels { variant: variant.name, lowering }));
        if scratch <= allowed_bytes {
            let last = lowered.len() - 1;
            lowered.drain(..last);
            break;
        }
    }
    let best = lowered.into_iter().min_by_key(|(scratch, _)| *scratch);
    let Some((_, work)) = best else {
        bail!(
            "no kernel variant of {} applies to {} on a {:?} device",
            op.name(),
            inputs.iter().map(|i| i.ty.to_string()).collect::<Vec<_>>().join(" x "),
            target.class
        );
    };
    if let Work::Kernels { variant, lowering } = &work {
        check_scalar_limits(lowering).map_err(|e| anyhow!("variant {variant}: {e}"))?;
    }
    Ok(work)
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
