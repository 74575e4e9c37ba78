//! Lowers a model: its networks become kernel launches, in execution order.
//!
//! Parts of the model -> passes up to the split -> passes for the device -> schedule -> a variant
//! and its launches for every op.

use anyhow::{Context, Result, anyhow, bail};
use kiln_ir::{DType, Op, ValueId};
use kiln_kernels::{Lowering, Operand, Packing, Problem, Target};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::cost::LaunchCost;
use super::dispatch::{self, Part};
use super::schedule::schedule;
use super::select::{Lowered, Options, Packed};
use crate::device::DeviceProfile;
use crate::model::{Model, NetworkGraph, parts_around};
use crate::passes::{self, Stage};
use crate::request::PlanRequest;
use crate::storage::Storage;
use crate::strategy::{Selection, Strategy};
use kiln_bundle::plan::Role;

/// The implementation of an op.
pub enum Work {
    /// Kernels.
    Kernels {
        /// Name of the variant.
        variant: &'static str,
        /// The variant's launches.
        lowering: Lowering,
        /// Cost of each launch.
        costs: Vec<LaunchCost>,
        /// The position of each launch in the launch that it is a part of.
        parts: Vec<Part>,
        /// Inputs whose memory the output may reuse.
        in_place: Vec<usize>,
        /// The options for this op, and the index of the chosen one.
        options: (Arc<Options>, usize),
    },
    /// Reads rows of a table from the bundle.
    Gather,
}

/// An op and its implementation.
pub struct LoweredOp {
    /// The node.
    pub id: ValueId,
    /// The operands for kernels: constants have their storage type.
    pub inputs: Vec<Operand>,
    /// The implementation.
    pub work: Work,
}

impl LoweredOp {
    /// Number of launches, or 1 for a gather.
    pub fn launch_count(&self) -> usize {
        match &self.work {
            Work::Kernels { lowering, .. } => lowering.launches.len(),
            Work::Gather => 1,
        }
    }

    /// Packing of a constant input.
    pub fn packing(&self, input: usize) -> Packing {
        let chosen = match &self.work {
            Work::Kernels { lowering, .. } => {
                lowering.packings.iter().find(|(i, _)| *i == input).map(|(_, p)| *p)
            }
            Work::Gather => None,
        };
        chosen.unwrap_or(Packing::RowMajor(self.inputs[input].ty.dtype))
    }
}

/// A network as launches in execution order.
pub struct LoweredNetwork {
    /// The network before lowering.
    pub source: NetworkGraph,
    /// The ops in scheduled order.
    pub ops: Vec<LoweredOp>,
}

/// Results that strategies share. Most of their networks and problems are the same.
#[derive(Default)]
pub struct LoweringCache {
    /// Networks before the passes for the device, by the settings that those passes depend on.
    networks: HashMap<(usize, DType, bool), Vec<NetworkGraph>>,
    /// Options by problem.
    options: HashMap<String, Arc<Options>>,
}

/// Lowers a model by a strategy: its networks in execution order.
///
/// `cache` belongs to one model and one device.
/// Errors: an op has no variant for the target; a pass breaks a graph.
pub fn lower_model(
    model: &dyn Model,
    strategy: Strategy,
    request: &PlanRequest,
    cache: &mut LoweringCache,
) -> Result<Vec<LoweredNetwork>> {
    let profile = request.profile;
    let key = (strategy.guidance_batch, strategy.activations, strategy.recompute);
    let networks = match cache.networks.entry(key) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(networks(model, strategy, request)?),
    };
    let networks = passes::run(Stage::Device..=Stage::Device, networks.clone(), strategy, profile)?;
    let mut lowered: Vec<LoweredNetwork> = Vec::new();
    for network in networks {
        let selection = strategy.selection(network.role);
        let denoiser = lowered.iter().find(|n| n.source.role == Role::Denoiser);
        let whole = denoiser.filter(|_| network.role.is_denoiser());
        lowered.push(lower_as(network, whole, profile, request.storage, selection, cache)?);
    }
    Ok(lowered)
}

/// The networks of a model in execution order, after all passes except those for the device.
fn networks(
    model: &dyn Model,
    strategy: Strategy,
    request: &PlanRequest,
) -> Result<Vec<NetworkGraph>> {
    let split = |batch| {
        let stages = Stage::Declutter..=Stage::Split;
        let unet = if request.fast { model.unet_with_deep(batch)? } else { model.unet(batch)? };
        let parts = parts_around(model, unet, strategy.guidance_branches)?;
        passes::run(stages, parts, strategy, request.profile)
    };
    let mut networks = split(strategy.guidance_batch)?;
    if strategy.guidance_batch != strategy.guidance_branches {
        // The network of prompts serves all branches of guidance, regardless of the batch in the
        // loop.
        let is_prompt = |network: &NetworkGraph| network.role == Role::PromptProjection;
        let wide = split(strategy.guidance_branches)?.into_iter().find(is_prompt);
        let prompt = networks.iter_mut().find(|network| is_prompt(network));
        if let (Some(prompt), Some(wide)) = (prompt, wide) {
            *prompt = wide;
        }
    }
    if request.fast && strategy.guidance_branches > 1 {
        networks.extend(split(1)?.into_iter().filter_map(conditional));
    }
    networks.sort_by_key(|network| network.role);
    Ok(networks)
}

