//! Walks the steps of a network in order, without decisions.
//!
//! Owns the device's queue, kernels and memory. Knows networks by index and ports by position. The
//! session knows their meaning.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use kiln_bundle::BundleFile;
use kiln_bundle::plan::{BufferId, Dispatch, Gather, Network, Plan, Port, Step};
use opencl3::command_queue::{CL_QUEUE_PROFILING_ENABLE, CommandQueue};
use opencl3::context::Context;
use opencl3::event::{CL_COMPLETE, Event};

use crate::binding::{Bindings, Parent};
use crate::device::{DeviceFacts, DeviceType, lock_driver};
use crate::error::{At, RuntimeError};
use crate::launch::{Sizes, launch, launch_timed};
use crate::memory::{Allocations, DeviceMemory};
use crate::program::{KernelInputs, Kernels, ProgramOrigin, set_args};
use crate::reading::WeightReads;
use crate::recording::{Parts, Recordings};
use crate::stream::{Run, Stream, Weights};

mod loras;
mod options;

use loras::Loras;
pub use options::{Canceller, ExecutorOptions, LaunchTime};

const LAUNCH: &str = "clEnqueueNDRangeKernel";

/// A plan on a device, ready to run.
pub struct Executor {
    // Fields are dropped in this order: users of the device's objects before the objects.
    kernels: Kernels,
    loaded: Option<Loaded>,
    compute: CommandQueue,
    context: Context,
    bundle: Arc<BundleFile>,
    device: DeviceFacts,
    bindings: Bindings,
    /// Values that the host wrote to the ports from which gathers take indices.
    indices: HashMap<BufferId, Vec<i32>>,
    /// Rows of a gather between file and device.
    rows: Vec<u8>,
    /// Whether reads of weights and launches take turns, as [`DeviceFacts::single_threaded`] asks.
    lockstep: bool,
    /// Whether the page cache may keep the weights.
    page_cache: bool,
    canceller: Canceller,
    loras: Loras,
    /// See [`ExecutorOptions::command_buffers`].
    command_buffers: Option<bool>,
    /// Launches not yet timed, when profiling.
    launches: Option<Vec<(usize, usize, Event)>>,
}

/// The device's memory, the reader that fills it, and the recorded launches that use it.
struct Loaded {
    recordings: Recordings,
    weights: Arc<Weights>,
    memory: Arc<DeviceMemory>,
}

impl Executor {
    /// Allocates and builds everything that the bundle's plan needs.
    ///
    /// `progress` receives the number of kernels that are built, and of all kernels.
    /// Errors: `Requirement`, `Build`, `OpenCl`, `Plan`.
    pub fn load(
        bundle: Arc<BundleFile>,
        device: &DeviceFacts,
        options: &ExecutorOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Executor, RuntimeError> {
        let ExecutorOptions { profiling, page_cache, command_buffers, .. } = *options;
        let plan = bundle.plan();
        device.meets(plan)?;
        let bindings = Bindings::resolve(plan)?;
        let driver = lock_driver();
        let context =
            Context::from_device(&device.device).at("clCreateContext", || device.name.as_str())?;
        let compute = create_queue(&context, profiling)?;
        let from = KernelInputs { context: &context, device, bundle: &bundle };
        let kernels = Kernels::load(&from, &options.programs, progress)?;
        drop(driver);
        let indices = host_indices(plan);
        let rows = Vec::with_capacity(gathered_bytes(plan));
        let mut executor = Executor {
            kernels,
            loaded: None,
            compute,
            context,
            bundle,
            bindings,
            indices,
            rows,
            lockstep: device.single_threaded,
            device: device.clone(),
            page_cache,
            command_buffers,
            canceller: Canceller::default(),
            loras: Loras::default(),
            launches: profiling.then(Vec::new),
        };
        executor.allocate_memory()?;
        Ok(executor)
    }

    /// Waits for the kernels of a network that other processes still compile.
    ///
    /// `progress` receives the number of programs that are compiled, and of all programs; nothing
    /// if the kernels are there. Errors: `Build`, `OpenCl`, `Plan`.
    pub fn await_kernels(
        &mut self,
        network: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), RuntimeError> {
        if !self.kernels.lacks_any_of(network_of(self.bundle.plan(), network)?) {
            return Ok(());
        }
        let _driver = lock_driver();
        self.complete_kernels(progress)
    }

    /// Waits for all kernels. The caller has locked the driver.
    fn complete_kernels(
        &mut self,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), RuntimeError> {
        let (context, device, bundle) = (&self.context, &self.device, &self.bundle);
        self.kernels.complete(&KernelInputs { context, device, bundle }, progress)
    }

    /// Allocates all device memory, unless it is allocated.
    fn allocate_memory(&mut self) -> Result<(), RuntimeError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let _driver = lock_driver();
        let reading = create_queue(&self.context, false)?;
        let memory = Arc::new(DeviceMemory::allocate(
            &self.context,
            &reading,
            &self.bundle.plan().memory,
            &self.bindings.regions,
            self.device.unified_memory,
        )?);
        let (bundle, lockstep) = (Arc::clone(&self.bundle), self.lockstep);
        let weights = Weights::new(bundle, Arc::clone(&memory), reading, lockstep, self.page_cache);
        let recordings = self.record(&memory)?;
        self.loaded = Some(Loaded { recordings, weights: Arc::new(weights), memory });
        Ok(())
    }

