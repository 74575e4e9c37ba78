//! The kernels of sd21-base for Mali, at their full sizes, on the OpenCL device at hand.
//!
//! Every distinct kernel of contractions, attention, norms and pointwise ops of the plan for
//! `mali-g78` with FP16 storage is compiled. Of those that take long, only a few tiles are run:
//! contractions in three places (the first rows, some in the middle, the last) over all columns,
//! attention for the first queries of every head. What is run is compared with the op's reference
//! in `f64` for the same rows. Values that no work-item has written are NaN. Half arithmetic is the
//! device's own where it has it, otherwise emulated; contractions are also run without it.
//!
//! Every sixth problem, and one of each variant, unless told otherwise:
//! ```sh
//! KILN_EVERY=1 cargo test --release -p kiln --test mali -- --nocapture
//! ```

mod harness;

use kiln_compiler::device::DeviceProfile;
use kiln_compiler::plan::lower::{LoweringCache, Work, lower_model};
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::strategy::{ReadPrice, strategies};
use kiln_ir::ops::attention::Attention;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, Tensor, TensorType};
use kiln_kernels::contraction::mobile::mean_error;
use kiln_kernels::{Lowering, Operand, Packing};
use kiln_runtime::device;
use kiln_runtime::probe::{Argument, Launch, Probe};
use kiln_testkit::half::Way;
use kiln_testkit::{decode, stored};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Arithmetic up to which an op is run whole.
const WHOLE_FLOPS: u64 = 200_000_000;

/// What memory holds before a kernel writes it: NaN in every storage type.
const UNWRITTEN: u8 = 0xff;

/// Bytes behind an output that no kernel may change.
const GUARD_BYTES: usize = 256;

/// An op of the plan with its types and launches.
struct Problem {
    op: Op,
    inputs: Vec<Operand>,
    output: TensorType,
    variant: &'static str,
    lowering: Lowering,
}

impl Problem {
    fn types(&self) -> Vec<&TensorType> {
        self.inputs.iter().map(|input| &input.ty).collect()
    }

    fn name(&self) -> String {
        let types: Vec<String> = self.types().iter().map(|ty| ty.to_string()).collect();
        let (op, variant) = (self.op.name(), self.variant);
        format!("{op}/{variant} {} of {}", self.op.attributes(), types.join(" x "))
    }

    fn is_in_halves(&self) -> bool {
        self.lowering.launches.iter().any(|launch| launch.half_arithmetic)
    }

    fn is_large(&self) -> bool {
        self.op.flops(&self.types(), &self.output) > WHOLE_FLOPS
    }
}

/// The distinct problems of sd21-base for Mali, in a fixed order, and how many products are added as
/// halves.
fn problems(half_arithmetic: bool) -> (Vec<Problem>, u32) {
    let model = kiln_models::find("sd21-base").expect("it is known");
    let (_, mut profile) = DeviceProfile::load("mali-g78").expect("it ships");
    // Whole launches, of which this test chooses its own parts.
    profile.rates.max_dispatch_ms = 0;
    if !half_arithmetic {
        profile.target.half_run = 0;
    }
    let request = PlanRequest {
        profile: &profile,
        storage: Storage::FP16,
        budget_bytes: u64::MAX,
        guidance_batch: Some(1),
    };
    let strategies = strategies(&profile, DType::F16, request.guidance_batch);
    let strategy = strategies.iter().find(|s| s.read_price == ReadPrice::FULL);
    let cache = &mut LoweringCache::default();
    let networks = lower_model(&model, *strategy.expect("it is tried"), &request, cache);
    let mut problems = BTreeMap::new();
    for network in networks.expect("every op has a kernel") {
        for op in network.ops {
            let Work::Kernels { variant, lowering, .. } = op.work else { continue };
            let node = network.source.graph.node(op.id);
            let problem = Problem {
                op: node.op().expect("it was lowered").clone(),
                inputs: op.inputs,
                output: node.ty.clone(),
                variant,
                lowering,
            };
            problems.entry(problem.name()).or_insert(problem);
        }
    }
    // Problems that differ in scalar arguments alone have the same kernels.
    let mut kernels = HashSet::new();
    let mut is_new = |problem: &Problem| {
        let launches = problem.lowering.launches.iter();
        kernels.insert(launches.map(|l| (l.source.clone(), l.global)).collect::<Vec<_>>())
    };
    let distinct = problems.into_values().filter(|problem| is_new(problem)).collect();
    (distinct, profile.target.half_run)
}

