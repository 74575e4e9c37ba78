//! Loads or builds programs, makes kernels, and sets a kernel's arguments.
//!
//! A driver may take minutes and hundreds of megabytes to compile. Programs therefore come from a
//! [`cache`]. Separate processes compile the missing ones into the cache (see [`prepare`]). Only if
//! that fails are programs built in this process.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use kiln_bundle::plan::{self, Plan, Step};
use opencl3::context::Context;
use opencl3::error_codes::ClError;
use opencl3::kernel::Kernel;
use opencl3::memory::ClMem;
use opencl3::program::Program;
use serde::Serialize;

use crate::binding::Binding;
use crate::device::DeviceFacts;
use crate::error::{At, RuntimeError};
use crate::memory::DeviceMemory;

pub mod cache;
pub(crate) mod pocl;
pub mod prepare;
mod warm;

use cache::{Key, ProgramCache};
use prepare::{Missing, PrepareCommand};

/// Sources of compiled programs. By default, programs are built in this process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProgramOptions {
    /// The cache.
    pub cache: Option<ProgramCache>,
    /// Command to run if the cache lacks programs.
    pub prepare: Option<PrepareCommand>,
}

/// Source of the programs of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramOrigin {
    /// All were in the cache.
    Cached,
    /// Other processes compiled those that the cache lacked.
    Prepared,
    /// Some were built in this process, which then has the compiler's memory.
    #[serde(rename = "built in process")]
    Built,
}

/// A program of a plan: its sources, its build options, and its kernels.
struct Spec<'a> {
    sources: Vec<&'a str>,
    options: &'a str,
    /// Indices into the plan's kernels.
    kernels: Vec<usize>,
    key: Key,
    /// Description of the first kernel, for errors.
    at: String,
}

/// The programs of a plan, by order of their first kernels.
fn specs<'a>(plan: &'a Plan, device: &DeviceFacts) -> Result<Vec<Spec<'a>>, RuntimeError> {
    let mut programs: Vec<(u32, Vec<usize>)> = Vec::new();
    let mut places: HashMap<u32, usize> = HashMap::new();
    for (index, kernel) in plan.kernels.iter().enumerate() {
        let place = *places.entry(kernel.program).or_insert(programs.len());
        if place == programs.len() {
            programs.push((kernel.program, Vec::new()));
        }
        programs[place].1.push(index);
    }
    programs.into_iter().map(|(_, kernels)| Spec::new(plan, device, kernels)).collect()
}

impl<'a> Spec<'a> {
    fn new(
        plan: &'a Plan,
        device: &DeviceFacts,
        kernels: Vec<usize>,
    ) -> Result<Spec<'a>, RuntimeError> {
        let describe = |kernel: &plan::Kernel| {
            format!("kernel {} ({}/{})", kernel.entry, kernel.op, kernel.variant)
        };
        let (mut sources, mut options, mut seen) = (Vec::new(), "", HashSet::new());
        for kernel in kernels.iter().map(|&index| &plan.kernels[index]) {
            let at = describe(kernel);
            let source = plan.sources.get(kernel.source as usize);
            let source = source.ok_or_else(|| RuntimeError::Plan(format!("no {at}")))?;
            if seen.insert(kernel.source) {
                sources.push(source.as_str());
            }
            without_nul(&kernel.entry, &at)?;
            options = without_nul(&kernel.options, &at)?;
        }
        let mut at = kernels.first().map(|&index| describe(&plan.kernels[index]));
        if let (Some(at), more @ 1..) = (&mut at, kernels.len() - 1) {
            *at += &format!(" and {more} more");
        }
        let launches = if device.lazy_compiler { warm::versions(plan, &kernels) } else { vec![] };
        let key = Key::new(device, &sources, options, &launches);
        Ok(Spec { sources, options, kernels, key, at: at.unwrap_or_default() })
    }
}

