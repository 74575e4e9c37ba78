//! One random program, and what must hold for it.

use arbtest::arbitrary::{self, Unstructured};
use kiln_bundle::plan::Plan;
use kiln_bundle::{BundleFile, check};
use kiln_compiler::Model;
use kiln_ir::{Graph, Tensor};
use kiln_runtime::Session;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::compile::{self, Answer, Setting};
use crate::coverage::Coverage;
use crate::device;
use crate::entropy::Entropy;
use crate::evaluate::{Arithmetic, bound, exact, noisy, relative_l2, with_bounds};
use crate::model::{CLIP_MERGES, RandomModel};
use crate::mutations;
use crate::picture;
use crate::values::{Checkpoint, Inputs, inputs};
use crate::wiring::{self, Part};

/// Bytes that decide on everything but what the networks are made of.
const SIZES_BYTES: usize = 40;

/// Samplers that add no noise of their own.
const SAMPLERS: [&str; 3] = ["ddim", "euler", "dpm++2m"];

/// A network of the model as it was built, with inputs and what it makes of them.
pub struct Original {
    pub graph: Graph,
    pub inputs: Inputs,
    pub expected: Tensor,
    /// Relative L2 error that rounding in FP32 may cause.
    pub bound: f64,
}

/// A random program.
pub struct Case<'a> {
    pub model: RandomModel,
    pub checkpoint: Checkpoint,
    pub originals: BTreeMap<&'static str, Original>,
    entropy: Entropy<'a>,
    execute: bool,
    /// The sampler, if a picture is made.
    picture: Option<&'static str>,
}

impl<'a> Case<'a> {
    pub fn any(u: &mut Unstructured<'a>, execute: bool) -> Self {
        let sizes = u.bytes(u.len().min(SIZES_BYTES)).expect("it has as many");
        let networks = u.bytes(u.len()).expect("it has as many");
        let mut entropy = Entropy(Unstructured::new(sizes));
        let picture = (execute && entropy.chance(30)).then(|| entropy.pick(&SAMPLERS));
        let model = RandomModel::any(&mut entropy, networks, execute, picture.is_some());
        let mut graphs = vec![
            ("text_encoder", model.text_encoder(2)),
            ("unet", model.unet(2)),
            ("decoder", model.decoder()),
        ];
        if let Some(encoder) = model.encoder().expect("it is built") {
            graphs.push(("encoder", Ok(encoder)));
        }
        let graphs: Vec<_> =
            graphs.into_iter().map(|(name, graph)| (name, graph.expect("it is built"))).collect();
        let checkpoint = Checkpoint::of(graphs.iter().map(|(_, graph)| graph));
        let original = |(name, graph): (&'static str, Graph)| {
            let inputs = inputs(&graph, model.vocabulary);
            let mut outputs = with_bounds(&graph, &inputs, &checkpoint, Arithmetic::Reference);
            let (expected, bound) = outputs.drain().next().expect("it has an output").1;
            (name, Original { graph, inputs, expected, bound })
        };
        let originals = graphs.into_iter().map(original).collect();
        Self { model, checkpoint, originals, entropy, execute, picture }
    }

    /// Panics if anything does not hold, with the program.
    pub fn hold(mut self, coverage: &mut Coverage) -> arbitrary::Result<()> {
        let _shown = Shown(self.model.to_string());
        coverage.count("cases", "all");
        let setting = self.setting();
        self.passes_preserve(&setting, coverage);
        coverage.count("profiles", format!("{} {}", setting.profile_name, setting.precision()));
        let Some(smallest) = self.smallest_budget(&setting, coverage) else { return Ok(()) };
        let budget = self.budget(smallest);
        let mut planned = match setting.plan(&self.model, budget) {
            Answer::Fits(planned) => planned,
            Answer::Smallest(needed) if budget < smallest => {
                assert!(needed > budget, "{needed} bytes are more than the {budget} refused");
                coverage.count("cases", "infeasible budget");
                return Ok(());
            }
            _ => panic!("{budget} bytes do not fit, where {smallest} did"),
        };
        let parts = compile::graphs(&planned);
        self.same(&parts, "graphs of a plan", coverage);
        parts.iter().for_each(|(_, graph)| coverage.ops("ops of plans", graph));
        coverage.count("strategies", strategy_kind(compile::strategy(&planned.plan)));
        for kernel in &planned.plan.kernels {
            coverage.count("kernels", format!("{}/{}", kernel.op, kernel.variant));
        }
        for axes in compile::split_axes(&planned.plan) {
            coverage.count("parts of launches", format!("split along {axes} axes"));
        }
        let path = bundle_path();
        let tokenizer = if self.picture.is_some() { CLIP_MERGES } else { &[] };
        setting.emit(&mut planned, &self.checkpoint, tokenizer, &path);
        self.plan_is_sound(&path, budget, coverage);
        if self.execute {
            self.device_agrees(&path, setting.arithmetic, coverage);
        }
        Ok(())
    }

