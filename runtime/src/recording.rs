//! Recorded launches, which a driver enqueues in one call: `cl_khr_command_buffer`, on devices that
//! have it.
//!
//! The launches between two waits for weights, and their arguments, are the same in every run of a
//! network. Each such sequence is recorded once, after the memory is allocated.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, c_void};
use std::mem::transmute;
use std::ptr;

use cl3::ext::{
    CL_DEVICE_COMMAND_BUFFER_REQUIRED_QUEUE_PROPERTIES_KHR, CL_INVALID_COMMAND_BUFFER_KHR,
    cl_command_buffer_khr, clCommandNDRangeKernelKHR_t, clCreateCommandBufferKHR_t,
    clEnqueueCommandBufferKHR_t, clFinalizeCommandBufferKHR_t, clReleaseCommandBufferKHR_t,
};
use kiln_bundle::plan::{Dispatch, Plan, Step};
use opencl3::command_queue::CommandQueue;
use opencl3::error_codes::ClError;
use opencl3::event::Event;
use opencl3::kernel::Kernel;

use crate::binding::Bindings;
use crate::device::DeviceFacts;
use crate::error::{At, RuntimeError};
use crate::launch::Sizes;
use crate::memory::DeviceMemory;
use crate::program::{Kernels, set_args};

const EXTENSION: &str = "cl_khr_command_buffer";

/// Fewest launches that are worth a recording: a single launch is enqueued as fast without one.
const FEWEST_LAUNCHES: usize = 2;

/// The objects that recordings of a plan refer to.
pub(crate) struct Parts<'a> {
    pub device: &'a DeviceFacts,
    pub queue: &'a CommandQueue,
    pub plan: &'a Plan,
    /// In the plan's order.
    pub kernels: &'a Kernels,
    pub bindings: &'a Bindings,
    pub memory: &'a DeviceMemory,
}

/// The recorded launch sequences of a plan, by network and first step.
#[derive(Default)]
pub(crate) struct Recordings(HashMap<(usize, usize), Recording>);

impl Recordings {
    /// Records every launch sequence. Empty if the device has no command buffers.
    ///
    /// Errors: `OpenCl` if a driver lists the extension but refuses to record.
    pub(crate) fn of(parts: &Parts) -> Result<Recordings, RuntimeError> {
        let Some(api) = Api::of(parts.device) else { return Ok(Recordings::default()) };
        let mut recordings = HashMap::new();
        for (network, entry) in parts.plan.networks.iter().enumerate() {
            let mut first = 0;
            for run in entry.steps.chunk_by(|a, b| is_launch(a) && is_launch(b)) {
                if run.len() >= FEWEST_LAUNCHES {
                    let recording = Recording::of(&api, parts, network, first, run)?;
                    recordings.insert((network, first), recording);
                }
                first += run.len();
            }
        }
        Ok(Recordings(recordings))
    }

    /// Enqueues the recording that starts with a step. Returns its number of launches, 0 if there
    /// is no such recording. Waits first if the device still runs the same recording.
    ///
    /// Errors: `OpenCl`.
    pub(crate) fn replay(&mut self, network: usize, step: usize) -> Result<usize, RuntimeError> {
        match self.0.get_mut(&(network, step)) {
            Some(recording) => recording.enqueue().at("clEnqueueCommandBufferKHR", || {
                format!("{} launches from step {step} of network {network} on", recording.launches)
            }),
            None => Ok(0),
        }
    }

    /// Number of launches of a network that are recorded.
    pub(crate) fn launches(&self, network: usize) -> usize {
        let of_network = self.0.iter().filter(|((n, _), _)| *n == network);
        of_network.map(|(_, recording)| recording.launches).sum()
    }
}

fn is_launch(step: &Step) -> bool {
    matches!(step, Step::Dispatch(_))
}

/// The functions of the extension, at addresses that the platform gives.
#[derive(Clone, Copy)]
struct Api {
    create: clCreateCommandBufferKHR_t,
    command: clCommandNDRangeKernelKHR_t,
    finalize: clFinalizeCommandBufferKHR_t,
    enqueue: clEnqueueCommandBufferKHR_t,
    release: clReleaseCommandBufferKHR_t,
}

impl Api {
    /// `None` if the device has no command buffers, or requires queue properties for them.
    fn of(device: &DeviceFacts) -> Option<Api> {
        if !device.extensions.iter().any(|extension| extension == EXTENSION) {
            return None;
        }
        let required = CL_DEVICE_COMMAND_BUFFER_REQUIRED_QUEUE_PROPERTIES_KHR;
        let required = device.device.get_data(required).unwrap_or_default();
        if required.iter().any(|&byte| byte != 0) {
            return None;
        }
        let platform = device.device.platform().ok()?;
        let driver = cl3::load_library().as_ref().ok()?;
        let address = |name: &CStr| -> *mut c_void {
            let found = driver.clGetExtensionFunctionAddressForPlatform(platform, name.as_ptr());
            found.unwrap_or(ptr::null_mut())
        };
        // SAFETY: the platform returns the function of the name, or NULL, which is `None`. The
        // types are those of the extension's header.
        unsafe {
            Some(Api {
                create: transmute::<*mut c_void, clCreateCommandBufferKHR_t>(address(
                    c"clCreateCommandBufferKHR",
                )),
                command: transmute::<*mut c_void, clCommandNDRangeKernelKHR_t>(address(
                    c"clCommandNDRangeKernelKHR",
                )),
                finalize: transmute::<*mut c_void, clFinalizeCommandBufferKHR_t>(address(
                    c"clFinalizeCommandBufferKHR",
                )),
                enqueue: transmute::<*mut c_void, clEnqueueCommandBufferKHR_t>(address(
                    c"clEnqueueCommandBufferKHR",
                )),
                release: transmute::<*mut c_void, clReleaseCommandBufferKHR_t>(address(
                    c"clReleaseCommandBufferKHR",
                )),
            })
        }
    }
}

