//! The kernels of a plan, from the cache, the bundle, workers or a build in this process.

use kiln_bundle::BundleFile;
use kiln_bundle::plan::{Network, Plan, Step};
use opencl3::context::Context;
use opencl3::kernel::Kernel;

use super::cache::ProgramCache;
use super::workers::{Observer, Preparation};
use super::{ProgramOptions, ProgramOrigin, Spec, binary, build, create_kernels, load};
use super::{missing, specs, used_kernels};
use crate::device::DeviceFacts;
use crate::error::{At, RuntimeError};

/// One kernel for each entry point of a plan. Workers may still be compiling those that a picture
/// ends with.
pub(crate) struct Kernels {
    /// In the plan's order.
    kernels: Vec<Option<Kernel>>,
    origin: ProgramOrigin,
    cache: Option<ProgramCache>,
    workers: Option<Preparation>,
}

/// What kernels are made from.
pub(crate) struct KernelInputs<'a> {
    pub context: &'a Context,
    pub device: &'a DeviceFacts,
    pub bundle: &'a BundleFile,
}

impl Kernels {
    /// Loads or builds programs and makes the kernels that a picture begins with, and all others
    /// that are at hand.
    ///
    /// `progress` receives the number of programs that are compiled, and of all programs. Errors:
    /// `Build` with the compiler's log; `OpenCl`; `Plan` if the number of arguments of a launch
    /// differs from its kernel's. A cache that cannot be used is no error, and one that others can
    /// write is not used.
    pub(crate) fn load(
        from: &KernelInputs,
        options: &ProgramOptions,
        progress: &mut Observer,
    ) -> Result<Kernels, RuntimeError> {
        let plan = from.bundle.plan();
        let specs = specs(plan, from.device)?;
        let mut all = Kernels {
            kernels: plan.kernels.iter().map(|_| None).collect(),
            origin: ProgramOrigin::Cached,
            cache: options.cache.clone().filter(|cache| cache.check_private().is_ok()),
            workers: None,
        };
        // Before anything is loaded, so that missing programs take no memory of this process.
        let complete = specs.iter().all(|spec| all.is_at_hand(from.bundle, spec));
        if !complete {
            all.prepare(from, &specs, options, progress);
        }
        all.load_programs(from, &specs);
        if complete && !all.has_all() {
            all.prepare(from, &specs, options, progress);
            all.load_programs(from, &specs);
        }
        let begins = |network: &&Network| !network.role.is_decoder();
        if plan.networks.iter().filter(begins).any(|network| all.lacks_any_of(network)) {
            all.complete(from, progress)?;
        }
        if all.workers.is_none() {
            all.build_rest(from, &specs, progress)?;
        }
        all.check_arg_counts(plan)?;
        Ok(all)
    }

    /// The kernel of an index; `None` if there is none yet.
    pub(crate) fn get(&self, index: usize) -> Option<&Kernel> {
        self.kernels.get(index)?.as_ref()
    }

    /// Where the programs came from.
    pub(crate) fn origin(&self) -> ProgramOrigin {
        self.origin
    }

    /// Whether a network launches kernels that workers are still compiling.
    pub(crate) fn lacks_any_of(&self, network: &Network) -> bool {
        self.workers.is_some() && used_kernels(network).any(|index| self.get(index).is_none())
    }

    /// Waits for the workers and makes the missing kernels. Errors: those of [`Kernels::load`].
    pub(crate) fn complete(
        &mut self,
        from: &KernelInputs,
        progress: &mut Observer,
    ) -> Result<(), RuntimeError> {
        let Some(workers) = self.workers.take() else { return Ok(()) };
        self.finish(workers, progress);
        let specs = specs(from.bundle.plan(), from.device)?;
        self.load_programs(from, &specs);
        self.build_rest(from, &specs, progress)?;
        self.check_arg_counts(from.bundle.plan())
    }

    fn is_at_hand(&self, bundle: &BundleFile, spec: &Spec) -> bool {
        let name = spec.key.name();
        self.cache.as_ref().is_some_and(|cache| cache.contains(&spec.key))
            || bundle.program_names().any(|carried| carried == name)
    }

    fn has(&self, spec: &Spec) -> bool {
        spec.kernels.iter().all(|&index| self.kernels[index].is_some())
    }