    /// Holds an arena of several allocations to the arena in one, bit for bit. Allocations are no
    /// larger than the largest buffer or slot.
    pub fn hold_in_parts(mut self) -> arbitrary::Result<()> {
        let _shown = Shown(self.model.to_string());
        let mut setting = self.setting();
        let (one, expected) = self.computed(&setting);
        let lens_bytes = one.buffers.iter().map(|buffer| buffer.len_bytes);
        let largest_bytes = lens_bytes.chain(one.memory.slot_bytes.iter().copied()).max();
        let max_alloc_bytes = largest_bytes.expect("it has buffers");
        setting.profile.memory.max_alloc_bytes =
            max_alloc_bytes.next_multiple_of(one.requirements.base_align_bytes);
        let (several, found) = self.computed(&setting);
        assert_eq!(compile::strategy(&several), compile::strategy(&one));
        let counts = [&one, &several].map(|plan| plan.memory.arena_parts().count());
        assert!(counts[0] == 1 && counts[1] > 1, "{counts:?} allocations");
        assert_eq!(found, expected);
        Ok(())
    }

    /// A plan without a limit that matters, and the bits of every network's output on the device.
    fn computed(&self, setting: &Setting) -> (Plan, Vec<Vec<u32>>) {
        let Answer::Fits(mut planned) = setting.plan(&self.model, 1 << 30) else {
            panic!("1 GiB is too small")
        };
        let path = bundle_path();
        setting.emit(&mut planned, &self.checkpoint, &[], &path);
        let mut session = device::open(&path);
        let outputs = self.originals.iter().map(|(name, original)| {
            let inputs = fitting(&session, name, &original.inputs);
            let found = device::run(&mut session, name, &inputs);
            found.into_iter().map(f32::to_bits).collect()
        });
        let outputs = outputs.collect();
        (planned.plan, outputs)
    }

    fn setting(&mut self) -> Setting {
        Setting::any(&mut self.entropy, &self.model, &self.checkpoint, self.execute)
    }

    /// Breaks the networks after the passes in every way that is possible, and counts which was
    /// noticed.
    pub fn break_graphs(mut self, coverage: &mut Coverage) -> arbitrary::Result<()> {
        let setting = self.setting();
        let networks = setting.optimized(&self.model, &mut self.entropy);
        for (what, mutate) in mutations::OF_GRAPHS {
            let mut broken = networks.clone();
            let network = self.entropy.below(broken.len());
            let (name, graph) = &mut broken[network];
            if !mutate(graph, &mut self.entropy) {
                continue;
            }
            let original = if name.starts_with("unet") { "unet" } else { name.as_str() };
            let original = self.originals.get_key_value(original).expect("it has that network");
            let parts: Vec<Part> = broken.iter().map(|(name, g)| (name.as_str(), g)).collect();
            let found = wiring::run(&parts, original.0, &original.1.inputs, &self.checkpoint);
            let error = relative_l2(&found.data, &original.1.expected.data);
            let noticed = error > original.1.bound;
            coverage.count(if noticed { "noticed" } else { "missed" }, *what);
        }
        Ok(())
    }

    /// Breaks a plan in every way that is possible, and counts which the checker noticed.
    pub fn break_plans(mut self, coverage: &mut Coverage) -> arbitrary::Result<()> {
        let setting = self.setting();
        let Some(smallest) = self.smallest_budget(&setting, coverage) else { return Ok(()) };
        let Answer::Fits(mut planned) = setting.plan(&self.model, smallest) else {
            panic!("the smallest budget, {smallest} bytes, is too small")
        };
        let path = bundle_path();
        setting.emit(&mut planned, &self.checkpoint, &[], &path);
        let bundle = BundleFile::open(&path).expect("a bundle that was written opens");
        for (what, mutate) in mutations::OF_PLANS {
            let mut plan = bundle.plan().clone();
            if mutate(&mut plan, &mut self.entropy) {
                let noticed = check::check(&plan, bundle.weights_len_bytes()).is_err();
                coverage.count(if noticed { "noticed" } else { "missed" }, *what);
            }
        }
        Ok(())
    }

    /// The passes for one of the strategies.
    fn passes_preserve(&mut self, setting: &Setting, coverage: &mut Coverage) {
        for original in self.originals.values() {
            coverage.ops("ops before passes", &original.graph);
            let mut graph = original.graph.clone();
            for (pass, changes) in compile::optimize(&mut graph) {
                coverage.add("places that passes changed", pass, changes);
            }
        }
        let networks = setting.optimized(&self.model, &mut self.entropy);
        let parts: Vec<Part> = networks.iter().map(|(name, g)| (name.as_str(), g)).collect();
        for (name, graph) in &parts {
            coverage.count("networks", *name);
            coverage.ops("ops after passes", graph);
        }
        self.same(&parts, "graphs after passes", coverage);
    }

    /// Holds networks to the originals, in FP32.
    fn same(&self, parts: &[Part], what: &'static str, coverage: &mut Coverage) {
        for (name, original) in &self.originals {
            let found = wiring::run(parts, name, &original.inputs, &self.checkpoint);
            let error = relative_l2(&found.data, &original.expected.data);
            coverage.error(what, error, original.bound);
            let bound = original.bound;
            assert!(error <= bound, "{name}, {what}: relative L2 {error:.1e} of {bound:.1e}");
        }
    }