    fn record(&mut self, memory: &DeviceMemory) -> Result<Recordings, RuntimeError> {
        let wanted = self.command_buffers.unwrap_or(self.device.device_type != DeviceType::Cpu);
        if !wanted || self.launches.is_some() {
            return Ok(Recordings::default());
        }
        self.complete_kernels(&mut |_, _| {})?;
        let recordings = Recordings::of(&Parts {
            device: &self.device,
            queue: &self.compute,
            plan: self.bundle.plan(),
            kernels: &self.kernels,
            bindings: &self.bindings,
            memory,
        });
        match self.command_buffers {
            Some(_) => recordings,
            // A driver that lists the extension and then refuses is treated as one without.
            None => Ok(recordings.unwrap_or_default()),
        }
    }

    /// Frees everything on the device except the kernels. The next stream allocates it again. No
    /// stream may be running.
    pub fn release_memory(&mut self) -> Result<(), RuntimeError> {
        self.finish()?;
        self.loaded = None;
        self.loras.are_written = false;
        Ok(())
    }

    fn memory(&self) -> Result<&DeviceMemory, RuntimeError> {
        match &self.loaded {
            Some(loaded) => Ok(&loaded.memory),
            None => Err(RuntimeError::Input("the device's memory has been given back".into())),
        }
    }

    /// The handle that makes [`run`](Self::run) stop.
    pub fn canceller(&self) -> &Canceller {
        &self.canceller
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.bundle.plan()
    }

    /// Source of the compiled programs.
    pub fn programs(&self) -> ProgramOrigin {
        self.kernels.origin()
    }

    /// How weights are read; `None` while the device memory is released.
    pub fn weight_reads(&self) -> Option<WeightReads> {
        self.loaded.as_ref().map(|loaded| loaded.weights.reads())
    }

    /// Device allocations.
    pub fn allocations(&self) -> Allocations {
        self.loaded.as_ref().map(|loaded| loaded.memory.allocations()).unwrap_or_default()
    }

    /// The context, for measurements outside of a plan.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Starts reading the weights of a sequence of runs. One stream at a time.
    pub fn start_stream(&mut self, runs: Vec<Run>) -> Result<Stream, RuntimeError> {
        self.finish()?;
        self.allocate_memory()?;
        self.begin_loras()?;
        match &self.loaded {
            Some(loaded) => Stream::start(Arc::clone(&loaded.weights), runs),
            None => Err(RuntimeError::StreamStopped),
        }
    }

    /// Enqueues one run of a network. Returns before the device is done.
    ///
    /// Errors: `OpenCl` with the step's name; `Bundle` if a weight cannot be read; `Input` if an
    /// index of a gather is outside of its table; `Cancelled`.
    pub fn run(&mut self, network: usize, stream: &mut Stream) -> Result<(), RuntimeError> {
        self.run_watched(network, stream, &mut |_, _| Ok(()))
    }

    /// [`run`](Self::run), which calls `watch` after each launch is enqueued, with its step.
    pub(crate) fn run_watched(
        &mut self,
        network: usize,
        stream: &mut Stream,
        watch: &mut dyn FnMut(&Executor, usize) -> Result<(), RuntimeError>,
    ) -> Result<(), RuntimeError> {
        if stream.next_has_residents() || self.lockstep {
            self.finish()?;
        }
        self.await_kernels(network, &mut |_, _| {})?;
        stream.enter(network)?;
        for &block in stream.residents() {
            self.merge_loras(block, Parent::Arena)?;
        }
        let bundle = Arc::clone(&self.bundle);
        let entry = network_of(bundle.plan(), network)?;
        let mut index = 0;
        while let Some(step) = entry.steps.get(index) {
            if self.canceller.is_cancelled() {
                return Err(RuntimeError::Cancelled);
            }
            index += match step {
                Step::Load { block, slot } => {
                    if self.lockstep {
                        self.finish()?;
                    }
                    let launched = self.marker()?;
                    // A driver may hold launches back until a flush.
                    self.compute.flush().at("clFlush", || "the wait for a weight block")?;
                    stream.wait(*block, *slot, &|| is_running(&launched))?;
                    self.merge_loras(*block, Parent::Slot(*slot))?;
                    1
                }
                Step::Free { block } => {
                    let last_use = self.marker()?;
                    // The thread that waits for the event cannot flush this queue.
                    self.compute.flush().at("clFlush", || "a freed slot")?;
                    stream.free(*block, last_use);
                    1
                }
                Step::Gather(gather) => {
                    self.gather(gather)?;
                    1
                }
                Step::Dispatch(dispatch) => {
                    let launched = self.dispatch(dispatch, network, index)?;
                    watch(self, index)?;
                    launched
                }
            };
        }
        self.compute.flush().at("clFlush", || format!("the end of {}", entry.name))
    }

