//! Times contractions on the first OpenCL device, beside the FMA peak found in the same run.
//!
//! `cargo run --release -p kiln-kernels --example contraction_time -- [filter] [repeats]`
//! prints the median and the best of `repeats` for each shape whose line contains `filter`.
//! `cpu` is the best rate for each second of processor time on all compute units, which other
//! processes disturb less. `KILN_VARIANT` picks a variant, `KILN_TEST_DEVICE` a device,
//! `KILN_GPU` the target of a discrete GPU.

#[path = "../tests/harness/mod.rs"]
mod harness;

use harness::{Runner, random};
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{Argument, Launch, Lowering, Operand, Problem, Target, candidates};

struct Shape {
    op: Op,
    sources: Vec<Vec<usize>>,
    weights: Vec<usize>,
    activations: DType,
    dtype: DType,
    /// Places of the sum that share a scale of INT8 weights.
    block: usize,
}

fn matmul(m: usize, n: usize, k: usize, activation: Activation, residual: bool) -> Shape {
    let epilogue = Epilogue { bias: true, row_offset: None, activation, residual };
    let op = Matmul { sources: 1, epilogue }.into();
    let (activations, dtype) = (DType::F32, DType::F32);
    Shape { op, sources: vec![vec![m, k]], weights: vec![n, k], activations, dtype, block: 0 }
}

fn conv(c: usize, o: usize, extent: usize) -> Shape {
    let epilogue = Epilogue { bias: true, ..Epilogue::default() };
    let op = Conv2d { epilogue, ..Conv2d::new(3, 1) }.into();
    let (activations, dtype) = (DType::F32, DType::F32);
    let sources = vec![vec![1, extent, extent, c]];
    Shape { op, sources, weights: vec![o, c, 3, 3], activations, dtype, block: 0 }
}

fn upsampled(c: usize, o: usize, extent: usize) -> Shape {
    let mut shape = conv(c, o, extent);
    if let Op::Conv2d(op) = &mut shape.op {
        op.upsample = true;
    }
    shape
}

fn two_sources(c: [usize; 2], o: usize, extent: usize) -> Shape {
    let mut shape = conv(c[0] + c[1], o, extent);
    if let Op::Conv2d(op) = &mut shape.op {
        op.sources = 2;
    }
    shape.sources = c.map(|c| vec![1, extent, extent, c]).to_vec();
    shape
}

fn stored(activations: DType, weights: DType, shape: Shape) -> Shape {
    Shape { activations, dtype: weights, ..shape }
}

/// With INT8 weights, one scale an output channel and one for 64 input channels.
fn int8(shape: impl Fn() -> Shape) -> [Shape; 2] {
    let whole = shape().weights[1..].iter().product();
    [whole, 64].map(|block| Shape { dtype: DType::I8, block, ..shape() })
}

