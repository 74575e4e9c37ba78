//! Makes a lazy driver compile its kernels ahead of their first launch.
//!
//! PoCL compiles a kernel separately for each work-group size, for narrow and wide grids, and for
//! grids with and without an offset, at the first such launch. A program's binary has only the
//! versions compiled so far. Every combination in the plan is therefore launched once, with a
//! single work-group.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ptr;

use kiln_bundle::plan::{Arg, Dispatch, Plan, Step};
use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::kernel::Kernel;
use opencl3::memory::{Buffer, CL_MEM_ALLOC_HOST_PTR, CL_MEM_READ_WRITE, ClMem};

use crate::device::DeviceFacts;
use crate::error::{At, RuntimeError};

/// PoCL's bound between narrow and wide grids, in work-items along an axis.
const WIDE: u64 = 65535;

/// The versions of kernels that the launches of a plan need, as text.
pub(super) fn versions(plan: &Plan, kernels: &[usize]) -> Vec<String> {
    let needed = dispatches(plan).filter_map(|dispatch| {
        let kernel = kernels.iter().position(|&index| index == dispatch.kernel.index())?;
        let ((global, local), offset) = (smallest(dispatch), dispatch.offset != [0; 3]);
        Some(format!("{kernel} {global:?} {local:?} {offset}"))
    });
    let mut versions: Vec<String> = needed.collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

/// Launches kernels for their compilation only.
pub(super) struct Warmer<'a> {
    plan: &'a Plan,
    queue: CommandQueue,
    /// Stands for every buffer and weight. It is as long as the longest of them; only the single
    /// work-group touches it.
    memory: Buffer<u8>,
}

impl<'a> Warmer<'a> {
    /// `None` if the driver is not lazy.
    pub(super) fn new(
        context: &Context,
        device: &DeviceFacts,
        plan: &'a Plan,
    ) -> Result<Option<Warmer<'a>>, RuntimeError> {
        if !device.lazy_compiler {
            return Ok(None);
        }
        let len_bytes = dispatches(plan).flat_map(|dispatch| &dispatch.args).map(len_bytes).max();
        let len = len_bytes.unwrap_or(0).max(1) as usize;
        let queue = CommandQueue::create_default(context, 0)
            .at("clCreateCommandQueue", || "compilation")?;
        let flags = CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR;
        // SAFETY: the context is valid and no host pointer is given.
        let memory = unsafe { Buffer::create(context, flags, len, ptr::null_mut()) };
        let memory = memory.at("clCreateBuffer", || format!("{len} bytes for compilation"))?;
        Ok(Some(Warmer { plan, queue, memory }))
    }

    /// Launches a kernel once for each combination of sizes in the plan.
    pub(super) fn launch(&self, index: usize, kernel: &Kernel) -> Result<(), RuntimeError> {
        let mut seen = HashSet::new();
        for dispatch in dispatches(self.plan).filter(|d| d.kernel.index() == index) {
            let (global, local) = smallest(dispatch);
            if seen.insert((global, local, dispatch.offset == [0; 3])) {
                self.launch_once(dispatch, kernel, global, local)?;
            }
        }
        self.queue.finish().at("clFinish", || "compilation")
    }

    fn launch_once(
        &self,
        dispatch: &Dispatch,
        kernel: &Kernel,
        global: [u64; 3],
        local: Option<[u64; 3]>,
    ) -> Result<(), RuntimeError> {
        let at = || dispatch.name.as_str();
        for (index, arg) in (0..).zip(&dispatch.args) {
            // SAFETY: OpenCL checks the size against the kernel's argument, and copies the value.
            let set = unsafe {
                match arg {
                    Arg::Buffer { .. } | Arg::Weight { .. } => {
                        kernel.set_arg(index, &self.memory.get())
                    }
                    Arg::U32(value) => kernel.set_arg(index, value),
                    Arg::F32(value) => kernel.set_arg(index, value),
                }
            };
            set.at("clSetKernelArg", at)?;
        }
        let global = global.map(|items| items as usize);
        let offset = dispatch.offset.map(|items| items as usize);
        let local = local.map(|local| local.map(|items| items as usize));
        // SAFETY: sizes and offset are arrays of three. The work-items are a subset of the
        // dispatch's, so they stay inside of its regions, none of which is longer than the memory.
        let launched = unsafe {
            self.queue.enqueue_nd_range_kernel(
                kernel.get(),
                3,
                offset.as_ptr(),
                global.as_ptr(),
                local.as_ref().map_or(ptr::null(), |local| local.as_ptr()),
                &[],
            )
        };
        launched.map(drop).at("clEnqueueNDRangeKernel", at)
    }
}

fn dispatches(plan: &Plan) -> impl Iterator<Item = &Dispatch> {
    plan.networks.iter().flat_map(|network| &network.steps).filter_map(|step| match step {
        Step::Dispatch(dispatch) => Some(dispatch),
        _ => None,
    })
}

fn len_bytes(arg: &Arg) -> u64 {
    match *arg {
        Arg::Buffer { len_bytes, .. } | Arg::Weight { len_bytes, .. } => len_bytes,
        Arg::U32(_) | Arg::F32(_) => 0,
    }
}

/// The smallest sizes for which PoCL compiles the same version as for a dispatch.
///
/// If PoCL chooses the work-group itself, it does so by the whole global size.
fn smallest(dispatch: &Dispatch) -> ([u64; 3], Option<[u64; 3]>) {
    let Some(local) = dispatch.local else { return (dispatch.global, None) };
    let wide = (0..3).find(|&axis| dispatch.global[axis] >= WIDE);
    let mut global = local;
    if let Some(axis) = wide {
        global[axis] = WIDE.next_multiple_of(local[axis].max(1)).min(dispatch.global[axis]);
    }
    (global, Some(local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_bundle::plan::KernelId;

    #[test]
    fn a_launch_is_as_small_as_its_kind() {
        let dispatch = |global, local| Dispatch {
            name: String::new(),
            kernel: KernelId(0),
            args: Vec::new(),
            global,
            offset: [0; 3],
            range: global,
            local,
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
        };
        let of = |global, local| smallest(&dispatch(global, local));
        assert_eq!(of([640, 8, 2], Some([64, 2, 1])), ([64, 2, 1], Some([64, 2, 1])));
        assert_eq!(of([131072, 8, 1], Some([64, 2, 1])), ([65536, 2, 1], Some([64, 2, 1])));
        assert_eq!(of([8, 65536, 1], Some([4, 2, 1])), ([4, 65536, 1], Some([4, 2, 1])));
        assert_eq!(of([65535, 1, 1], Some([15, 1, 1])), ([65535, 1, 1], Some([15, 1, 1])));
        assert_eq!(of([640, 8, 2], None), ([640, 8, 2], None));
    }
}
