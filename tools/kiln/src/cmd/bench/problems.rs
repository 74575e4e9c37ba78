//! The distinct ops of a model's networks, as its compiler lowers them.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use kiln_compiler::Model;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::plan::lower::{LoweredNetwork, LoweringCache, Work, lower_model};
use kiln_compiler::plan::select::choose;
use kiln_compiler::quantize::Choices;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::strategy::{ReadPrice, Scratch, Selection, Strategy, strategies};
use kiln_ir::{Op, TensorType};
use kiln_kernels::{Operand, Problem, Variant, candidates};
use kiln_runtime::device::{self, DeviceFacts};
use std::collections::HashMap;
use std::path::PathBuf;

use crate::cmd::compile::Precision;
use crate::model;

/// Networks whose time a user notices.
const NETWORKS: [&str; 3] = ["text_encoder", "unet", "decoder"];

/// The model and the device of a measurement.
#[derive(clap::Args)]
pub struct Subject {
    /// Compiled model with the ops to measure. Its weights are not read
    #[arg(required_unless_present = "model")]
    pub bundle: Option<PathBuf>,
    /// A model instead of a bundle, as for kiln compile
    #[arg(long, conflicts_with = "bundle")]
    pub model: Option<String>,
    /// Storage of weights [default: the bundle's, else fp32]
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
    /// Batch of the U-Net [default: the bundle's, else 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub guidance_batch: Option<u8>,
    /// Profile that selects the kernels: a name or a .toml file [default: the device's]
    #[arg(long)]
    pub profile: Option<String>,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, default_value = "auto")]
    pub device: String,
}

/// An op with its types and its strategy's limits.
pub struct Single {
    op: Op,
    inputs: Vec<Operand>,
    output: TensorType,
    max_weight_bytes: u64,
    max_scratch_bytes: u64,
}

impl Single {
    /// An op of a network that is compiled with a strategy.
    pub fn new(op: Op, inputs: Vec<Operand>, output: TensorType, strategy: &Strategy) -> Self {
        let max_weight_bytes = strategy.max_block_bytes;
        let max_scratch_bytes = strategy.scratch.limit_bytes();
        Self { op, inputs, output, max_weight_bytes, max_scratch_bytes }
    }

    /// The op as a problem for kernels.
    pub fn problem(&self) -> Problem<'_> {
        let Self { op, inputs, output, .. } = self;
        let (max_weight_bytes, max_scratch_bytes) = (self.max_weight_bytes, self.max_scratch_bytes);
        Problem { op, inputs, output, max_weight_bytes, max_scratch_bytes }
    }

    /// Arithmetic of one evaluation, in FLOP.
    pub fn flops(&self) -> u64 {
        let types: Vec<&TensorType> = self.inputs.iter().map(|i| &i.ty).collect();
        self.op.flops(&types, &self.output)
    }

    /// Bytes of inputs and output, each counted once.
    pub fn bytes(&self) -> u64 {
        let inputs: u64 = self.inputs.iter().map(|i| i.ty.size_bytes()).sum();
        inputs + self.output.size_bytes()
    }
}

/// A distinct op of a network, with its number of occurrences.
pub struct Item {
    /// Name of the network.
    pub network: String,
    /// Number of occurrences in a pass.
    pub count: usize,
    /// Name of the first occurrence.
    pub first: String,
    single: Single,
}

impl Item {
    /// The op as a problem for kernels.
    pub fn problem(&self) -> Problem<'_> {
        self.single.problem()
    }

    /// Arithmetic of one occurrence, in FLOP.
    pub fn flops(&self) -> u64 {
        self.single.flops()
    }

    /// Bytes of inputs and output of one occurrence, each counted once.
    pub fn bytes(&self) -> u64 {
        self.single.bytes()
    }

    /// Bytes of weights of one occurrence.
    pub fn weight_bytes(&self) -> u64 {
        let constants = self.single.inputs.iter().filter(|i| i.constant);
        constants.map(|i| i.ty.size_bytes()).sum()
    }
}

/// A [`Subject`] with its files loaded and its device found.
pub struct Resolved {
    /// Name of the model.
    pub model: String,
    /// Name of the profile.
    pub profile_name: String,
    /// The profile.
    pub profile: DeviceProfile,
    /// The profile's TOML.
    pub profile_text: String,
    /// The device.
    pub device: DeviceFacts,
    /// The ops of the networks in execution order.
    pub items: Vec<Item>,
    /// Rows of each network's output.
    pub batches: HashMap<String, usize>,
}

impl Resolved {
    /// The variants for a problem with this profile; see [`variants`].
    pub fn variants(&self, problem: &Problem) -> Result<Vec<&'static Variant>> {
        variants(problem, &self.profile)
    }
}

