//! Runs lowerings on an OpenCL device and holds them to the references.
//!
//! The device is the first one, or number `KILN_TEST_DEVICE` over all platforms. A machine
//! without a device fails. Scratch memory and outputs start as NaN, so that an element that is
//! read before it is written, or never written, shows.
pub mod half;
mod values;

pub use values::{Tolerance, compare, decode, random, sampled, stored};

use kiln_ir::{DType, Op, Tensor, TensorType};
use kiln_kernels::{Argument, DeviceClass, Launch, Lowering, Operand, Packing, Problem, Target};
use opencl3::command_queue::CommandQueue;
use opencl3::context::Context;
use opencl3::device::{CL_DEVICE_TYPE_ALL, Device};
use opencl3::kernel::{ExecuteKernel, Kernel};
use opencl3::memory::{Buffer, CL_MEM_READ_WRITE};
use opencl3::platform::get_platforms;
use opencl3::program::Program;
use opencl3::types::{CL_BLOCKING, cl_uchar};
use std::collections::{BTreeSet, HashMap};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Bytes behind the output that no kernel may change.
const GUARD_BYTES: usize = 256;

/// An OpenCL device with an in-order queue.
pub struct Runner {
    context: Context,
    queue: CommandQueue,
    vendor: String,
    half: OnceLock<half::Way>,
    /// Programs by source: stripes and parts are launches of the same.
    programs: Mutex<HashMap<String, Arc<Program>>>,
}

/// A lowering with its memory, ready to run.
pub struct Prepared {
    kernels: Vec<(Kernel, Launch, Vec<Slot>)>,
    scratch: Vec<Buffer<cl_uchar>>,
    output: Buffer<cl_uchar>,
    output_type: TensorType,
}

enum Slot {
    Own(Buffer<cl_uchar>),
    Scratch(usize),
    Output,
    U32(u32),
    F32(f32),
}