/// Values spread evenly over `[-spread, spread)`, rounded to the storage type.
fn random(seed: u64, ty: &TensorType, spread: f32) -> Vec<f32> {
    let values = kiln_testkit::random(seed, ty.elem_count()).into_iter();
    stored(ty.dtype, &values.map(|v| v * spread).collect::<Vec<_>>())
}

/// Inputs on which sums are about 1.
fn inputs(problem: &Problem) -> Vec<Tensor> {
    let weights = problem.op.contraction().map(|operands| operands.weights);
    let tensor = |(index, input): (usize, &Operand)| {
        let fan_in: usize = input.ty.shape[1..].iter().product();
        let spread = if weights == Some(index) { 2.0 / (fan_in as f32).sqrt() } else { 1.0 };
        Tensor::new(&input.ty.shape, random(index as u64 + 1, &input.ty, spread))
    };
    problem.inputs.iter().enumerate().map(tensor).collect()
}

/// Allowed difference, absolute and as a part of the reference, of arithmetic in FP32, but for runs of
/// halves.
fn tolerance(problem: &Problem, half_run: u32) -> (f32, f32) {
    match &problem.op {
        Op::Matmul(_) | Op::Conv2d(_) => {
            let weights = problem.inputs.iter().find(|input| input.constant).expect("weights");
            let k: usize = weights.ty.shape[1..].iter().product();
            // Roundings of a sum of k terms grow with the root of k.
            let abs = (16.0 + 2.0 * (k as f32).sqrt()) * f32::EPSILON;
            // The normalized copy is stored in halves: as in the tests of the variants.
            let copied = 6.0 * 1.2 * 2f32.powi(-11) / 3f32.sqrt();
            let normalized = matches!(&problem.op, Op::Conv2d(op) if op.prologue.is_some());
            // Six standard deviations; a sum is 2 / 3 in the mean, of what was normalized 1.2 times that.
            let halved =
                if problem.is_in_halves() { 6.0 * 0.8 * mean_error(half_run) } else { 0.0 };
            let abs = if normalized { 2.0 * abs + copied } else { abs };
            (abs + halved, 16.0 * f32::EPSILON)
        }
        // As in the tests of the variants.
        Op::Attention(_) => (4e-6, 4e-6),
        Op::GroupNorm(_) | Op::LayerNorm(_) => (3e-6, 3e-6),
        _ => (6e-6, 6e-7),
    }
}

/// The rows of an output that are run, and what its launches become.
struct Sample {
    rows: Vec<usize>,
    /// Each place of a launch: first work-item and work-items.
    places: Vec<([u64; 3], [u64; 3])>,
}

/// The launch that normalizes what a convolution reads; always run whole.
const NORMALIZE: &str = "conv2d_stripe";

/// Contractions: three tiles of rows (global 1) over all panels of columns (global 0).
fn sample_contraction(problem: &Problem) -> Sample {
    let launches = &problem.lowering.launches;
    let global = launches.iter().find(|l| l.entry != NORMALIZE).expect("it multiplies").global;
    let tiles = global[1] as usize;
    let rows = problem.output.rows();
    let tile_rows = rows.div_ceil(tiles);
    let chosen = [0, tiles / 2 + 1, tiles - 1];
    Sample {
        rows: chosen.iter().flat_map(|t| t * tile_rows..((t + 1) * tile_rows).min(rows)).collect(),
        places: chosen.iter().map(|&t| ([0, t as u64, 0], [0, 1, 1])).collect(),
    }
}

/// Attention: the first work-group of every head of the first batch row.
fn sample_attention(problem: &Problem) -> Sample {
    let launch = &problem.lowering.launches[0];
    let group = launch.local.expect("it is cut into groups")[0];
    let queries = (problem.output.rows() as u64).div_ceil(launch.global[0] / group);
    Sample { rows: (0..queries as usize).collect(), places: vec![([0; 3], [group, 0, 1])] }
}