fn shapes() -> Vec<Shape> {
    use Activation::{Geglu, None, Silu};
    use DType::{F16, F32};
    let mut list = vec![
        matmul(4096, 320, 320, None, true),
        matmul(4096, 2560, 320, Geglu, false),
        matmul(4096, 320, 1280, None, true),
        matmul(1024, 640, 640, None, true),
        matmul(1024, 5120, 640, Geglu, false),
        matmul(1024, 640, 2560, None, true),
        matmul(256, 1280, 1280, None, true),
        matmul(256, 10240, 1280, Geglu, false),
        matmul(256, 1280, 5120, None, true),
        matmul(64, 1280, 1280, None, true),
        matmul(77, 1024, 1024, None, true),
        matmul(154, 4096, 1024, Activation::Gelu, false),
        matmul(1, 1280, 320, Silu, false),
        matmul(1, 20160, 1280, None, false),
        matmul(32, 20160, 1280, None, false),
        stored(F32, F16, matmul(1024, 640, 640, None, true)),
        stored(F16, F16, matmul(1024, 640, 640, None, true)),
        stored(F32, F16, matmul(64, 1280, 1280, None, true)),
    ];
    list.extend([
        conv(320, 320, 64),
        conv(640, 640, 32),
        conv(1280, 1280, 16),
        conv(1280, 1280, 8),
        two_sources([1280, 1280], 1280, 8),
        two_sources([320, 320], 320, 64),
        upsampled(1280, 1280, 8),
        conv(4, 320, 64),
        conv(320, 4, 64),
        conv(512, 512, 64),
        upsampled(512, 512, 64),
        conv(128, 128, 512),
        conv(128, 3, 512),
        stored(F32, F16, conv(320, 320, 64)),
        stored(F16, F16, conv(320, 320, 64)),
        stored(F32, F16, conv(1280, 1280, 8)),
    ]);
    let halves = [
        matmul(4096, 320, 320, None, true),
        matmul(4096, 320, 1280, None, true),
        matmul(4096, 2560, 320, Geglu, false),
        matmul(1024, 1920, 640, None, false),
        matmul(256, 1280, 1280, None, true),
        matmul(256, 10240, 1280, Geglu, false),
        matmul(256, 1280, 5120, None, true),
        matmul(4096, 4096, 4096, None, false),
        conv(640, 640, 32),
        conv(1280, 1280, 16),
        conv(1280, 1280, 8),
        conv(512, 512, 64),
        conv(128, 128, 512),
    ];
    list.extend(halves.map(|shape| stored(F16, F16, shape)));
    list.extend(int8(|| matmul(4096, 320, 320, None, true)));
    list.extend(int8(|| matmul(1024, 640, 640, None, true)));
    list.extend(int8(|| matmul(256, 10240, 1280, Geglu, false)));
    list.extend(int8(|| matmul(64, 1280, 1280, None, true)));
    list.extend(int8(|| matmul(1, 20160, 1280, None, false)));
    list.extend(int8(|| conv(320, 320, 64)));
    list.extend(int8(|| conv(1280, 1280, 16)));
    list.extend(int8(|| conv(1280, 1280, 8)));
    list.extend(int8(|| conv(128, 128, 512)));
    list
}

