//! Loads or builds programs, makes kernels, and sets a kernel's arguments.
//!
//! A driver may take minutes and hundreds of megabytes to compile. Programs therefore come from a
//! [`cache`] or from the bundle itself. Separate processes compile the missing ones into the cache
//! (see `workers`). Only if that fails are programs built in this process.
#![allow(unsafe_code)]

use std::collections::{HashMap, HashSet};

use kiln_bundle::BundleFile;
use kiln_bundle::plan::{self, Network, Plan, Step};
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
mod kernels;
pub(crate) mod pocl;
pub mod prepare;
mod private;
mod warm;
mod workers;

use cache::{Key, ProgramCache};
pub(crate) use kernels::{KernelInputs, Kernels};
use workers::{Missing, PrepareCommand};

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
    /// All were in the cache or in the bundle.
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

/// The programs that are not `there`, for workers.
fn missing(
    bundle: &BundleFile,
    device: &DeviceFacts,
    cache: &ProgramCache,
    specs: &[Spec],
    there: &dyn Fn(&Spec) -> bool,
) -> Missing {
    let plan = bundle.plan();
    // A picture ends with the decoder.
    let mut begins = vec![false; plan.kernels.len()];
    for network in plan.networks.iter().filter(|network| !network.role.is_decoder()) {
        used_kernels(network).for_each(|kernel| begins[kernel] = true);
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (index, spec) in specs.iter().enumerate().filter(|(_, spec)| !there(spec)) {
        let is_first = spec.kernels.iter().any(|&kernel| begins[kernel]);
        if is_first { &mut first } else { &mut last }.push(index);
    }
    Missing {
        bundle: bundle.path().to_owned(),
        trusted: bundle.trusted(),
        memory: plan.memory.clone(),
        device: device.clone(),
        cache: cache.clone(),
        programs: [first, last],
        count: specs.len(),
    }
}

/// Indices of the kernels that a network launches.
fn used_kernels(network: &Network) -> impl Iterator<Item = usize> + '_ {
    network.steps.iter().filter_map(|step| match step {
        Step::Dispatch(dispatch) => Some(dispatch.kernel.index()),
        _ => None,
    })
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
