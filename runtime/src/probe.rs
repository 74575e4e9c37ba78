//! Runs single kernels without a plan, to test their results and to measure their times.
//!
//! For self-tests of devices and drivers, and for measurements of kernels. **Its allocations are
//! outside of any plan** and any budget: a session never uses this module. Sources are compiled
//! each time, so that the driver's current compiler is tested.
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
pub struct Launch {
    /// OpenCL C, complete.
    pub source: String,
    /// Name of the kernel function.
    pub entry: String,
    /// Arguments in order.
    pub args: Vec<Argument>,
    /// Global work size.
    pub global: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
    /// Global offset. Not 0 if the launch is a later part of a split launch.
    pub first: [u64; 3],
}

/// An argument of a [`Launch`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Argument {
    /// A buffer, by index into the buffers given to [`Probe::run`].
    Buffer(usize),
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
}

/// Times of a probe.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ProbeTimes {
    /// Time to compile all sources.
    pub build_seconds: f64,
    /// Time from the first launch to the end of the last.
    pub run_seconds: f64,
}

/// Launches with their kernels and memory, which can run any number of times.
pub struct Prepared {
    kernels: Vec<(Kernel, Launch)>,
    memory: Vec<Buffer<u8>>,
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

    /// Compiles all launches, copies `buffers` to the device, runs the launches in order and
    /// copies the buffers back.
    ///
    /// The kernels must stay inside of their buffers. Errors: those of [`prepare`](Self::prepare).
    pub fn run(
        &self,
        launches: &[Launch],
        buffers: &mut [Vec<u8>],
    ) -> Result<ProbeTimes, RuntimeError> {
        let start = Instant::now();
        let prepared = self.prepare(launches, buffers)?;
        let build_seconds = start.elapsed().as_secs_f64();
        let run_seconds = self.time(&prepared, 1)?;
        for (index, bytes) in buffers.iter_mut().enumerate() {
            self.read(&prepared, index, bytes)?;
        }
        Ok(ProbeTimes { build_seconds, run_seconds })
    }

    /// Compiles all launches, each source once, and copies `buffers` to the device.
    ///
    /// Errors: `Build` with the compiler's log; `Input` if the number of arguments differs from the
    /// kernel's, or a buffer does not exist; `OpenCl`.
    pub fn prepare(
        &self,
        launches: &[Launch],
        buffers: &[Vec<u8>],
    ) -> Result<Prepared, RuntimeError> {
        let mut programs: HashMap<&str, Program> = HashMap::new();
        let mut kernels = Vec::with_capacity(launches.len());
        for launch in launches {
            let program = match programs.entry(&launch.source) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.build(launch)?),
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

    /// Runs all launches in order, `times` times, and waits for the last. Returns the seconds in
    /// all.
    pub fn time(&self, prepared: &Prepared, times: usize) -> Result<f64, RuntimeError> {
        let start = Instant::now();
        for _ in 0..times {
            for (kernel, launch) in &prepared.kernels {
                self.enqueue(kernel, launch)?;
            }
        }
        self.queue.finish().at("clFinish", || "a measurement")?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Runs each kernel once with the sizes of `launches` in place of its own, and waits for each.
    /// Returns the seconds of each. The arguments stay as prepared.
    pub fn time_each(
        &self,
        prepared: &Prepared,
        launches: &[Launch],
    ) -> Result<Vec<f64>, RuntimeError> {
        let time = |((kernel, _), launch): (&(Kernel, Launch), &Launch)| {
            let start = Instant::now();
            self.enqueue(kernel, launch)?;
            self.queue.finish().at("clFinish", || "a measurement")?;
            Ok(start.elapsed().as_secs_f64())
        };
        prepared.kernels.iter().zip(launches).map(time).collect()
    }

    /// Copies the start of a buffer into `out`.
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

    fn build(&self, launch: &Launch) -> Result<Program, RuntimeError> {
        let _driver = lock_driver();
        let entry = launch.entry.as_str();
        let mut program = Program::create_from_source(&self.context, &launch.source)
            .at("clCreateProgramWithSource", || entry)?;
        if let Err(ClError(code)) = program.build(self.context.devices(), "") {
            let log = program.get_build_log(self.context.default_device()).unwrap_or_default();
            return Err(RuntimeError::Build { at: entry.to_owned(), code, log });
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

    fn enqueue(&self, kernel: &Kernel, launch: &Launch) -> Result<(), RuntimeError> {
        let Launch { first, global, local, .. } = launch;
        let sizes = Sizes::of(*first, *global, *local);
        crate::launch::launch(&self.queue, kernel, &sizes)
            .at("clEnqueueNDRangeKernel", || launch.entry.as_str())
    }
}

fn kernel(program: &Program, launch: &Launch) -> Result<Kernel, RuntimeError> {
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

fn set_args(kernel: &Kernel, launch: &Launch, memory: &[Buffer<u8>]) -> Result<(), RuntimeError> {
    let entry = launch.entry.as_str();
    for (index, argument) in (0u32..).zip(&launch.args) {
        // SAFETY: OpenCL compares the size with the kernel's argument, and copies the value before
        // it returns; `memory` lives as long as the kernels it is prepared for.
        let set = match argument {
            Argument::Buffer(buffer) => {
                let missing = || format!("kernel {entry} is given no buffer {buffer}");
                let buffer = memory.get(*buffer);
                let buffer = buffer.ok_or_else(|| RuntimeError::Input(missing()))?;
                unsafe { kernel.set_arg(index, &buffer.get()) }
            }
            Argument::U32(value) => unsafe { kernel.set_arg(index, value) },
            Argument::F32(value) => unsafe { kernel.set_arg(index, value) },
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

    fn launch(args: Vec<Argument>) -> Launch {
        let (source, entry) = (SOURCE.to_owned(), "twice".to_owned());
        Launch { source, entry, args, global: [4, 1, 1], local: None, first: [0; 3] }
    }

    fn probe() -> Probe {
        Probe::open(&device::select("auto").unwrap()).unwrap()
    }

    #[test]
    fn a_kernel_changes_its_buffer() {
        let args = vec![Argument::Buffer(0), Argument::U32(3), Argument::F32(2.0)];
        let mut buffers = [[1u32, 2, 3, 4].iter().flat_map(|v| v.to_le_bytes()).collect()];
        probe().run(&[launch(args.clone()), launch(args)], &mut buffers).unwrap();
        let expected: Vec<u8> = [4u32, 8, 12, 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(buffers, [expected]);
    }

    #[test]
    fn faults_are_told_apart() {
        let probe = probe();
        let mut buffers = [vec![0u8; 16]];
        let error = probe.run(&[launch(vec![])], &mut buffers).unwrap_err().to_string();
        assert!(error.contains("takes 3"), "{error}");
        let args = vec![Argument::Buffer(7), Argument::U32(3), Argument::F32(2.0)];
        let error = probe.run(&[launch(args)], &mut buffers).unwrap_err().to_string();
        assert!(error.contains("no buffer 7"), "{error}");
        let broken = Launch { source: "kernel void twice() { nonsense }".into(), ..launch(vec![]) };
        let error = probe.run(&[broken], &mut buffers).unwrap_err();
        assert!(matches!(error, RuntimeError::Build { .. }), "{error}");
    }
}
