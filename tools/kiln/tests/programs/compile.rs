//! How a random model is compiled: the only file here that calls the compiler.

use kiln_bundle::BundleWriter;
use kiln_bundle::plan::{Plan, Step};
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::model::GUIDANCE_BRANCHES;
use kiln_compiler::passes::{self, Stage};
use kiln_compiler::plan::Planned;
use kiln_compiler::quantize::{self, Choices};
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::strategy::strategies;
use kiln_compiler::{DoesNotFit, Model, emit, model, plan_model};
use kiln_ir::Graph;
use std::path::Path;

use crate::device;
use crate::entropy::Entropy;
use crate::evaluate::Arithmetic;
use crate::values::Checkpoint;

/// What a model is compiled for.
pub struct Setting {
    pub profile_name: &'static str,
    pub profile: DeviceProfile,
    pub arithmetic: Arithmetic,
    pub guidance_batch: Option<usize>,
    choices: Choices,
    /// Kernels are built without optimization.
    quick_builds: bool,
}

/// What came of a budget.
pub enum Answer {
    /// A plan.
    Fits(Box<Planned>),
    /// The budget is too small: the smallest feasible one.
    Smallest(u64),
    /// The device's largest allocation is too small, whatever the budget.
    Allocation,
}

impl Setting {
    /// `executable` keeps what the device of the tests runs.
    pub fn any(
        entropy: &mut Entropy,
        model: &dyn Model,
        checkpoint: &Checkpoint,
        executable: bool,
    ) -> Self {
        let load = |name: &str| DeviceProfile::load(name).expect("it ships").1;
        let fits = |name: &&str| !executable || device::runs(&load(name));
        let names: Vec<_> = DeviceProfile::names().filter(fits).collect();
        let profile_name = entropy.pick(&names);
        let mut profile = load(profile_name);
        if executable {
            device::adapt(&mut profile);
        }
        let memory = &mut profile.memory;
        memory.max_block_bytes =
            entropy.pick(&[memory.max_block_bytes, 1 << 20, 256 << 10, 64 << 10]);
        memory.slot_count = entropy.pick(&[3, 3, 2, 4]);
        if !executable && entropy.chance(15) {
            memory.max_alloc_bytes = entropy.pick(&[32 << 10, 256 << 10, 1 << 20, 4 << 20]);
        }
        if profile.rates.max_dispatch_ms > 0 && entropy.chance(50) {
            // Launches of small networks are short: slow devices cut them all the same.
            profile.rates.flops_per_s = 1e8;
            profile.rates.half_flops_per_s = 2e8;
        }
        let arithmetic =
            entropy.pick(&[Arithmetic::Fp32, Arithmetic::Fp32, Arithmetic::Fp16, Arithmetic::Int8]);
        let measured = arithmetic == Arithmetic::Int8 && entropy.chance(50);
        let choices = if measured { measure(model, checkpoint) } else { Choices::default() };
        let guidance_batch = entropy.pick(&[None, None, Some(1), Some(2)]);
        let quick_builds = executable && device::is_cpu();
        Self { profile_name, profile, arithmetic, guidance_batch, choices, quick_builds }
    }

    /// Name of the precision.
    pub fn precision(&self) -> &'static str {
        match self.arithmetic {
            Arithmetic::Reference | Arithmetic::Fp32 => "fp32",
            Arithmetic::Fp16 => "fp16",
            Arithmetic::Int8 => "int8",
        }
    }

    fn storage(&self) -> Storage<'_> {
        match self.arithmetic {
            Arithmetic::Reference | Arithmetic::Fp32 => Storage::FP32,
            Arithmetic::Fp16 => Storage::FP16,
            Arithmetic::Int8 => Storage::int8(&self.choices),
        }
    }

    /// The networks of a model after all passes, for one of the strategies of the device.
    pub fn optimized(&self, model: &dyn Model, entropy: &mut Entropy) -> Vec<(String, Graph)> {
        let (profile, narrowest) = (&self.profile, self.storage().activations);
        let strategy =
            entropy.pick(&strategies(profile, narrowest, GUIDANCE_BRANCHES, self.guidance_batch));
        let parts = model::parts(model, strategy.guidance_branches, strategy.guidance_batch)
            .expect("it is built");
        let networks = passes::run(Stage::Declutter..=Stage::Device, parts, strategy, profile);
        let networks = networks.expect("passes leave graphs that verify");
        networks.into_iter().map(|network| (network.name, network.graph)).collect()
    }

    /// Plans for a budget. Panics on errors that no random model should meet.
    pub fn plan(&self, model: &dyn Model, budget_bytes: u64) -> Answer {
        let request = PlanRequest {
            guidance_batch: self.guidance_batch,
            ..PlanRequest::new(&self.profile, self.storage(), budget_bytes)
        };
        let error = match plan_model(model, self.profile_name, self.precision(), &request) {
            Ok(planned) => return Answer::Fits(Box::new(planned)),
            Err(error) => error,
        };
        match error.downcast_ref::<DoesNotFit>() {
            Some(DoesNotFit { shortfall, .. }) if shortfall.allocation.is_some() => {
                Answer::Allocation
            }
            Some(DoesNotFit { shortfall, .. }) => Answer::Smallest(shortfall.needs_bytes),
            None => panic!("{error:#}"),
        }
    }

    /// Writes the bundle.
    pub fn emit(
        &self,
        planned: &mut Planned,
        checkpoint: &Checkpoint,
        tokenizer: &[u8],
        path: &Path,
    ) {
        // Drivers for CPUs compile for a tenth of the time if they need not optimize.
        if self.quick_builds {
            let kernels = &mut planned.plan.kernels;
            kernels.iter_mut().for_each(|kernel| kernel.options += " -cl-opt-disable");
        }
        let writer = BundleWriter::create(path).expect("it can be written");
        let written =
            emit::emit(std::slice::from_ref(planned), checkpoint, tokenizer, writer, &mut |_| {});
        written.expect("every tensor is there");
    }
}

fn measure(model: &dyn Model, checkpoint: &Checkpoint) -> Choices {
    let graphs = quantize::weight_graphs(model).expect("the graphs verify");
    quantize::measure(&graphs, checkpoint, &mut |_| {}).expect("every tensor is there")
}

/// What the passes that depend on nothing else do to a graph; how often each did something.
pub fn optimize(graph: &mut Graph) -> Vec<(&'static str, usize)> {
    passes::optimize(graph).expect("passes leave a graph that verifies")
}

/// The networks of a plan before their ops became launches.
pub fn graphs(planned: &Planned) -> Vec<(&str, &Graph)> {
    planned.networks.iter().map(|n| (n.source.name.as_str(), &n.source.graph)).collect()
}

/// The strategy that was taken.
pub fn strategy(plan: &Plan) -> &str {
    plan.rationale.attempts.last().map_or("", |attempt| &attempt.strategy)
}

/// The number of axes along which each part of a launch was split off.
pub fn split_axes(plan: &Plan) -> impl Iterator<Item = usize> + '_ {
    let steps = plan.networks.iter().flat_map(|network| &network.steps);
    let axes = steps.map(|step| match step {
        Step::Dispatch(d) => (0..3).filter(|axis| d.global[*axis] < d.range[*axis]).count(),
        _ => 0,
    });
    axes.filter(|axes| *axes > 0)
}