/// The launches that compute a sample; extents of 0 stay whole.
fn launches(
    problem: &Problem,
    way: Way,
    args: Vec<Vec<Argument>>,
    sample: Option<&Sample>,
) -> Vec<Launch> {
    let whole = vec![([0; 3], [0; 3])];
    let places = sample.map_or(&whole, |sample| &sample.places);
    let mut launches = vec![];
    for (launch, args) in problem.lowering.launches.iter().zip(args) {
        let places = if launch.entry == NORMALIZE { &whole } else { places };
        for (first, items) in places {
            let extent = |axis: usize| match items[axis] {
                0 => launch.global[axis],
                items => items,
            };
            launches.push(Launch {
                source: way.source(&launch.source),
                entry: launch.entry.to_string(),
                args: args.clone(),
                first: *first,
                global: [extent(0), extent(1), extent(2)],
                local: launch.local,
            });
        }
    }
    launches
}

/// Where kernels are run, and how those with half arithmetic are built there.
struct Device {
    probe: Probe,
    way: Way,
    name: String,
}

impl Device {
    fn open() -> Self {
        let device = device::select("auto").expect("an OpenCL device");
        let probe = Probe::open(&device).expect("it opens");
        let way = harness::half_way(&probe);
        Device { probe, way, name: device.name }
    }
}

/// Runs the launches; the output as `f32`.
fn run(device: &Device, problem: &Problem, inputs: &[Tensor], sample: Option<&Sample>) -> Vec<f32> {
    let packed: Vec<Vec<u8>> = (problem.inputs.iter().zip(inputs).enumerate())
        .map(|(index, (input, tensor))| {
            let packing = problem.lowering.packings.iter().find(|(i, _)| *i == index);
            let packing = packing.map_or(Packing::RowMajor(input.ty.dtype), |(_, p)| *p);
            packing.pack(&input.ty.shape, &tensor.data)
        })
        .collect();
    let len = problem.output.size_bytes() as usize;
    let mut buffers = vec![vec![UNWRITTEN; len + GUARD_BYTES]];
    buffers.extend(problem.lowering.scratch_bytes.iter().map(|n| vec![UNWRITTEN; *n as usize]));
    let mut regions: BTreeMap<(usize, u64, u64), usize> = BTreeMap::new();
    let mut argument = |argument: &kiln_kernels::Argument| match *argument {
        kiln_kernels::Argument::Output => Argument::Buffer(0),
        kiln_kernels::Argument::Scratch { index, .. } => Argument::Buffer(1 + index),
        kiln_kernels::Argument::U32(value) => Argument::U32(value),
        kiln_kernels::Argument::F32(value) => Argument::F32(value),
        kiln_kernels::Argument::Late(slot) => panic!("not told {slot:?}"),
        kiln_kernels::Argument::Input { index, offset_bytes, len_bytes } => {
            let region = regions.entry((index, offset_bytes, len_bytes)).or_insert_with(|| {
                let start = offset_bytes as usize;
                buffers.push(packed[index][start..start + len_bytes as usize].to_vec());
                buffers.len() - 1
            });
            Argument::Buffer(*region)
        }
    };
    let args = problem.lowering.launches.iter();
    let args = args.map(|launch| launch.args.iter().map(&mut argument).collect()).collect();
    let launches = launches(problem, device.way, args, sample);
    device.probe.run(&launches, &mut buffers).unwrap_or_else(|e| panic!("{}: {e}", problem.name()));
    let (bytes, guard) = buffers[0].split_at(len);
    assert!(guard.iter().all(|b| *b == UNWRITTEN), "{} writes behind", problem.name());
    decode(problem.output.dtype, bytes)
}

/// Some rows of a tensor seen as a matrix.
fn rows_of(tensor: &Tensor, rows: &[usize], columns: Range<usize>) -> Tensor {
    let data = rows.iter().flat_map(|&r| &tensor.row(r)[columns.clone()]).copied().collect();
    Tensor::new(&[rows.len(), columns.len()], data)
}