impl Runner {
    /// The device, opened once for all tests of a binary; panics if there is none.
    pub fn shared() -> &'static Self {
        static RUNNER: OnceLock<Runner> = OnceLock::new();
        RUNNER.get_or_init(Self::open)
    }

    fn open() -> Self {
        let index = std::env::var("KILN_TEST_DEVICE").map_or(0, |v| v.parse().unwrap());
        let devices: Vec<_> = get_platforms()
            .expect("an OpenCL platform")
            .iter()
            .flat_map(|p| p.get_devices(CL_DEVICE_TYPE_ALL).unwrap_or_default())
            .collect();
        let id = *devices.get(index).expect("an OpenCL device of that index");
        let device = Device::new(id);
        let context = Context::from_device(&device).unwrap();
        let queue = CommandQueue::create_default_with_properties(&context, 0, 0).unwrap();
        Self {
            context,
            queue,
            vendor: device.vendor().unwrap(),
            half: OnceLock::new(),
            programs: Mutex::default(),
        }
    }

    /// Who made the device.
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// How the device does half arithmetic.
    pub fn half(&self) -> half::Way {
        *self.half.get_or_init(|| half::Way::find(|trial| self.builds_trial(trial)))
    }

    /// Whether the device builds one of [`half::trials`].
    pub fn builds_trial(&self, source: &str) -> bool {
        // A driver may leave out a kernel that it cannot compile, and say that all is well.
        let program = Program::create_and_build_from_source(&self.context, source, "");
        let names = [half::TRIAL, half::KERNEL];
        program.is_ok_and(|p| names.iter().all(|name| Kernel::create(&p, name).is_ok()))
    }

    /// Builds the kernels, packs and uploads the inputs, each region into a buffer of its length.
    pub fn prepare(&self, problem: &Problem, lowering: &Lowering, values: &[Vec<f32>]) -> Prepared {
        let packed: Vec<Vec<u8>> = (0..values.len())
            .map(|i| pack(lowering, i, &problem.inputs[i].ty, &values[i]))
            .collect();
        let slot = |argument: &Argument| match argument {
            Argument::Input { index, offset_bytes, len_bytes } => {
                let start = *offset_bytes as usize;
                Slot::Own(self.upload(&packed[*index][start..start + *len_bytes as usize]))
            }
            Argument::Output => Slot::Output,
            Argument::Scratch { index, .. } => Slot::Scratch(*index),
            Argument::U32(v) => Slot::U32(*v),
            Argument::F32(v) => Slot::F32(*v),
            Argument::Late(slot) => panic!("a kernel was not told {slot:?}"),
        };
        let kernels = lowering
            .launches
            .iter()
            .map(|l| (self.build(l), l.clone(), l.args.iter().map(slot).collect()))
            .collect();
        let nan = |len: u64| self.upload(&vec![0xff; len as usize]);
        Prepared {
            kernels,
            scratch: lowering.scratch_bytes.iter().map(|len| nan(*len)).collect(),
            output: nan(problem.output.size_bytes() + GUARD_BYTES as u64),
            output_type: problem.output.clone(),
        }
    }

    /// [`Runner::prepare`] with the output in the memory of an input, which must be of its type.
    pub fn prepare_in_place(
        &self,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
        input: usize,
    ) -> Prepared {
        let mut prepared = self.prepare(problem, lowering, values);
        let mut bytes = pack(lowering, input, &problem.inputs[input].ty, &values[input]);
        bytes.extend([0xff; GUARD_BYTES]);
        prepared.output = self.upload(&bytes);
        for (_, launch, slots) in &mut prepared.kernels {
            for (argument, slot) in launch.args.iter().zip(slots) {
                if matches!(argument, Argument::Input { index, .. } if *index == input) {
                    *slot = Slot::Output;
                }
            }
        }
        prepared
    }

    /// Builds the program of a launch, panics if it does not build, and gives its kernel.
    pub fn build(&self, launch: &Launch) -> Kernel {
        let nvidia = self.vendor.contains("NVIDIA");
        let emulated = if nvidia { None } else { without_ptx(&launch.source) };
        // Optimized, PoCL 3.1 loses sums of some of them.
        let options = if emulated.is_some() { "-cl-opt-disable" } else { "" };
        let halves = launch.half_arithmetic.then(|| self.half().source(&launch.source));
        let source = emulated.as_deref().or(halves.as_deref()).unwrap_or(&launch.source);
        let built = || {
            let program = Program::create_and_build_from_source(&self.context, source, options)
                .unwrap_or_else(|log| panic!("{}\n{log}", numbered(source)));
            Arc::new(program)
        };
        let known =
            self.programs.lock().unwrap_or_else(PoisonError::into_inner).get(source).cloned();
        let program = known.unwrap_or_else(built);
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let program = programs.entry(source.to_string()).or_insert(program);
        Kernel::create(program, launch.entry)
            .unwrap_or_else(|error| panic!("{}\n{}: {error}", numbered(source), launch.entry))
    }

    fn upload(&self, bytes: &[u8]) -> Buffer<cl_uchar> {
        // SAFETY: the buffer owns its memory; the blocking write outlives nothing.
        unsafe {
            let mut buffer =
                Buffer::create(&self.context, CL_MEM_READ_WRITE, bytes.len(), null_mut()).unwrap();
            self.queue.enqueue_write_buffer(&mut buffer, CL_BLOCKING, 0, bytes, &[]).unwrap();
            buffer
        }
    }

    /// Runs all launches once and waits; seconds.
    pub fn run(&self, prepared: &Prepared) -> f64 {
        self.run_repeatedly(prepared, 1)
    }

    /// Queues all launches `times` in a row and waits for the last; seconds of all.
    pub fn run_repeatedly(&self, prepared: &Prepared, times: usize) -> f64 {
        let start = Instant::now();
        for index in (0..times).flat_map(|_| 0..prepared.kernels.len()) {
            self.enqueue_whole(prepared, index);
        }
        self.queue.finish().unwrap();
        start.elapsed().as_secs_f64()
    }

    /// Runs all launches once and waits for each; the seconds of each.
    pub fn run_each(&self, prepared: &Prepared) -> Vec<f64> {
        let run = |index| {
            let start = Instant::now();
            self.enqueue_whole(prepared, index);
            self.queue.finish().unwrap();
            start.elapsed().as_secs_f64()
        };
        (0..prepared.kernels.len()).map(run).collect()
    }

    /// Runs all launches once, each in two parts along every axis that has as many work-groups, as
    /// the planner cuts them, and waits.
    pub fn run_in_parts(&self, prepared: &Prepared) {
        for (index, (_, launch, _)) in prepared.kernels.iter().enumerate() {
            let local = launch.local.unwrap_or([1; 3]);
            let halves = |axis: usize| {
                let half = launch.global[axis] / local[axis] / 2 * local[axis];
                let parts = [(0, half), (half, launch.global[axis] - half)];
                parts.into_iter().filter(|(_, items)| *items > 0)
            };
            for (z, depth) in halves(2) {
                for (y, height) in halves(1) {
                    for (x, width) in halves(0) {
                        self.enqueue(prepared, index, [x, y, z], [width, height, depth]);
                    }
                }
            }
        }
        self.queue.finish().unwrap();
    }

    fn enqueue_whole(&self, prepared: &Prepared, index: usize) {
        self.enqueue(prepared, index, [0; 3], prepared.kernels[index].1.global);
    }

    fn enqueue(&self, prepared: &Prepared, index: usize, offset: [u64; 3], global: [u64; 3]) {
        let (kernel, launch, slots) = &prepared.kernels[index];
        let mut call = ExecuteKernel::new(kernel);
        for slot in slots {
            // SAFETY: the slots are the kernel's arguments as the lowering lists them.
            unsafe {
                match slot {
                    Slot::Own(buffer) => call.set_arg(buffer),
                    Slot::Scratch(index) => call.set_arg(&prepared.scratch[*index]),
                    Slot::Output => call.set_arg(&prepared.output),
                    Slot::U32(v) => call.set_arg(v),
                    Slot::F32(v) => call.set_arg(v),
                };
            }
        }
        call.set_global_work_offsets(&offset.map(|v| v as usize));
        call.set_global_work_sizes(&global.map(|v| v as usize));
        if let Some(local) = launch.local {
            call.set_local_work_sizes(&local.map(|v| v as usize));
        }
        // SAFETY: `prepared` owns all memory, and whoever calls finishes the queue.
        unsafe { call.enqueue_nd_range(&self.queue).unwrap() };
    }

    /// The output as `f32`. Panics if a kernel wrote behind it.
    pub fn output(&self, prepared: &Prepared) -> Vec<f32> {
        let len = prepared.output_type.size_bytes() as usize;
        let mut bytes = vec![0u8; len + GUARD_BYTES];
        // SAFETY: the blocking read fills exactly `bytes`.
        unsafe {
            self.queue
                .enqueue_read_buffer(&prepared.output, CL_BLOCKING, 0, &mut bytes, &[])
                .unwrap();
        }
        assert!(bytes[len..].iter().all(|b| *b == 0xff), "a kernel wrote behind the output");
        decode(prepared.output_type.dtype, &bytes[..len])
    }
}