/// Nanoseconds that the threads of this process have run.
fn processor_ns() -> u64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let ran = |t: std::fs::DirEntry| {
        let text = std::fs::read_to_string(t.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(ran).sum()
}

/// Twenty-four independent chains of vector FMAs, and nothing else.
fn peak_kernel() -> Launch {
    let chains = |f: &dyn Fn(usize) -> String| (0..24).map(f).collect::<String>();
    let source = format!(
        "__kernel void peak(__global float *out) {{\n\
         const float16 a = (float16)(get_global_id(0) * 1e-9f + 0.999f);\n{}\
         for (int i = 0; i < 20000; i++) {{ {} }}\n\
         const float16 s = {};\n\
         out[get_global_id(0) % 16] = s.s0 + s.s7 + s.sf;\n}}",
        chains(&|i| format!("float16 c{i} = a + {i};\n")),
        chains(&|i| format!("c{i} = fma(c{i}, a, a); ")),
        (0..24).map(|i| format!("c{i}")).collect::<Vec<_>>().join(" + "),
    );
    let groups = 256;
    Launch {
        source: source.into(),
        entry: "peak",
        args: vec![Argument::Output],
        global: [groups, 1, 1],
        local: Some([1, 1, 1]),
        local_mem_bytes: 0,
        flops: groups * 20_000 * 24 * 32,
        half_arithmetic: false,
        bytes: None,
    }
}

struct Timing {
    median_s: f64,
    best_s: f64,
    best_processor_s: f64,
}

fn time(
    runner: &Runner,
    problem: &Problem,
    lowering: &Lowering,
    values: &[Vec<f32>],
    repeats: usize,
) -> Timing {
    let prepared = runner.prepare(problem, lowering, values);
    runner.run(&prepared);
    let flops: u64 = lowering.launches.iter().map(|l| l.flops).sum();
    // Short launches are queued together, so that waking threads does not count.
    let inner = (4_000_000_000 / flops.max(1)).clamp(1, 50) as usize;
    let mut seconds = vec![];
    let mut processor = vec![];
    for _ in 0..repeats {
        let start = processor_ns();
        seconds.push(runner.run_repeatedly(&prepared, inner) / inner as f64);
        processor.push((processor_ns() - start) as f64 * 1e-9 / inner as f64);
    }
    seconds.sort_by(f64::total_cmp);
    processor.sort_by(f64::total_cmp);
    Timing { median_s: seconds[repeats / 2], best_s: seconds[0], best_processor_s: processor[0] }
}

/// What each rate is compared with.
struct Peak {
    rate: f64,
    processor_rate: f64,
    units: f64,
}

fn measure_peak(runner: &Runner, target: &Target, repeats: usize) -> Peak {
    let output = TensorType::f32(&[16]);
    let any = matmul(1, 1, 1, Activation::None, false).op;
    let empty = Problem {
        op: &any,
        inputs: &[],
        output: &output,
        max_weight_bytes: 0,
        max_scratch_bytes: u64::MAX,
    };
    let peak = Lowering { launches: vec![peak_kernel()], ..Lowering::default() };
    let flops = peak.launches[0].flops as f64 * 1e-9;
    let t = time(runner, &empty, &peak, &[], repeats.max(5));
    let units = target.compute_units as f64;
    Peak { rate: flops / t.best_s, processor_rate: flops / t.best_processor_s * units, units }
}

impl Shape {
    fn name(&self) -> String {
        let Self { op, sources, weights, activations, dtype, block } = self;
        let block = if *block == 0 { String::new() } else { format!("/{block}") };
        let text = format!("{} {sources:?}x{weights:?} {activations} {dtype}{block} ", op.name());
        text.replace(", ", ",") + op.attributes().trim()
    }

    fn inputs(&self) -> Vec<Operand> {
        let activation = |s: &[usize]| Operand::new(TensorType::new(self.activations, s));
        let constant = |s: &[usize]| match (self.dtype, s.len()) {
            (DType::I8, 1) => Operand::constant(TensorType::f32(s)),
            (dtype, _) => {
                let block = self.block.min(s[1..].iter().product());
                Operand { block, ..Operand::constant(TensorType::new(dtype, s)) }
            }
        };
        let mut inputs: Vec<_> = self.sources.iter().map(|s| activation(s)).collect();
        inputs.push(constant(&self.weights));
        inputs.push(constant(&self.weights[..1]));
        if matches!(&self.op, Op::Matmul(op) if op.epilogue.residual) {
            inputs.push(activation(&[self.sources[0][0], self.weights[0]]));
        }
        inputs
    }
}

fn measure(runner: &Runner, target: &Target, shape: &Shape, peak: &Peak, repeats: usize) {
    let inputs = shape.inputs();
    let types: Vec<_> = inputs.iter().map(|i| &i.ty).collect();
    let output = shape.op.infer(&types).expect("the shapes fit");
    let flops = shape.op.flops(&types, &output) as f64 * 1e-9;
    let problem = Problem {
        op: &shape.op,
        inputs: &inputs,
        output: &output,
        max_weight_bytes: u64::MAX,
        max_scratch_bytes: u64::MAX,
    };
    let fill = |(i, t): (usize, &&TensorType)| random(i as u64 + 1, t.elem_count());
    let values: Vec<_> = types.iter().enumerate().map(fill).collect();
    let wanted = std::env::var("KILN_VARIANT").ok();
    let list = candidates(&problem, target);
    let chosen = list.iter().find(|v| wanted.as_ref().is_none_or(|w| w == v.name));
    let Some(variant) = chosen else { return };
    let lowering = (variant.lower)(&problem, target).expect("it applies");
    let t = time(runner, &problem, &lowering, &values, repeats);
    let (best, processor) = (flops / t.best_s, flops / t.best_processor_s * peak.units);
    println!(
        "{:9.3} {:8.1} {:8.1} {:5.1} {:8.1} {:5.1}  {}",
        t.median_s * 1e3,
        flops / t.median_s,
        best,
        best / peak.rate * 100.0,
        processor,
        processor / peak.processor_rate * 100.0,
        shape.name()
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let filter = args.next().unwrap_or_default();
    let repeats: usize = args.next().map_or(7, |r| r.parse().expect("repeats is a number"));
    let gpu = std::env::var("KILN_GPU").is_ok();
    let nvidia = Runner::shared().vendor().contains("NVIDIA");
    let target = match (gpu, nvidia) {
        (true, true) => Target::nvidia(),
        (true, false) => Target::gpu(),
        _ => Target::cpu(),
    };
    let runner = Runner::shared();
    let peak = measure_peak(runner, &target, repeats);
    println!("FMA peak: {:.0} GFLOP/s, cpu {:.0}", peak.rate, peak.processor_rate);
    println!("median ms  GFLOP/s     best     %      cpu     %");
    for shape in shapes().iter().filter(|s| s.name().contains(&filter)) {
        measure(runner, &target, shape, &peak, repeats);
    }
}