/// A finalized command buffer.
struct Recording {
    api: Api,
    buffer: cl_command_buffer_khr,
    launches: usize,
    /// Completes when the device has finished the last replay.
    last: Option<Event>,
    /// One kernel for each launch: PoCL 3.1 replays with the arguments that a kernel has then.
    kernels: Vec<Kernel>,
}

// SAFETY: any thread may use OpenCL's objects, one thread at a time.
unsafe impl Send for Recording {}

impl Recording {
    fn of(
        api: &Api,
        parts: &Parts,
        network: usize,
        first: usize,
        run: &[Step],
    ) -> Result<Recording, RuntimeError> {
        let at = || format!("the launches from step {first} of network {network} on");
        let (launches, kernels) = (run.len(), Vec::with_capacity(run.len()));
        let buffer = create(api, parts.queue).at("clCreateCommandBufferKHR", at)?;
        // Owns the buffer from here on.
        let mut recording = Recording { api: *api, buffer, launches, last: None, kernels };
        for (index, step) in run.iter().enumerate() {
            let Step::Dispatch(dispatch) = step else { continue };
            let kernel = own_kernel(parts, dispatch)?;
            set_args(&kernel, parts.bindings.of(network, first + index), parts.memory, &at)?;
            recording.command(&kernel, dispatch).at("clCommandNDRangeKernelKHR", at)?;
            recording.kernels.push(kernel);
        }
        recording.finalize().at("clFinalizeCommandBufferKHR", at)?;
        Ok(recording)
    }

    fn command(&self, kernel: &Kernel, dispatch: &Dispatch) -> Result<(), ClError> {
        let sizes = Sizes::of(dispatch.offset, dispatch.global, dispatch.local);
        let [offset, global, local] = sizes.pointers();
        let (none, no_queue) = (ptr::null(), ptr::null_mut());
        let command = self.api.command.ok_or_else(absent)?;
        // SAFETY: the arguments are set. The sizes are arrays of three, which the driver copies
        // before it returns. The memory outlives the recording: its owner drops recordings first.
        status(unsafe {
            command(
                self.buffer,
                no_queue,
                ptr::null(),
                kernel.get(),
                3,
                offset,
                global,
                local,
                0,
                none,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        })
    }

    fn finalize(&self) -> Result<(), ClError> {
        let finalize = self.api.finalize.ok_or_else(absent)?;
        // SAFETY: the buffer is valid.
        status(unsafe { finalize(self.buffer) })
    }

    fn enqueue(&mut self) -> Result<usize, ClError> {
        let enqueue = self.api.enqueue.ok_or_else(absent)?;
        // OpenCL forbids enqueueing a command buffer that is still running.
        if let Some(last) = self.last.take() {
            last.wait()?;
        }
        let (mut event, none) = (ptr::null_mut(), ptr::null());
        // SAFETY: the buffer is finalized and not pending. PoCL 3.1 requires the event.
        status(unsafe { enqueue(0, ptr::null_mut(), self.buffer, 0, none, &raw mut event) })?;
        self.last = Some(Event::new(event));
        Ok(self.launches)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(release) = self.api.release {
            // SAFETY: the buffer is valid, and this is its only owner. An error changes nothing
            // here.
            let _ = unsafe { release(self.buffer) };
        }
    }
}

fn create(api: &Api, queue: &CommandQueue) -> Result<cl_command_buffer_khr, ClError> {
    let create = api.create.ok_or_else(absent)?;
    let mut code = 0;
    // SAFETY: the queue is valid, and there is one.
    let buffer = unsafe { create(1, &queue.get(), ptr::null(), &raw mut code) };
    status(code).map(|()| buffer)
}

/// A copy of a launch's kernel.
fn own_kernel(parts: &Parts, dispatch: &Dispatch) -> Result<Kernel, RuntimeError> {
    let index = dispatch.kernel.index();
    let kernel = parts.kernels.get(index);
    let kernel = kernel.ok_or_else(|| RuntimeError::Plan(format!("there is no kernel {index}")))?;
    let copy = cl3::kernel::clone_kernel(kernel.get()).map_err(ClError);
    Ok(Kernel::new(copy.at("clCloneKernel", || dispatch.name.as_str())?))
}

fn status(code: i32) -> Result<(), ClError> {
    match code {
        0 => Ok(()),
        code => Err(ClError(code)),
    }
}

fn absent() -> ClError {
    ClError(CL_INVALID_COMMAND_BUFFER_KHR)
}