    /// Enqueues the launches of a network without reading weights, to time the device alone. The
    /// launches compute on whatever the memory holds, so the outputs mean nothing.
    pub fn launch(&mut self, network: usize) -> Result<(), RuntimeError> {
        self.await_kernels(network, &mut |_, _| {})?;
        let bundle = Arc::clone(&self.bundle);
        let entry = network_of(bundle.plan(), network)?;
        let mut index = 0;
        while let Some(step) = entry.steps.get(index) {
            index += match step {
                Step::Dispatch(dispatch) => self.dispatch(dispatch, network, index)?,
                _ => 1,
            };
        }
        self.compute.flush().at("clFlush", || format!("the end of {}", entry.name))
    }

    /// Waits until the device has finished all enqueued work.
    pub fn finish(&mut self) -> Result<(), RuntimeError> {
        self.compute.finish().at("clFinish", || "the end of a network")
    }

    /// An event that completes when all launches enqueued so far have.
    fn marker(&self) -> Result<Event, RuntimeError> {
        // SAFETY: the wait list is empty, so the marker waits for the queue alone.
        let marker = unsafe { self.compute.enqueue_marker_with_wait_list(&[]) };
        marker.at("clEnqueueMarkerWithWaitList", || "the launches so far")
    }

    /// Enqueues a launch, or the whole recording that begins with it. Returns the number of steps
    /// enqueued.
    fn dispatch(
        &mut self,
        dispatch: &Dispatch,
        network: usize,
        step: usize,
    ) -> Result<usize, RuntimeError> {
        let recordings = self.loaded.as_mut().map(|loaded| &mut loaded.recordings);
        let replayed = recordings.map_or(Ok(0), |all| all.replay(network, step))?;
        if replayed > 0 {
            return Ok(replayed);
        }
        let plan = self.bundle.plan();
        let at = || {
            let kernel = plan.kernels.get(dispatch.kernel.index());
            let (op, variant) = kernel.map_or(("", ""), |k| (&k.op, &k.variant));
            let network = plan.networks.get(network).map_or("", |network| &network.name);
            format!("{} ({op}/{variant}, step {step} of {network})", dispatch.name)
        };
        let kernel = self.kernels.get(dispatch.kernel.index());
        let kernel = kernel.ok_or_else(|| absent("kernel", dispatch.kernel.index()))?;
        set_args(kernel, self.bindings.of(network, step), self.memory()?, &at)?;
        let sizes = Sizes::of(dispatch.offset, dispatch.global, dispatch.local);
        if let Some(launches) = &mut self.launches {
            let event = launch_timed(&self.compute, kernel, &sizes).at(LAUNCH, at)?;
            launches.push((network, step, event));
            return Ok(1);
        }
        launch(&self.compute, kernel, &sizes).at(LAUNCH, at)?;
        Ok(1)
    }

    /// Number of launches of a network that the driver has recorded.
    pub fn recorded_launches(&self, network: usize) -> usize {
        self.loaded.as_ref().map_or(0, |loaded| loaded.recordings.launches(network))
    }

    /// Reads rows from the file, verifies them, and writes them to the output.
    fn gather(&mut self, gather: &Gather) -> Result<(), RuntimeError> {
        let indices = self.indices.get(&gather.indices).map_or(&[][..], Vec::as_slice);
        let indices = indices.iter().take(gather.index_count as usize);
        let row_bytes = (gather.row_bytes as usize).max(1);
        self.rows.clear();
        self.rows.resize(indices.len() * row_bytes, 0);
        for (out, &index) in self.rows.chunks_exact_mut(row_bytes).zip(indices) {
            let row = u32::try_from(index).ok().filter(|&row| row < gather.row_count);
            let Some(row) = row else {
                let (name, count) = (&gather.name, gather.row_count);
                let message = format!("index {index} of {name} is outside a table of {count} rows");
                return Err(RuntimeError::Input(message));
            };
            self.bundle.read_row(gather, row, out)?;
        }
        let offset_bytes = self.offset_of(gather.output)?;
        self.memory()?.write(&self.compute, offset_bytes, &self.rows, &gather.name)
    }

