//! Runs kernels that belong to no plan: self-tests of devices and drivers, and measurements of
//! single kernels.
//!
//! **The allocations of a probe are outside of any plan** and of any budget; a session never comes
//! here. Each probe compiles its sources anew, so that it tests the current compiler of the driver.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ptr;
use std::time::Instant;

use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::error_codes::ClError;
use opencl3::kernel::Kernel;
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE, ClMem};
use opencl3::program::Program;
use opencl3::types::CL_BLOCKING;

use crate::device::{DeviceFacts, lock_driver};
use crate::error::{At, RuntimeError};
use crate::launch::Sizes;

/// One kernel to compile and run.
#[derive(Clone, Debug)]
pub struct ProbeLaunch {
    /// OpenCL C, complete.
    pub source: String,
    /// Options of the driver's compiler.
    pub options: &'static str,
    /// Name of the kernel function.
    pub entry: String,
    /// Arguments in order.
    pub args: Vec<ProbeArgument>,
    /// Global work size.
    pub global: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
}

/// An argument of a [`ProbeLaunch`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ProbeArgument {
    /// A buffer, by index into those that [`Probe::prepare`] is given.
    Buffer(usize),
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}

/// Some of the work-items of a launch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// The first global id.
    pub first: [u64; 3],
    /// How many work-items, from there.
    pub global: [u64; 3],
}

/// Launches with their kernels and memory, to be run as often as wanted.
pub struct Prepared {
    kernels: Vec<(Kernel, ProbeLaunch)>,
    memory: Vec<Buffer<u8>>,
}

impl Prepared {
    /// The launches in order.
    pub fn launches(&self) -> impl Iterator<Item = &ProbeLaunch> {
        self.kernels.iter().map(|(_, launch)| launch)
    }
}

/// A device with a queue of its own.
pub struct Probe {
    queue: CommandQueue,
    context: Context,
}

impl Probe {
    /// Opens a device.
    ///
    /// Errors: `OpenCl`.
    pub fn open(device: &DeviceFacts) -> Result<Probe, RuntimeError> {
        let _driver = lock_driver();
        let name = || device.name.as_str();
        let context = Context::from_device(&device.device).at("clCreateContext", name)?;
        let queue = CommandQueue::create_default_with_properties(&context, 0, 0)
            // Drivers before OpenCL 2.0 know only the older call.
            .or_else(|_| CommandQueue::create_default(&context, 0))
            .at("clCreateCommandQueue", name)?;
        Ok(Probe { queue, context })
    }

    /// Compiles a source and looks for kernels in it: a driver may leave out a kernel that it
    /// cannot compile, and report success.
    ///
    /// Errors: `Build` with the compiler's log; `OpenCl`.
    pub fn build_kernels(
        &self,
        source: &str,
        options: &str,
        entries: &[&str],
    ) -> Result<(), RuntimeError> {
        let program = self.build(source, options, "a trial")?;
        for entry in entries {
            Kernel::create(&program, entry).at("clCreateKernel", || *entry)?;
        }
        Ok(())
    }