/// The kernels of a plan while they are loaded or built.
struct Loader<'a> {
    context: &'a Context,
    plan: &'a Plan,
    specs: Vec<Spec<'a>>,
    /// In the plan's order; `None` while the program is missing.
    kernels: Vec<Option<Kernel>>,
}

impl Loader<'_> {
    fn has(&self, spec: &Spec) -> bool {
        spec.kernels.iter().all(|&index| self.kernels[index].is_some())
    }

    /// Number of programs that are missing.
    fn missing(&self) -> usize {
        self.specs.iter().filter(|spec| !self.has(spec)).count()
    }

    /// Loads programs from the cache. Those that the driver refuses are removed from it.
    fn load(&mut self, cache: &ProgramCache) {
        for index in 0..self.specs.len() {
            let spec = &self.specs[index];
            if self.has(spec) {
                continue;
            }
            let Some(binary) = cache.read(&spec.key) else { continue };
            let program = load(self.context, &binary, spec.options);
            match program.and_then(|program| create_kernels(&program, self.plan, spec)) {
                Ok(kernels) => kernels.into_iter().for_each(|(k, new)| self.kernels[k] = Some(new)),
                Err(_) => cache.remove(&spec.key),
            }
        }
    }

    /// Builds the missing programs, and writes them to `cache` if it is given.
    fn build(
        &mut self,
        cache: Option<&ProgramCache>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), RuntimeError> {
        for index in 0..self.specs.len() {
            progress(index, self.specs.len());
            let spec = &self.specs[index];
            if self.has(spec) {
                continue;
            }
            let program = build(self.context, spec)?;
            for (place, kernel) in create_kernels(&program, self.plan, spec)? {
                self.kernels[place] = Some(kernel);
            }
            if let (Some(cache), Ok(binary)) = (cache, binary(&program, spec)) {
                // A cache that cannot be written is no reason to fail.
                let _ = cache.write(&spec.key, &binary);
            }
        }
        cache.map_or(Ok(()), ProgramCache::evict).or(Ok(()))
    }
}

/// Loads or builds every program of a plan and makes one kernel for each of its entry points.
///
/// `bundle` is the file of the plan. `progress` receives the number of programs that are compiled,
/// and of all programs. Errors: `Build` with the compiler's log; `OpenCl`; `Plan` if the number of
/// arguments of a launch differs from its kernel's. A cache that cannot be used is no error.
pub fn build_kernels(
    context: &Context,
    device: &DeviceFacts,
    (bundle, plan): (&Path, &Plan),
    options: &ProgramOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Kernel>, ProgramOrigin), RuntimeError> {
    let kernels = plan.kernels.iter().map(|_| None).collect();
    let mut loader = Loader { context, plan, specs: specs(plan, device)?, kernels };
    let mut origin = ProgramOrigin::Cached;
    if let Some(cache) = &options.cache {
        // Before anything is loaded, so that missing programs take no memory of this process.
        let complete = loader.specs.iter().all(|spec| cache.contains(&spec.key));
        let mut prepare = |specs: &[Spec]| {
            if let Some(command) = &options.prepare {
                origin = ProgramOrigin::Prepared;
                let missing = Missing::of((bundle, plan), device, cache, specs);
                // Programs that it did not leave in the cache are built below.
                if command.run(&missing, progress).is_ok() {
                    let _ = cache.evict();
                }
            }
        };
        if !complete {
            prepare(&loader.specs);
        }
        loader.load(cache);
        if complete && loader.missing() > 0 {
            prepare(&loader.specs);
            loader.load(cache);
        }
    }
    if loader.missing() > 0 {
        origin = ProgramOrigin::Built;
        // A lazy compiler's binary would have no kernel in it yet.
        let cache = options.cache.as_ref().filter(|_| !device.lazy_compiler);
        loader.build(cache, progress)?;
    }
    let count = loader.specs.len();
    progress(count, count);
    let kernels: Vec<Kernel> = loader.kernels.into_iter().flatten().collect();
    check_arg_counts(plan, &kernels)?;
    Ok((kernels, origin))
}

