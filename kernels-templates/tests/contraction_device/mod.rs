//! Runs a lowering on the first OpenCL device.
#![allow(dead_code)]

use half::f16;
use kiln_ir::{DType, TensorType};
use kiln_kernels::{Argument, Launch, Lowering, Packing, Problem};
use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::{CL_DEVICE_TYPE_ALL, Device};
use opencl3::kernel::{ExecuteKernel, Kernel};
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE};
use opencl3::platform::get_platforms;
use opencl3::program::Program;
use opencl3::types::{CL_BLOCKING, cl_uchar};
use std::collections::HashMap;
use std::ptr::null_mut;
use std::time::Instant;

/// A device with its queue.
pub struct Runner {
    context: Context,
    queue: CommandQueue,
    programs: HashMap<String, Program>,
}

/// A launch with everything bound.
pub struct Bound {
    kernel: Kernel,
    buffers: Vec<Slot>,
    launch: Launch,
}

enum Slot {
    Own(Buffer<cl_uchar>),
    Scratch(usize),
    Output,
    U32(u32),
    F32(f32),
}

/// Launches that can run again and again.
pub struct Bindings {
    launches: Vec<Bound>,
    scratch: Vec<Buffer<cl_uchar>>,
    output: Buffer<cl_uchar>,
    output_type: TensorType,
}

impl Runner {
    /// The first device of the first platform that has one; `KILN_PLATFORM` picks another
    /// platform by index.
    pub fn new() -> Self {
        let index = std::env::var("KILN_PLATFORM").map_or(0, |v| v.parse().unwrap());
        let platform = get_platforms().expect("an OpenCL platform")[index];
        let id = platform.get_devices(CL_DEVICE_TYPE_ALL).expect("an OpenCL device")[0];
        let context = Context::from_device(&Device::new(id)).unwrap();
        let queue = CommandQueue::create_default_with_properties(&context, 0, 0).unwrap();
        Self { context, queue, programs: HashMap::new() }
    }

    fn kernel(&mut self, source: &str, entry: &str) -> Kernel {
        if !self.programs.contains_key(source) {
            let program = Program::create_and_build_from_source(&self.context, source, "")
                .unwrap_or_else(|log| panic!("{log}\n{}", numbered(source)));
            self.programs.insert(source.to_string(), program);
        }
        let kernel = Kernel::create(&self.programs[source], entry);
        kernel.unwrap_or_else(|e| panic!("{entry}: {e}\n{}", numbered(source)))
    }

    fn buffer(&self, bytes: &[u8]) -> Buffer<cl_uchar> {
        let mut buffer = self.empty(bytes.len());
        unsafe {
            self.queue.enqueue_write_buffer(&mut buffer, CL_BLOCKING, 0, bytes, &[]).unwrap();
        }
        buffer
    }

    fn empty(&self, len: usize) -> Buffer<cl_uchar> {
        unsafe { Buffer::create(&self.context, CL_MEM_READ_WRITE, len, null_mut()).unwrap() }
    }

    /// Packs and uploads the inputs, each region into a buffer of its own length.
    pub fn bind(
        &mut self,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
    ) -> Bindings {
        let packed: Vec<Vec<u8>> = (0..values.len())
            .map(|i| {
                let packing = lowering.packings.iter().find(|(input, _)| *input == i);
                let ty = &problem.inputs[i].ty;
                let packing = packing.map_or(Packing::RowMajor(ty.dtype), |(_, p)| *p);
                let bytes = packing.pack(&ty.shape, &values[i]);
                assert_eq!(bytes.len() as u64, packing.size_bytes(&ty.shape));
                bytes
            })
            .collect();
        let bound = |runner: &mut Self, launch: &Launch| {
            let slot = |a: &Argument| match a {
                Argument::Input { index, offset_bytes, len_bytes } => {
                    let start = *offset_bytes as usize;
                    Slot::Own(runner.buffer(&packed[*index][start..start + *len_bytes as usize]))
                }
                Argument::Output => Slot::Output,
                Argument::Scratch { index, .. } => Slot::Scratch(*index),
                Argument::U32(v) => Slot::U32(*v),
                Argument::F32(v) => Slot::F32(*v),
            };
            let buffers = launch.args.iter().map(slot).collect();
            let kernel = runner.kernel(&launch.source, launch.entry);
            Bound { kernel, buffers, launch: launch.clone() }
        };
        Bindings {
            launches: lowering.launches.iter().map(|l| bound(self, l)).collect(),
            scratch: lowering.scratch_bytes.iter().map(|b| self.empty(*b as usize)).collect(),
            output: self.empty(problem.output.size_bytes() as usize),
            output_type: problem.output.clone(),
        }
    }

    /// Runs all launches, `times` in a row, and waits; seconds.
    pub fn run(&self, bindings: &Bindings, times: usize) -> f64 {
        let start = Instant::now();
        for bound in std::iter::repeat_n(&bindings.launches, times).flatten() {
            let mut call = ExecuteKernel::new(&bound.kernel);
            for slot in &bound.buffers {
                unsafe {
                    match slot {
                        Slot::Own(b) => call.set_arg(b),
                        Slot::Scratch(i) => call.set_arg(&bindings.scratch[*i]),
                        Slot::Output => call.set_arg(&bindings.output),
                        Slot::U32(v) => call.set_arg(v),
                        Slot::F32(v) => call.set_arg(v),
                    };
                }
            }
            call.set_global_work_sizes(&bound.launch.global.map(|v| v as usize));
            if let Some(local) = bound.launch.local {
                call.set_local_work_sizes(&local.map(|v| v as usize));
            }
            unsafe { call.enqueue_nd_range(&self.queue).unwrap() };
        }
        self.queue.finish().unwrap();
        start.elapsed().as_secs_f64()
    }

    /// Reads the output as `f32`.
    pub fn output(&self, bindings: &Bindings) -> Vec<f32> {
        let mut bytes = vec![0u8; bindings.output_type.size_bytes() as usize];
        unsafe {
            self.queue
                .enqueue_read_buffer(&bindings.output, CL_BLOCKING, 0, &mut bytes, &[])
                .unwrap();
        }
        match bindings.output_type.dtype {
            DType::F16 => {
                let halves = bytes.chunks_exact(2);
                halves.map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            _ => {
                let floats = bytes.chunks_exact(4);
                floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        }
    }
}

fn numbered(source: &str) -> String {
    source.lines().enumerate().map(|(i, l)| format!("{:4} {l}\n", i + 1)).collect()
}

/// Deterministic values in [-1, 1) * scale.
pub fn noise(seed: u64, count: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..count).map(|_| next()).collect()
}

/// What storage in `dtype` leaves of a value.
pub fn stored(dtype: DType, values: Vec<f32>) -> Vec<f32> {
    match dtype {
        DType::F16 => values.into_iter().map(|v| f16::from_f32(v).to_f32()).collect(),
        _ => values,
    }
}