/// The variant of a denoiser for the conditional branch alone; `None` for other networks. Its
/// values for prompts and timesteps are rows of those for all branches.
fn conditional(mut network: NetworkGraph) -> Option<NetworkGraph> {
    (network.name, network.role) = match network.role {
        Role::Denoiser => (network.name + "_conditional", Role::ConditionalDenoiser),
        Role::ShallowDenoiser => (network.name + "_conditional", Role::ShallowConditionalDenoiser),
        _ => return None,
    };
    network.graph.name.clone_from(&network.name);
    Some(network)
}

/// Lowers a network.
///
/// Errors: an op has no variant for the target.
pub fn lower(
    source: NetworkGraph,
    profile: &DeviceProfile,
    storage: Storage<'_>,
    selection: Selection,
    cache: &mut LoweringCache,
) -> Result<LoweredNetwork> {
    lower_as(source, None, profile, storage, selection, cache)
}

/// [`lower`], where a variant of another network reads that network's packed weights.
fn lower_as(
    source: NetworkGraph,
    whole: Option<&LoweredNetwork>,
    profile: &DeviceProfile,
    storage: Storage<'_>,
    selection: Selection,
    cache: &mut LoweringCache,
) -> Result<LoweredNetwork> {
    let graph = &source.graph;
    let mut ops = Vec::new();
    for id in schedule(graph)? {
        let op = graph.node(id).op().expect("the schedule holds ops only");
        let inputs = storage.operands(graph, id);
        if matches!(op, Op::Embedding(_)) {
            ops.push(LoweredOp { id, inputs, work: Work::Gather });
            continue;
        }
        let problem = Problem {
            op,
            inputs: &inputs,
            output: graph.ty(id),
            max_weight_bytes: selection.max_weight_bytes,
            max_scratch_bytes: selection.scratch.limit_bytes(),
        };
        let packed =
            whole.and_then(|whole| whole.packed_for(&graph.node(id).name, &problem, profile));
        let work = kernels(&problem, packed, profile, selection, cache)
            .with_context(|| format!("{}: node '{}'", source.name, graph.node(id).name))?;
        ops.push(LoweredOp { id, inputs, work });
    }
    Ok(LoweredNetwork { source, ops })
}

impl LoweredNetwork {
    /// Index of the op with a name.
    pub fn op_named(&self, name: &str) -> Option<usize> {
        self.ops.iter().position(|op| self.source.graph.node(op.id).name == name)
    }

    /// How this network packs the weights of an op, for the op with the same name in a variant of
    /// it. `None` if nothing binds the variant: its problem is the same, or it has no such op.
    fn packed_for(&self, name: &str, problem: &Problem, profile: &DeviceProfile) -> Option<Packed> {
        let op = &self.ops[self.op_named(name)?];
        let Work::Kernels { lowering, .. } = &op.work else { return None };
        let node = self.source.graph.node(op.id);
        let own = Problem { op: node.op()?, inputs: &op.inputs, output: &node.ty, ..*problem };
        let packings = lowering.packings.clone();
        let target = profile.target.tuned(&own).into_owned();
        (own != *problem && !packings.is_empty()).then_some(Packed { target, packings })
    }
}

fn kernels(
    problem: &Problem,
    packed: Option<Packed>,
    profile: &DeviceProfile,
    selection: Selection,
    cache: &mut LoweringCache,
) -> Result<Work> {
    let packings = packed.as_ref().map(|packed| &packed.packings);
    let options = match cache.options.entry(format!("{problem:?} {packings:?}")) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Arc::new(match packed {
            None => Options::new(problem, profile)?,
            Some(packed) => Options::packed(problem, profile, packed)?,
        })),
    };
    let Some(best) = options.best(profile, selection) else {
        bail!(
            "no kernel variant of {} applies to {} on a {:?} device",
            problem.op.name(),
            problem.inputs.iter().map(|i| i.ty.to_string()).collect::<Vec<_>>().join(" x "),
            profile.target.class
        );
    };
    let Lowered { variant, mut lowering, mut costs, .. } = options.get(best).clone();
    check_limits(&lowering, &profile.target).map_err(|e| anyhow!("variant {variant}: {e}"))?;
    let in_place = kiln_kernels::in_place(problem, &lowering);
    let rates = &profile.rates;
    let parts = dispatch::cut(&mut lowering, &mut costs, rates.max_dispatch_ns(), rates.launch_ns)
        .with_context(|| format!("variant {variant}"))?;
    let options = (Arc::clone(options), best);
    Ok(Work::Kernels { variant, lowering, costs, parts, in_place, options })
}

/// Checks the limits of the target on every launch, independently of the variant.
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