fn create_kernels(
    program: &Program,
    plan: &Plan,
    spec: &Spec,
) -> Result<Vec<(usize, Kernel)>, RuntimeError> {
    let create = |&index: &usize| {
        let kernel = Kernel::create(program, &plan.kernels[index].entry);
        Ok((index, kernel.at("clCreateKernel", || &spec.at)?))
    };
    spec.kernels.iter().map(create).collect()
}

/// Compiles one program.
fn build(context: &Context, spec: &Spec) -> Result<Program, RuntimeError> {
    let Spec { sources, options, at, .. } = spec;
    // As one text: cl3 0.13 passes OpenCL wrong pointers for several.
    let program = Program::create_from_source(context, &sources.concat());
    let mut program = program.at("clCreateProgramWithSource", || at)?;
    match program.build(context.devices(), options) {
        Ok(()) => Ok(program),
        Err(ClError(code)) => {
            let log = program.get_build_log(context.default_device()).unwrap_or_default();
            Err(RuntimeError::Build { at: format!("{at} with {options:?}"), code, log })
        }
    }
}

/// The driver's binary of a program whose kernels have been created.
fn binary(program: &Program, spec: &Spec) -> Result<Vec<u8>, RuntimeError> {
    let binaries = program.get_binaries().at("clGetProgramInfo", || &spec.at)?;
    Ok(binaries.into_iter().next().unwrap_or_default())
}

/// Loads a program from the driver's binary.
fn load(context: &Context, binary: &[u8], options: &str) -> Result<Program, RuntimeError> {
    let at = || "a cached program";
    // SAFETY: the device is the context's; OpenCL copies the binary.
    let program = unsafe { Program::create_from_binary(context, context.devices(), &[binary]) };
    let mut program = program.at("clCreateProgramWithBinary", at)?;
    program.build(context.devices(), options).at("clBuildProgram", at)?;
    Ok(program)
}

fn without_nul<'a>(text: &'a str, at: &str) -> Result<&'a str, RuntimeError> {
    match text.contains('\0') {
        true => Err(RuntimeError::Plan(format!("a NUL in the options or the name of {at}"))),
        false => Ok(text),
    }
}

fn check_arg_counts(plan: &Plan, kernels: &[Kernel]) -> Result<(), RuntimeError> {
    let mut counts = Vec::with_capacity(kernels.len());
    for (kernel, entry) in kernels.iter().zip(&plan.kernels) {
        counts.push(kernel.num_args().at("clGetKernelInfo", || &entry.entry)? as usize);
    }
    let launches = plan.networks.iter().flat_map(|network| &network.steps);
    for step in launches {
        let Step::Dispatch(dispatch) = step else { continue };
        let (found, needed) = (dispatch.args.len(), counts[dispatch.kernel.index()]);
        if found != needed {
            return Err(RuntimeError::Plan(format!(
                "{} gives {found} arguments to kernel {}, which takes {needed}",
                dispatch.name,
                plan.kernels[dispatch.kernel.index()].entry
            )));
        }
    }
    Ok(())
}

/// Sets all arguments of a kernel.
///
/// Errors: `OpenCl`, at the place that `at` describes.
pub(crate) fn set_args(
    kernel: &Kernel,
    args: &[Binding],
    memory: &DeviceMemory,
    at: &dyn Fn() -> String,
) -> Result<(), RuntimeError> {
    for (index, binding) in args.iter().enumerate() {
        let index = index as u32;
        // SAFETY: OpenCL checks the size against the kernel's argument, and copies the value before
        // it returns. The memory outlives the kernel: the executor owns both.
        let set = unsafe {
            match binding {
                Binding::Region(region) => kernel.set_arg(index, &memory.region(*region)?.get()),
                Binding::U32(value) => kernel.set_arg(index, value),
                Binding::F32(value) => kernel.set_arg(index, value),
            }
        };
        set.at("clSetKernelArg", || format!("argument {index} of {}", at()))?;
    }
    Ok(())
}