/// A kernel with OpenCL C in place of its inline PTX; `None` if it has none.
fn without_ptx(source: &str) -> Option<String> {
    let begin = source.find("/* PTX of")?;
    let end = source.find("/* End of PTX. */")?;
    let emulated = [&source[..begin], include_str!("ptx.cl"), &source[end..]].concat();
    // Loops with barriers in them are not worth unrolling.
    let rolled = emulated.replace("    #pragma unroll\n", "\n");
    let area = "    __local uint ptx_area[256][6];\n    __local uint4 memory";
    Some(rolled.replace("    __local uint4 memory", area))
}

fn pack(lowering: &Lowering, index: usize, ty: &TensorType, values: &[f32]) -> Vec<u8> {
    if ty.dtype == DType::I32 {
        return values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
    }
    let packing = lowering.packings.iter().find(|(input, _)| *input == index);
    let packing = packing.map_or(Packing::RowMajor(ty.dtype), |(_, p)| *p);
    let bytes = packing.pack(&ty.shape, values);
    assert_eq!(bytes.len() as u64, packing.size_bytes(&ty.shape), "packed size of input {index}");
    bytes
}

fn numbered(source: &str) -> String {
    source.lines().enumerate().map(|(i, l)| format!("{:4} {l}\n", i + 1)).collect()
}

/// The targets whose kernels are tested on every device: all of them are legal OpenCL C.
pub fn targets() -> Vec<Target> {
    let mobile = Target { class: DeviceClass::MobileGpu, max_work_group: 128, ..Target::gpu() };
    let narrow = Target { vector_width: 8, ..Target::cpu() };
    vec![Target::cpu(), narrow, Target::gpu(), Target::nvidia(), mobile]
}

/// Runs every variant of `op` for every target and storage type on random inputs of these
/// shapes, scaled by `spread`, and compares with the reference.
pub fn check(op: impl Into<Op>, shapes: &[&[usize]], spread: f32, tolerance: Tolerance) {
    let op = op.into();
    let values: Vec<Vec<f32>> = (shapes.iter().enumerate())
        .map(|(i, s)| random(i as u64 + 1, s.iter().product()))
        .map(|v| v.into_iter().map(|x| x * spread).collect())
        .collect();
    for storage in [DType::F32, DType::F16] {
        check_values(&op, shapes, &values, storage, tolerance);
    }
}