/// The variants that can compute a problem, the compiler's choice for resident weights first.
pub fn variants(problem: &Problem, profile: &DeviceProfile) -> Result<Vec<&'static Variant>> {
    let selection = Selection {
        scratch: Scratch::Unlimited,
        max_weight_bytes: problem.max_weight_bytes,
        read_price: ReadPrice::FREE,
    };
    let chosen = choose(problem, profile, selection)?.map(|c| c.variant);
    let mut list = candidates(problem, &profile.target.tuned(problem));
    list.sort_by_key(|v| Some(v.name) != chosen);
    Ok(list)
}

/// Finds the distinct ops of the networks in `wanted`, or of [`NETWORKS`] if it is empty.
///
/// Errors: an unknown model, profile, device or network; an unreadable bundle.
pub fn resolve(subject: &Subject, wanted: &[String]) -> Result<Resolved> {
    let device = device::select(&subject.device)?;
    let bundle = subject.bundle.as_deref().map(crate::cmd::open_bundle).transpose()?;
    let manifest = bundle.as_ref().map(|bundle| &bundle.plan().manifest);
    let choices = match &bundle {
        Some(bundle) => Choices::recorded(&bundle.plan().rationale.weights),
        None => Choices::default(),
    };
    let name = subject.model.as_deref().or(manifest.map(|m| m.model.as_str()));
    let mut model = model::find(name.context("a bundle or --model is needed")?)?;
    if let Some(size) = manifest.filter(|_| subject.model.is_none()).map(|m| m.image) {
        let [height, width] = size.axes();
        let sized = model.0.at_size(width, height);
        model.0 = sized.map_err(anyhow::Error::msg)?;
    }
    let (profile_name, profile) = match &subject.profile {
        Some(profile) => DeviceProfile::load(profile)?,
        None => crate::cmd::devices::adapted_profile(&device)?,
    };
    let (_, profile_text) = DeviceProfile::text(subject.profile.as_ref().unwrap_or(&profile_name))?;
    let precision = match (subject.precision, manifest) {
        (Some(precision), _) => precision,
        (None, None) => Precision::Fp32,
        (None, Some(m)) => {
            let parsed = Precision::from_str(&m.precision, false);
            parsed.ok().with_context(|| format!("the bundle's precision is {}", m.precision))?
        }
    };
    let batch = subject.guidance_batch.map(usize::from);
    let request = PlanRequest {
        profile: &profile,
        storage: precision.storage(&choices),
        budget_bytes: u64::MAX,
        guidance_branches: manifest.map(|m| m.guidance_branches as usize),
        guidance_batch: batch.or(manifest.map(|m| m.guidance_batch as usize)),
        fast: false,
        lora_bytes: 0,
    };
    let list = strategies(
        &profile,
        request.storage.activations,
        request.branches(&model.manifest()),
        request.guidance_batch,
    );
    let strategy = *list.first().context("there is no strategy")?;
    let networks = lower_model(&model, strategy, &request, &mut LoweringCache::default())?;
    let names: Vec<&str> = networks.iter().map(|n| n.source.name.as_str()).collect();
    if let Some(unknown) = wanted.iter().find(|w| !names.contains(&w.as_str())) {
        bail!("no network '{unknown}'; there are: {}", names.join(", "));
    }
    let is_wanted = |name: &str| match wanted {
        [] => NETWORKS.contains(&name),
        _ => wanted.iter().any(|w| w == name),
    };
    let mut items: Vec<Item> = Vec::new();
    let mut batches = HashMap::new();
    for network in networks.iter().filter(|n| is_wanted(&n.source.name)) {
        let graph = &network.source.graph;
        let rows = graph.outputs().first().map_or(1, |(_, id)| graph.ty(*id).shape[0]);
        batches.insert(network.source.name.clone(), rows);
        add_items(&mut items, network, &strategy);
    }
    let model = model.0.name;
    Ok(Resolved { model, profile_name, profile, profile_text, device, items, batches })
}

/// Adds the ops of a network that kernels compute. Equal ops become one item.
fn add_items(items: &mut Vec<Item>, network: &LoweredNetwork, strategy: &Strategy) {
    let graph = &network.source.graph;
    for lowered in network.ops.iter().filter(|op| matches!(op.work, Work::Kernels { .. })) {
        let node = graph.node(lowered.id);
        let op = node.op().expect("only ops are lowered").clone();
        let item = Item {
            network: network.source.name.clone(),
            count: 1,
            first: node.name.clone(),
            single: Single::new(op, lowered.inputs.clone(), node.ty.clone(), strategy),
        };
        let same = items
            .iter_mut()
            .find(|other| other.network == item.network && other.problem() == item.problem());
        match same {
            Some(other) => other.count += 1,
            None => items.push(item),
        }
    }
}