/// The reference for some rows of an output.
fn expected(op: &Op, inputs: &[Tensor], output: &TensorType, rows: &[usize]) -> Vec<f32> {
    match op {
        Op::Matmul(op) => {
            let sources: Vec<Tensor> = inputs[..op.sources]
                .iter()
                .map(|source| rows_of(source, rows, 0..source.channels()))
                .collect();
            contraction(op.clone(), sources, inputs, rows)
        }
        Op::Conv2d(op) => {
            let [_, out_h, out_w, _] = output.nhwc().expect("a picture");
            let mut inputs = inputs.to_vec();
            if let Some(activation) = op.prologue {
                let affine = inputs.remove(op.sources);
                normalize(&mut inputs[..op.sources], &affine, activation == Activation::Silu);
            }
            let windows = windows(op, &inputs[..op.sources], out_h, out_w, rows);
            let weights = inputs[op.sources].clone();
            let [n, c, kh, kw] = weights.shape[..] else { panic!("filters have four extents") };
            // [n][c][tap] becomes [n][tap][c].
            let order = (0..n * c * kh * kw).map(|i| {
                let (filter, at) = (i / (c * kh * kw), i % (c * kh * kw));
                weights.data[filter * c * kh * kw + at % c * (kh * kw) + at / c]
            });
            inputs.drain(1..op.sources);
            inputs[1] = Tensor::new(&[n, c * kh * kw], order.collect());
            let matmul = Matmul { sources: 1, epilogue: op.epilogue.clone() };
            contraction(matmul, vec![windows], &inputs, rows)
        }
        Op::Attention(op) => {
            assert!(!op.causal, "causal attention is small");
            let keys: Vec<usize> =
                (0..inputs[op.k.input].rows() / batch(&inputs[op.k.input])).collect();
            let part = |c: kiln_ir::ops::attention::Columns, rows: &[usize]| {
                let part = rows_of(&inputs[c.input], rows, c.start..c.start + op.channels);
                Tensor::new(&[1, rows.len(), op.channels], part.data)
            };
            let (q, k, v) = (part(op.q, rows), part(op.k, &keys), part(op.v, &keys));
            Op::from(Attention::separate(op.channels, op.heads, false)).eval(&[&q, &k, &v]).data
        }
        _ => unreachable!("other ops are run whole"),
    }
}

/// `activation(x * scale + shift)` of every element; `affine` is `[picture][2][channel of all]`.
fn normalize(sources: &mut [Tensor], affine: &Tensor, silu: bool) {
    let channels: usize = sources.iter().map(Tensor::channels).sum();
    let mut base = 0;
    for source in sources {
        let (own, pixels) = (source.channels(), source.rows() / source.shape[0]);
        for (i, x) in source.data.iter_mut().enumerate() {
            let at = i / own / pixels * 2 * channels + base + i % own;
            let y = *x * affine.data[at] + affine.data[at + channels];
            *x = if silu { y / (1.0 + (-y).exp()) } else { y };
        }
        base += own;
    }
}

fn batch(tensor: &Tensor) -> usize {
    if tensor.shape.len() > 1 { tensor.shape[0] } else { 1 }
}

/// The pixels under the filter for some output pixels, [row][ky][kx][channel of all sources].
fn windows(op: &Conv2d, sources: &[Tensor], out_h: usize, out_w: usize, rows: &[usize]) -> Tensor {
    let (h, w) = (sources[0].shape[1], sources[0].shape[2]);
    let (window_h, window_w) = op.window_extent(h, w);
    let factor = window_h / h;
    let channels: usize = sources.iter().map(Tensor::channels).sum();
    let taps = op.kernel * op.kernel;
    let mut data = Vec::with_capacity(rows.len() * taps * channels);
    for row in rows {
        let (b, oy, ox) = (row / (out_h * out_w), row / out_w % out_h, row % out_w);
        for tap in 0..taps {
            let y = (oy * op.stride + tap / op.kernel).checked_sub(op.padding);
            let x = (ox * op.stride + tap % op.kernel).checked_sub(op.padding);
            match (y.filter(|y| *y < window_h), x.filter(|x| *x < window_w)) {
                (Some(y), Some(x)) => {
                    let pixel = (b * h + y / factor) * w + x / factor;
                    sources.iter().for_each(|source| data.extend(source.row(pixel)));
                }
                _ => data.resize(data.len() + channels, 0.0),
            }
        }
    }
    Tensor::new(&[rows.len(), taps * channels], data)
}