/// [`check`] on given values and one storage type.
pub fn check_values(
    op: &Op,
    shapes: &[&[usize]],
    values: &[Vec<f32>],
    storage: DType,
    tolerance: Tolerance,
) {
    let inputs: Vec<Operand> =
        (shapes.iter()).map(|s| Operand::new(TensorType::new(storage, s))).collect();
    let types: Vec<&TensorType> = inputs.iter().map(|o| &o.ty).collect();
    let output = op.infer(&types).unwrap();
    let problem = Problem {
        op,
        inputs: &inputs,
        output: &output,
        max_weight_bytes: u64::MAX,
        max_scratch_bytes: u64::MAX,
    };
    let values: Vec<Vec<f32>> = values.iter().map(|v| stored(storage, v)).collect();
    let tensors: Vec<Tensor> =
        (shapes.iter().zip(&values)).map(|(s, v)| Tensor::new(s, v.clone())).collect();
    let expected = op.eval(&tensors.iter().collect::<Vec<_>>()).data;

    let largest = values.iter().flatten().fold(0.0f32, |most, v| most.max(v.abs()));
    let runner = Runner::shared();
    let mut seen: Vec<Lowering> = vec![];
    for target in targets() {
        for variant in kiln_kernels::candidates(&problem, &target) {
            let lowering = variant.lower(&problem, &target).unwrap();
            if seen.contains(&lowering) {
                continue;
            }
            let what = format!("{}/{} {types:?} for {:?}", op.name(), variant.name, target.class);
            check_limits(&lowering, &target, &what);
            let prepared = runner.prepare(&problem, &lowering, &values);
            runner.run(&prepared);
            let rounding = (variant.rounding)(&problem, &target, largest);
            let abs = rounding.scale * tolerance.abs + rounding.abs;
            let allowed = Tolerance { abs, ..tolerance };
            let found = runner.output(&prepared);
            compare(&found, &expected, storage, allowed, &what);
            check_parts(runner, &problem, &lowering, &values, (variant.name, &found));
            seen.push(lowering);
        }
    }
    assert!(!seen.is_empty(), "no variant applies to {} {types:?}", op.name());
}

/// A lowering makes the same bits with its output in the memory of each input that allows it: once for
/// each variant, input and kind of launches.
pub fn check_in_place(
    runner: &Runner,
    problem: &Problem,
    lowering: &Lowering,
    values: &[Vec<f32>],
    (variant, whole): (&'static str, &[f32]),
) {
    type Kind = (&'static str, &'static str, bool, Vec<usize>);
    static SEEN: Mutex<BTreeSet<Kind>> = Mutex::new(BTreeSet::new());
    let inputs = kiln_kernels::in_place(problem, lowering);
    let kind = (problem.op.name(), variant, lowering.launches.len() > 2, inputs.clone());
    if !SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(kind.clone()) {
        return;
    }
    for input in inputs {
        let prepared = runner.prepare_in_place(problem, lowering, values, input);
        runner.run(&prepared);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&runner.output(&prepared)) == bits(whole), "{kind:?} over input {input}");
    }
}

/// A lowering makes the same bits in parts: once for each variant and set of axes that it can be
/// cut along, for drivers compile kernels anew for it.
pub fn check_parts(
    runner: &Runner,
    problem: &Problem,
    lowering: &Lowering,
    values: &[Vec<f32>],
    (variant, whole): (&'static str, &[f32]),
) {
    // Op, variant, and the axes of each launch.
    type Kind = (&'static str, &'static str, Vec<[bool; 3]>);
    static SEEN: Mutex<BTreeSet<Kind>> = Mutex::new(BTreeSet::new());
    let axes = |launch: &Launch| {
        let local = launch.local.unwrap_or([1; 3]);
        [0, 1, 2].map(|axis| launch.global[axis] > local[axis])
    };
    let axes: Vec<_> = lowering.launches.iter().map(axes).collect();
    let kind = (problem.op.name(), variant, axes);
    if !SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(kind.clone()) {
        return;
    }
    let prepared = runner.prepare(problem, lowering, values);
    runner.run_in_parts(&prepared);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits(&runner.output(&prepared)) == bits(whole), "{kind:?} differs in parts");
}

fn check_limits(lowering: &Lowering, target: &Target, what: &str) {
    for launch in &lowering.launches {
        assert!(launch.local_mem_bytes <= target.local_mem_bytes, "{what}: local memory");
        let Some(local) = launch.local else { continue };
        assert!(
            local.iter().product::<u64>() <= target.max_work_group.into(),
            "{what}: work-group"
        );
        for (global, local) in launch.global.iter().zip(local) {
            assert_eq!(global % local, 0, "{what}: work-groups fill {:?}", launch.global);
        }
    }
}