    /// The smallest budget, from the refusal of none; `None` if the device's allocations are too
    /// small.
    fn smallest_budget(&self, setting: &Setting, coverage: &mut Coverage) -> Option<u64> {
        let smallest = match setting.plan(&self.model, 0) {
            Answer::Smallest(bytes) => bytes,
            Answer::Fits(_) => panic!("a plan for no memory"),
            Answer::Allocation => {
                coverage.count("cases", "allocation too small");
                return None;
            }
        };
        Some(smallest)
    }

    fn budget(&mut self, smallest: u64) -> u64 {
        let more = |entropy: &mut Entropy, most: usize| entropy.within(0..=most) as u64;
        match self.entropy.below(6) {
            0 | 1 => smallest,
            2 => smallest - 1 - more(&mut self.entropy, 1 << 16),
            3 => smallest + more(&mut self.entropy, 1 << 16),
            4 => smallest + more(&mut self.entropy, 1 << 21),
            _ => 1 << 30,
        }
    }

    /// Opens the bundle, whose plan the independent checker accepts, and holds it to its budget.
    fn plan_is_sound(&self, path: &Path, budget: u64, coverage: &mut Coverage) {
        let bundle = BundleFile::open(path).expect("a bundle that was written opens");
        let plan = bundle.plan();
        let checked = check::check(plan, bundle.weights_len_bytes());
        let checked = checked.unwrap_or_else(|violation| panic!("{violation}"));
        assert!(checked.peak_bytes <= budget, "{} of {budget} bytes", checked.peak_bytes);
        bundle.verify_all(|_| {}).expect("blocks have their checksums");
        coverage.count("cases", "planned");
    }

    /// Runs every network on the device.
    fn device_agrees(&self, path: &Path, arithmetic: Arithmetic, coverage: &mut Coverage) {
        let mut session = device::open(path);
        let kind = match arithmetic {
            Arithmetic::Reference | Arithmetic::Fp32 => "device, FP32",
            Arithmetic::Fp16 => "device, FP16",
            Arithmetic::Int8 => "device, INT8",
        };
        for (name, original) in &self.originals {
            let outputs =
                with_bounds(&original.graph, &original.inputs, &self.checkpoint, arithmetic);
            let (_, bound) = outputs.into_values().next().expect("it has an output");
            let inputs = fitting(&session, name, &original.inputs);
            let found = device::run(&mut session, name, &inputs);
            let expected = &original.expected.data[..found.len()];
            let error = relative_l2(&found, expected);
            coverage.error(kind, error, bound);
            assert!(error <= bound, "{name}, {kind}: relative L2 {error:.1e} of {bound:.1e}");
        }
        coverage.count("cases", "executed");
        if let Some(sampler) = self.picture {
            self.picture_agrees(&mut session, sampler, arithmetic, coverage);
        }
    }

    /// Makes a picture, which takes every network and what is copied between them.
    fn picture_agrees(
        &self,
        session: &mut Session,
        sampler: &str,
        arithmetic: Arithmetic,
        coverage: &mut Coverage,
    ) {
        let dumps = picture::make(session, sampler);
        let first = |outputs: Inputs| outputs.into_values().next().expect("it has an output");
        let checkpoint = &self.checkpoint;
        let expected = picture::simulate(&dumps, sampler, &self.originals, |graph, inputs| {
            first(exact(graph, inputs, checkpoint))
        });
        let noisy = picture::simulate(&dumps, sampler, &self.originals, |graph, inputs| {
            first(noisy(graph, inputs, checkpoint, arithmetic))
        });
        let bound = bound(&noisy, &expected);
        let error = relative_l2(&dumps["decoded"], &expected);
        coverage.count("cases", "pictures");
        coverage.error("pictures", error, bound);
        assert!(error <= bound, "picture by {sampler}: relative L2 {error:.1e} of {bound:.1e}");
    }
}

/// Inputs for a session: one branch of guidance where its denoiser has room for no more.
fn fitting(session: &Session, name: &str, inputs: &Inputs) -> Inputs {
    let mut inputs = inputs.clone();
    if name == "unet" && session.plan().manifest.guidance_batch == 1 {
        for (_, input) in inputs.iter_mut().filter(|(name, _)| *name != "timestep") {
            input.shape[0] = 1;
            input.data.truncate(input.data.len() / 2);
        }
    }
    inputs
}

/// A strategy without its numbers.
fn strategy_kind(strategy: &str) -> String {
    strategy.split(", ").filter(|part| !part.contains("MiB")).collect::<Vec<_>>().join(", ")
}

/// A file that no other process or thread writes.
fn bundle_path() -> PathBuf {
    let (process, thread) = (std::process::id(), std::thread::current().id());
    std::env::temp_dir().join(format!("kiln-program-{process}-{thread:?}.kiln"))
}

/// Prints a program if what holds for all did not hold for it.
struct Shown(String);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
