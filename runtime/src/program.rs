//! Builds programs and kernels, and sets a kernel's arguments.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use kiln_bundle::plan::{Plan, Step};
use opencl3::context::Context;
use opencl3::error_codes::ClError;
use opencl3::kernel::Kernel;
use opencl3::memory::ClMem;
use opencl3::program::Program;

use crate::binding::Binding;
use crate::error::{At, RuntimeError};
use crate::memory::DeviceMemory;

/// Builds every program of a plan once and makes one kernel for each of its entry points.
///
/// `progress` hears how many programs are built, and of how many.
/// Errors: `Build` with the compiler's log; `OpenCl`; `Plan` if a launch does not have as many
/// arguments as its kernel.
pub fn build_kernels(
    context: &Context,
    plan: &Plan,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Kernel>, RuntimeError> {
    let mut programs: HashMap<(u32, &str), Program> = HashMap::new();
    let mut kernels = Vec::with_capacity(plan.kernels.len());
    for (index, kernel) in plan.kernels.iter().enumerate() {
        progress(index, plan.kernels.len());
        let at = format!("kernel {} ({}/{})", kernel.entry, kernel.op, kernel.variant);
        let program = match programs.entry((kernel.source, kernel.options.as_str())) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let source = plan.sources.get(kernel.source as usize);
                let source = source.ok_or_else(|| RuntimeError::Plan(format!("no {at}")))?;
                entry.insert(build(context, source, &kernel.options, &at)?)
            }
        };
        let created = without_nul(&kernel.entry, &at)
            .and_then(|entry| Kernel::create(program, entry).at("clCreateKernel", || &at));
        kernels.push(created?);
    }
    progress(kernels.len(), kernels.len());
    check_arg_counts(plan, &kernels)?;
    Ok(kernels)
}

/// Builds one program. The place for a cache of binaries, keyed by source, options and driver.
fn build(
    context: &Context,
    source: &str,
    options: &str,
    at: &str,
) -> Result<Program, RuntimeError> {
    let options = without_nul(options, at)?;
    let mut program =
        Program::create_from_source(context, source).at("clCreateProgramWithSource", || at)?;
    match program.build(context.devices(), options) {
        Ok(()) => Ok(program),
        Err(ClError(code)) => {
            let log = program.get_build_log(context.default_device()).unwrap_or_default();
            Err(RuntimeError::Build { at: format!("{at} with {options:?}"), code, log })
        }
    }
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
        // SAFETY: OpenCL compares the size with the kernel's argument, and copies the value
        // before it returns. The memory outlives the kernel: the executor owns both.
        let set = unsafe {
            match binding {
                Binding::Region(region) => kernel.set_arg(index, &memory.region(*region).get()),
                Binding::U32(value) => kernel.set_arg(index, value),
                Binding::F32(value) => kernel.set_arg(index, value),
            }
        };
        set.at("clSetKernelArg", || format!("argument {index} of {}", at()))?;
    }
    Ok(())
}