    fn offset_of(&self, buffer: BufferId) -> Result<u64, RuntimeError> {
        let found = self.bundle.plan().buffers.get(buffer.index());
        found.map(|buffer| buffer.offset_bytes).ok_or_else(|| absent("buffer", buffer.index()))
    }

    /// Writes the bytes of a port, in its element type.
    pub fn write_port(&mut self, port: &Port, bytes: &[u8]) -> Result<(), RuntimeError> {
        let offset_bytes = self.offset_of(port.buffer)?;
        if let Some(indices) = self.indices.get_mut(&port.buffer) {
            for (index, word) in indices.iter_mut().zip(bytes.as_chunks().0) {
                *index = i32::from_le_bytes(*word);
            }
        }
        self.memory()?.write(&self.compute, offset_bytes, bytes, &port.name)
    }

    /// Reads the bytes of a port, in its element type, after all launches enqueued before.
    pub fn read_port(&self, port: &Port, out: &mut [u8]) -> Result<(), RuntimeError> {
        let offset_bytes = self.offset_of(port.buffer)?;
        self.memory()?.read(&self.compute, offset_bytes, out, &port.name)
    }

    /// Reads a region of a buffer, after all launches enqueued before.
    pub(crate) fn read_region(
        &self,
        buffer: BufferId,
        offset_bytes: u64,
        out: &mut [u8],
    ) -> Result<(), RuntimeError> {
        let offset_bytes = self.offset_of(buffer)? + offset_bytes;
        self.memory()?.read(&self.compute, offset_bytes, out, "an output")
    }

    /// Copies a region of one buffer to a region of another, after all launches enqueued before.
    pub fn copy(
        &self,
        from: (BufferId, u64),
        to: (BufferId, u64),
        len_bytes: u64,
    ) -> Result<(), RuntimeError> {
        let (from, to) = (self.offset_of(from.0)? + from.1, self.offset_of(to.0)? + to.1);
        self.memory()?.copy(&self.compute, from, to, len_bytes, "a port")
    }

    /// Waits for all launches since the last call and returns their times. Empty without
    /// profiling.
    pub fn take_launch_times(&mut self) -> Result<Vec<LaunchTime>, RuntimeError> {
        self.finish()?;
        let launches = self.launches.as_mut().map(std::mem::take).unwrap_or_default();
        let mut times = Vec::with_capacity(launches.len());
        for (network, step, event) in launches {
            let at = || "a launch";
            let start = event.profiling_command_start().at("clGetEventProfilingInfo", at)?;
            let end = event.profiling_command_end().at("clGetEventProfilingInfo", at)?;
            times.push(LaunchTime { network, step, nanoseconds: end.saturating_sub(start) });
        }
        Ok(times)
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Nothing may use the memory when it is freed. Errors were reported where they arose.
        let _ = self.compute.finish();
    }
}

fn network_of(plan: &Plan, index: usize) -> Result<&Network, RuntimeError> {
    plan.networks.get(index).ok_or_else(|| absent("network", index))
}

fn absent(what: &str, index: usize) -> RuntimeError {
    RuntimeError::Plan(format!("there is no {what} {index}"))
}

fn is_running(event: &Event) -> bool {
    event.command_execution_status().is_ok_and(|status| status.0 > CL_COMPLETE)
}

fn create_queue(context: &Context, profiling: bool) -> Result<CommandQueue, RuntimeError> {
    let properties = if profiling { CL_QUEUE_PROFILING_ENABLE } else { 0 };
    CommandQueue::create_default_with_properties(context, properties, 0)
        // Drivers before OpenCL 2.0 know only the older call.
        .or_else(|_| CommandQueue::create_default(context, properties))
        .at("clCreateCommandQueue", || "the device")
}

fn host_indices(plan: &Plan) -> HashMap<BufferId, Vec<i32>> {
    let mut indices: HashMap<BufferId, Vec<i32>> = HashMap::new();
    for step in plan.networks.iter().flat_map(|network| &network.steps) {
        if let Step::Gather(gather) = step {
            let entry = indices.entry(gather.indices).or_default();
            entry.resize(entry.len().max(gather.index_count as usize), 0);
        }
    }
    indices
}

/// Bytes of the largest gather.
fn gathered_bytes(plan: &Plan) -> usize {
    let steps = plan.networks.iter().flat_map(|network| &network.steps);
    let bytes = |step: &Step| match step {
        Step::Gather(gather) => gather.row_bytes.saturating_mul(gather.index_count.into()),
        _ => 0,
    };
    steps.map(bytes).max().unwrap_or(0) as usize
}