/// Evaluates a contraction of given rows of A, with the epilogue's inputs cut to the same.
fn contraction(op: Matmul, sources: Vec<Tensor>, inputs: &[Tensor], rows: &[usize]) -> Vec<f32> {
    let mut all = sources;
    all.extend(inputs[op.sources..].iter().cloned());
    if op.epilogue.residual {
        let residual = all.pop().expect("it has a residual");
        all.push(rows_of(&residual, rows, 0..residual.channels()));
    }
    Op::from(op).eval(&all.iter().collect::<Vec<_>>()).data
}

/// Compiles, runs and compares one problem.
fn check(device: &Device, problem: &Problem, half_run: u32) {
    let inputs = inputs(problem);
    let sample = match problem.op {
        Op::Matmul(_) | Op::Conv2d(_) if problem.is_large() => Some(sample_contraction(problem)),
        Op::Attention(_) if problem.is_large() => Some(sample_attention(problem)),
        _ => None,
    };
    let found = run(device, problem, &inputs, sample.as_ref());
    let (found, expected) = match &sample {
        Some(Sample { rows, .. }) => {
            let width = problem.output.channels();
            let found = rows.iter().flat_map(|r| &found[r * width..(r + 1) * width]);
            let found = found.copied().collect();
            (found, expected(&problem.op, &inputs, &problem.output, rows))
        }
        None => (found, problem.op.eval(&inputs.iter().collect::<Vec<_>>()).data),
    };
    assert_eq!(found.len(), expected.len(), "{}", problem.name());
    let (abs, rel) = tolerance(problem, half_run);
    // Half a unit in the last place of a 16-bit output.
    let half = if problem.output.dtype == DType::F16 { (3e-8, 4.9e-4) } else { (0.0, 0.0) };
    let wrong = found.iter().zip(&expected).filter(|(found, expected)| {
        let allowed = abs + half.0 + (rel + half.1) * expected.abs();
        let error = (*found - *expected).abs();
        error.is_nan() || error > allowed
    });
    let worst: Vec<_> = wrong.clone().take(3).collect();
    let (wrong, all) = (wrong.count(), found.len());
    assert!(wrong == 0, "{}: {wrong} of {all} elements are wrong: {worst:?}", problem.name());
}

/// Compiles, runs and compares one in `KILN_EVERY` of these, and one of each variant.
fn check_some(problems: &[Problem], half_run: u32) {
    let every = std::env::var("KILN_EVERY").map_or(6, |n| n.parse().expect("KILN_EVERY=N"));
    let mut seen = HashSet::new();
    let chosen: Vec<&Problem> = (problems.iter().enumerate())
        .filter(|(index, p)| seen.insert((p.op.name(), p.variant)) || index % every == 0)
        .map(|(_, problem)| problem)
        .collect();
    let device = Device::open();
    for problem in &chosen {
        let start = std::time::Instant::now();
        check(&device, problem, half_run);
        println!("{:6.2} s  {}", start.elapsed().as_secs_f64(), problem.name());
    }
    println!("{} of {} problems agree on {}", chosen.len(), problems.len(), device.name);
}

#[test]
fn kernels_of_sd21_base_are_right_on_this_device() {
    let (problems, half_run) = problems(true);
    let in_halves = problems.iter().filter(|problem| problem.is_in_halves()).count();
    println!("{in_halves} of {} problems in runs of {half_run} halves", problems.len());
    assert!(in_halves > 60, "{in_halves}");
    check_some(&problems, half_run);
}

#[test]
fn contractions_of_sd21_base_without_half_arithmetic_are_right_on_this_device() {
    let (mut problems, half_run) = problems(false);
    problems.retain(|problem| matches!(problem.op, Op::Matmul(_) | Op::Conv2d(_)));
    assert!(problems.len() > 60 && !problems.iter().any(Problem::is_in_halves));
    check_some(&problems, half_run);
}