    fn has_all(&self) -> bool {
        self.kernels.iter().all(Option::is_some)
    }

    /// Waits for the workers. Programs that they do not leave in the cache are built later.
    fn finish(&self, workers: Preparation, progress: &mut Observer) {
        if let (Ok(()), Some(cache)) = (workers.finish(progress), &self.cache) {
            // A cache that cannot be listed stays as it is.
            let _ = cache.evict();
        }
    }

    /// Lets workers compile what is missing, and waits for the programs that a picture begins with.
    fn prepare(
        &mut self,
        from: &KernelInputs,
        specs: &[Spec],
        options: &ProgramOptions,
        progress: &mut Observer,
    ) {
        let (Some(command), Some(cache)) = (&options.prepare, &self.cache) else { return };
        let there = |spec: &Spec| self.is_at_hand(from.bundle, spec);
        let missing = missing(from.bundle, from.device, cache, specs, &there);
        self.origin = ProgramOrigin::Prepared;
        let mut workers = command.start(missing);
        workers.wait_for_first(progress);
        match workers.is_at_work() {
            true => self.workers = Some(workers),
            false => self.finish(workers, progress),
        }
    }

    /// Loads the programs that are at hand. The cache removes those that the driver refuses.
    fn load_programs(&mut self, from: &KernelInputs, specs: &[Spec]) {
        for spec in specs {
            if self.has(spec) {
                continue;
            }
            let plan = from.bundle.plan();
            let kernels = |binary: &[u8]| {
                let program = load(from.context, binary, spec.options)?;
                create_kernels(&program, plan, spec)
            };
            let cached = self.cache.as_ref().and_then(|cache| {
                let binary = cache.read(&spec.key)?;
                kernels(&binary).inspect_err(|_| cache.remove(&spec.key)).ok()
            });
            let carried = || {
                let program = from.bundle.read_program(spec.key.name()).ok()??;
                kernels(&spec.key.binary_of(program)?).ok()
            };
            for (index, kernel) in cached.or_else(carried).into_iter().flatten() {
                self.kernels[index] = Some(kernel);
            }
        }
    }

    /// Builds the programs that are missing in this process.
    fn build_rest(
        &mut self,
        from: &KernelInputs,
        specs: &[Spec],
        progress: &mut Observer,
    ) -> Result<(), RuntimeError> {
        if !self.has_all() {
            self.origin = ProgramOrigin::Built;
            for (done, spec) in specs.iter().enumerate() {
                progress(done, specs.len());
                if !self.has(spec) {
                    self.build(from, spec)?;
                }
            }
        }
        progress(specs.len(), specs.len());
        Ok(())
    }

    fn build(&mut self, from: &KernelInputs, spec: &Spec) -> Result<(), RuntimeError> {
        let program = build(from.context, spec)?;
        for (index, kernel) in create_kernels(&program, from.bundle.plan(), spec)? {
            self.kernels[index] = Some(kernel);
        }
        // A lazy compiler's binary would have no kernel in it yet.
        let cache = self.cache.as_ref().filter(|_| !from.device.lazy_compiler);
        if let (Some(cache), Ok(binary)) = (cache, binary(&program, spec)) {
            // A cache that cannot be written is no reason to fail.
            let _ = cache.write(&spec.key, &binary).and_then(|()| cache.evict());
        }
        Ok(())
    }

    /// Compares launches with the kernels that are there.
    fn check_arg_counts(&self, plan: &Plan) -> Result<(), RuntimeError> {
        let mut counts = Vec::with_capacity(self.kernels.len());
        for (kernel, entry) in self.kernels.iter().zip(&plan.kernels) {
            let count = kernel.as_ref().map(Kernel::num_args).transpose();
            counts.push(count.at("clGetKernelInfo", || &entry.entry)?);
        }
        let launches = plan.networks.iter().flat_map(|network| &network.steps);
        for step in launches {
            let Step::Dispatch(dispatch) = step else { continue };
            let found = dispatch.args.len();
            let Some(needed) = counts[dispatch.kernel.index()] else { continue };
            if found != needed as usize {
                return Err(RuntimeError::Plan(format!(
                    "{} gives {found} arguments to kernel {}, which takes {needed}",
                    dispatch.name,
                    plan.kernels[dispatch.kernel.index()].entry
                )));
            }
        }
        Ok(())
    }
}