    /// Compiles all launches, each source once, and copies `buffers` to the device.
    ///
    /// The kernels must stay inside of the buffers they are given. Errors: `Build` with the
    /// compiler's log; `Input` if a launch has not as many arguments as its kernel, or names a
    /// buffer that is not there; `OpenCl`.
    pub fn prepare(
        &self,
        launches: &[ProbeLaunch],
        buffers: &[Vec<u8>],
    ) -> Result<Prepared, RuntimeError> {
        let mut programs: HashMap<&str, Program> = HashMap::new();
        let mut kernels = Vec::with_capacity(launches.len());
        for launch in launches {
            let program = match programs.entry(&launch.source) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    entry.insert(self.build(&launch.source, launch.options, &launch.entry)?)
                }
            };
            kernels.push((kernel(program, launch)?, launch.clone()));
        }
        let memory = buffers.iter().map(|bytes| self.upload(bytes)).collect::<Result<_, _>>()?;
        let prepared = Prepared { kernels, memory };
        for (kernel, launch) in &prepared.kernels {
            set_args(kernel, launch, &prepared.memory)?;
        }
        Ok(prepared)
    }

    /// Runs all launches in order, `times` over, and waits for the last; seconds of it all.
    pub fn time(&self, prepared: &Prepared, times: usize) -> Result<f64, RuntimeError> {
        let start = Instant::now();
        for _ in 0..times {
            for (kernel, launch) in &prepared.kernels {
                self.enqueue(kernel, launch, Part { first: [0; 3], global: launch.global })?;
            }
        }
        self.queue.finish().at("clFinish", || "a measurement")?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs part of one launch and waits for it; seconds.
    ///
    /// Errors: `Input` if there is no such launch; `OpenCl`.
    pub fn time_part(
        &self,
        prepared: &Prepared,
        launch: usize,
        part: Part,
    ) -> Result<f64, RuntimeError> {
        let missing = || RuntimeError::Input(format!("there is no launch {launch}"));
        let (kernel, launch) = prepared.kernels.get(launch).ok_or_else(missing)?;
        let start = Instant::now();
        self.enqueue(kernel, launch, part)?;
        self.queue.finish().at("clFinish", || "a measurement")?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Copies a buffer back, as much as `out` holds.
    ///
    /// Errors: `Input` if there is no such buffer; `OpenCl`.
    pub fn read(
        &self,
        prepared: &Prepared,
        buffer: usize,
        out: &mut [u8],
    ) -> Result<(), RuntimeError> {
        let Some(memory) = prepared.memory.get(buffer) else {
            return Err(RuntimeError::Input(format!("there is no buffer {buffer}")));
        };
        if out.is_empty() {
            return Ok(());
        }
        // SAFETY: blocking, so `out` outlives the command; OpenCL checks the range.
        unsafe { self.queue.enqueue_read_buffer(memory, CL_BLOCKING, 0, out, &[]) }
            .map(drop)
            .at("clEnqueueReadBuffer", || "a measurement")
    }

    fn build(&self, source: &str, options: &str, at: &str) -> Result<Program, RuntimeError> {
        let _driver = lock_driver();
        let mut program = Program::create_from_source(&self.context, source)
            .at("clCreateProgramWithSource", || at)?;
        if let Err(ClError(code)) = program.build(self.context.devices(), options) {
            let log = program.get_build_log(self.context.default_device()).unwrap_or_default();
            return Err(RuntimeError::Build { at: at.to_owned(), code, log });
        }
        Ok(program)
    }

    fn upload(&self, bytes: &[u8]) -> Result<Buffer<u8>, RuntimeError> {
        let at = || format!("a buffer of {} bytes", bytes.len());
        // SAFETY: no host pointer is given.
        let buffer = unsafe {
            let len = bytes.len().max(1);
            Buffer::<u8>::create(&self.context, CL_MEM_READ_WRITE, len, ptr::null_mut())
        };
        let mut buffer = buffer.at("clCreateBuffer", at)?;
        if !bytes.is_empty() {
            // SAFETY: blocking, so `bytes` outlives the command.
            unsafe { self.queue.enqueue_write_buffer(&mut buffer, CL_BLOCKING, 0, bytes, &[]) }
                .at("clEnqueueWriteBuffer", at)?;
        }
        Ok(buffer)
    }

    fn enqueue(
        &self,
        kernel: &Kernel,
        launch: &ProbeLaunch,
        Part { first, global }: Part,
    ) -> Result<(), RuntimeError> {
        let sizes = Sizes::of(first, global, launch.local);
        crate::launch::launch(&self.queue, kernel, &sizes)
            .at("clEnqueueNDRangeKernel", || launch.entry.as_str())
    }
}

fn kernel(program: &Program, launch: &ProbeLaunch) -> Result<Kernel, RuntimeError> {
    let entry = launch.entry.as_str();
    let kernel = Kernel::create(program, entry).at("clCreateKernel", || entry)?;
    let takes = kernel.num_args().at("clGetKernelInfo", || entry)? as usize;
    if takes != launch.args.len() {
        let given = launch.args.len();
        let message = format!("kernel {entry} takes {takes} arguments and is given {given}");
        return Err(RuntimeError::Input(message));
    }
    Ok(kernel)
}

fn set_args(
    kernel: &Kernel,
    launch: &ProbeLaunch,
    memory: &[Buffer<u8>],
) -> Result<(), RuntimeError> {
    let entry = launch.entry.as_str();
    for (index, argument) in (0u32..).zip(&launch.args) {
        // SAFETY: OpenCL compares the size with the kernel's argument, and copies the value before
        // it returns; `memory` lives as long as the kernels it is prepared for.
        let set = match argument {
            ProbeArgument::Buffer(buffer) => {
                let missing = || format!("kernel {entry} is given no buffer {buffer}");
                let buffer = memory.get(*buffer);
                let buffer = buffer.ok_or_else(|| RuntimeError::Input(missing()))?;
                unsafe { kernel.set_arg(index, &buffer.get()) }
            }
            ProbeArgument::U32(value) => unsafe { kernel.set_arg(index, value) },
            ProbeArgument::F32(value) => unsafe { kernel.set_arg(index, value) },
        };
        set.at("clSetKernelArg", || format!("argument {index} of {entry}"))?;
    }
    Ok(())
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A launch that failed half-way may leave others behind; its error was reported.
        let _ = self.queue.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    const SOURCE: &str = "kernel void twice(global uint *x, uint n, float f) {
        if (get_global_id(0) < n) x[get_global_id(0)] *= (uint)f;
    }";

    fn launch(args: Vec<ProbeArgument>) -> ProbeLaunch {
        let (source, entry) = (SOURCE.to_owned(), "twice".to_owned());
        ProbeLaunch { source, options: "", entry, args, global: [4, 1, 1], local: None }
    }

    fn bytes(values: [u32; 4]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn probe() -> Probe {
        Probe::open(&device::select("auto").unwrap()).unwrap()
    }

    #[test]
    fn a_kernel_changes_its_buffer_whole_and_in_part() {
        let args = vec![ProbeArgument::Buffer(0), ProbeArgument::U32(3), ProbeArgument::F32(2.0)];
        let probe = probe();
        let launches = [launch(args.clone()), launch(args)];
        let prepared = probe.prepare(&launches, &[bytes([1, 2, 3, 4])]).unwrap();
        let mut found = vec![0; 16];
        probe.time(&prepared, 1).unwrap();
        probe.read(&prepared, 0, &mut found).unwrap();
        assert_eq!(found, bytes([4, 8, 12, 4]));
        let part = Part { first: [1, 0, 0], global: [1, 1, 1] };
        probe.time_part(&prepared, 1, part).unwrap();
        probe.read(&prepared, 0, &mut found).unwrap();
        assert_eq!(found, bytes([4, 16, 12, 4]));
        assert!(probe.time_part(&prepared, 2, part).is_err());
    }

    #[test]
    fn faults_are_told_apart() {
        let probe = probe();
        let fault = |launch| probe.prepare(&[launch], &[vec![0u8; 16]]).err().unwrap();
        let error = fault(launch(vec![])).to_string();
        assert!(error.contains("takes 3"), "{error}");
        let args = vec![ProbeArgument::Buffer(7), ProbeArgument::U32(3), ProbeArgument::F32(2.0)];
        let error = fault(launch(args)).to_string();
        assert!(error.contains("no buffer 7"), "{error}");
        let source = "kernel void twice() { nonsense }".to_owned();
        let error = fault(ProbeLaunch { source, ..launch(vec![]) });
        assert!(matches!(error, RuntimeError::Build { .. }), "{error}");
        assert!(probe.build_kernels(SOURCE, "", &["twice"]).is_ok());
        assert!(probe.build_kernels(SOURCE, "", &["thrice"]).is_err());
    }
}
