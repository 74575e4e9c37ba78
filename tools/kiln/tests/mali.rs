//! The kernels of sd21-base for Mali, at their full sizes, on the OpenCL device at hand.
//!
//! Compiles every distinct kernel of contractions, attention, norms and pointwise ops in the plan
//! for `mali-g78` with FP16 storage. Of long kernels, only a few tiles run: contractions at three
//! positions (the first rows, some in the middle, the last) over all columns, attention for the
//! first queries of every head. The results are compared with the op's reference in `f64` for the
//! same rows. Values that no work-item has written are NaN. Half arithmetic runs on the device if
//! it has half arithmetic, otherwise it is emulated. Contractions also run without it.
//!
//! By default, every sixth problem and one of each variant:
//! ```sh
//! KILN_EVERY=1 cargo test --release -p kiln --test mali -- --nocapture
//! ```

use anyhow::Result;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::model::GUIDANCE_BRANCHES;
use kiln_compiler::plan::lower::{LoweringCache, Work, lower_model};
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::strategy::{ReadPrice, strategies};
use kiln_ir::ops::attention::Attention;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, Tensor, TensorType};
use kiln_kernels::{Lowering, Operand, Problem, Target};
use kiln_runtime::probe::Part;
use kiln_testkit::{Runner, Tolerance, assert_close, random_stored, reference};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Largest arithmetic, in FLOP, of an op that runs as a whole.
const WHOLE_FLOPS: u64 = 200_000_000;

/// An op of the plan with its types and launches.
struct PlannedOp {
    op: Op,
    inputs: Vec<Operand>,
    output: TensorType,
    variant: &'static str,
    lowering: Lowering,
}

impl PlannedOp {
    fn problem(&self) -> Problem<'_> {
        Problem::unlimited(&self.op, &self.inputs, &self.output)
    }

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

/// The distinct ops of sd21-base for Mali, in a fixed order, and their target.
fn planned_ops(half_arithmetic: bool) -> (Vec<PlannedOp>, Target) {
    let model = kiln_models::find("sd21-base").expect("it is known");
    let (_, mut profile) = DeviceProfile::load("mali-g78").expect("it ships");
    // Launches stay whole. The test chooses its own parts.
    profile.rates.max_dispatch_ms = 0;
    if !half_arithmetic {
        profile.target.half_run = 0;
    }
    let request = PlanRequest {
        guidance_batch: Some(1),
        ..PlanRequest::new(&profile, Storage::FP16, u64::MAX)
    };
    let strategies = strategies(&profile, DType::F16, GUIDANCE_BRANCHES, request.guidance_batch);
    let strategy = strategies.iter().find(|s| s.read_price == ReadPrice::FULL);
    let cache = &mut LoweringCache::default();
    let networks = lower_model(&model, *strategy.expect("it is tried"), &request, cache);
    let mut ops = BTreeMap::new();
    for network in networks.expect("every op has a kernel") {
        for op in network.ops {
            let Work::Kernels { variant, lowering, .. } = op.work else { continue };
            let node = network.source.graph.node(op.id);
            let op = PlannedOp {
                op: node.op().expect("it was lowered").clone(),
                inputs: op.inputs,
                output: node.ty.clone(),
                variant,
                lowering,
            };
            ops.entry(op.name()).or_insert(op);
        }
    }
    // Ops that differ only in scalar arguments have the same kernels.
    let mut kernels = HashSet::new();
    let mut is_new = |op: &PlannedOp| {
        let launches = op.lowering.launches.iter();
        kernels.insert(launches.map(|l| (l.source.clone(), l.global)).collect::<Vec<_>>())
    };
    let distinct = ops.into_values().filter(|op| is_new(op)).collect();
    (distinct, profile.target)
}

/// Inputs for which sums are about 1.
fn inputs(op: &PlannedOp) -> Vec<Vec<f32>> {
    let weights = op.op.contraction().map(|operands| operands.weights);
    let values = |(index, input): (usize, &Operand)| {
        let fan_in: usize = input.ty.shape[1..].iter().product();
        let spread = if weights == Some(index) { 2.0 / (fan_in as f32).sqrt() } else { 1.0 };
        random_stored(index as u64 + 1, &input.ty, spread)
    };
    op.inputs.iter().enumerate().map(values).collect()
}

fn tolerance(op: &PlannedOp, target: &Target) -> Tolerance {
    let normalized = matches!(&op.op, Op::Conv2d(op) if op.prologue.is_some());
    // Multiplied values are up to 1, or 1 * 1 + 1 if normalized.
    let largest = if normalized { 2.0 } else { 1.0 };
    let of_sums = match &op.op {
        Op::Matmul(_) | Op::Conv2d(_) => {
            let weights = &op.inputs[op.op.weights()[0]].ty;
            Tolerance::contraction(weights.shape[1..].iter().product(), largest)
        }
        Op::Attention(_) => Tolerance::ATTENTION,
        Op::GroupNorm(_) | Op::LayerNorm(_) => Tolerance::GROUP_NORM,
        _ => Tolerance::GEGLU,
    };
    let family = kiln_kernels::family(op.op.name()).expect("it was lowered");
    let variant = family.variant(op.variant).expect("it was lowered by it");
    of_sums.rounded((variant.rounding)(&op.problem(), target, largest)).stored_as(op.output.dtype)
}

/// The rows of an output to run, and the parts of each launch that compute them.
struct Sample {
    rows: Vec<usize>,
    /// An extent of 0 stays whole.
    parts: Vec<Part>,
}

/// The launch that normalizes a convolution's source. It always runs as a whole.
const NORMALIZE: &str = "conv2d_stripe";

/// Contractions: three tiles of rows (axis 1 of the global size) over all panels of columns (axis
/// 0).
fn sample_contraction(problem: &PlannedOp) -> Sample {
    let launches = &problem.lowering.launches;
    let global = launches.iter().find(|l| l.entry != NORMALIZE).expect("it multiplies").global;
    let tiles = global[1] as usize;
    let rows = problem.output.rows();
    let tile_rows = rows.div_ceil(tiles);
    let chosen = [0, tiles / 2 + 1, tiles - 1];
    Sample {
        rows: chosen.iter().flat_map(|t| t * tile_rows..((t + 1) * tile_rows).min(rows)).collect(),
        parts: chosen
            .iter()
            .map(|&t| Part { first: [0, t as u64, 0], global: [0, 1, 1] })
            .collect(),
    }
}

/// Attention: the first work-group of every head of the first batch row.
fn sample_attention(problem: &PlannedOp) -> Sample {
    let launch = &problem.lowering.launches[0];
    let group = launch.local.expect("it is cut into groups")[0];
    let queries = (problem.output.rows() as u64).div_ceil(launch.global[0] / group);
    let parts = vec![Part { first: [0; 3], global: [group, 0, 1] }];
    Sample { rows: (0..queries as usize).collect(), parts }
}

/// Runs an op, or a sample of it. Returns its output.
fn run(op: &PlannedOp, values: &[Vec<f32>], sample: Option<&Sample>) -> Result<Vec<f32>> {
    let loaded = Runner::shared().load(&op.problem(), &op.lowering, values);
    let Some(sample) = sample else { return loaded.result() };
    for (index, launch) in op.lowering.launches.iter().enumerate() {
        if launch.entry == NORMALIZE {
            loaded.run_part(index, Part { first: [0; 3], global: launch.global })?;
            continue;
        }
        for part in &sample.parts {
            let extent = |axis: usize| match part.global[axis] {
                0 => launch.global[axis],
                items => items,
            };
            let global = [extent(0), extent(1), extent(2)];
            loaded.run_part(index, Part { first: part.first, global })?;
        }
    }
    loaded.output()
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

/// Applies `activation(x * scale + shift)` to every element. `affine` is `[batch][2][channel of all
/// sources]`.
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

/// The pixels under the filter for some output pixels: `[row][ky][kx][channel of all sources]`.
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

/// Evaluates a contraction of given rows of A. The epilogue's inputs are cut to the same rows.
fn contraction(op: Matmul, sources: Vec<Tensor>, inputs: &[Tensor], rows: &[usize]) -> Vec<f32> {
    let mut all = sources;
    all.extend(inputs[op.sources..].iter().cloned());
    if op.epilogue.residual {
        let residual = all.pop().expect("it has a residual");
        all.push(rows_of(&residual, rows, 0..residual.channels()));
    }
    Op::from(op).eval(&all.iter().collect::<Vec<_>>()).data
}

/// Compiles, runs and compares one op.
fn check(op: &PlannedOp, target: &Target) {
    let values = inputs(op);
    let sample = match op.op {
        Op::Matmul(_) | Op::Conv2d(_) if op.is_large() => Some(sample_contraction(op)),
        Op::Attention(_) if op.is_large() => Some(sample_attention(op)),
        _ => None,
    };
    let name = op.name();
    let found = run(op, &values, sample.as_ref()).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    let (found, expected) = match &sample {
        Some(Sample { rows, .. }) => {
            let width = op.output.channels();
            let found = rows.iter().flat_map(|r| &found[r * width..(r + 1) * width]);
            let tensor = |(input, data): (&Operand, _)| Tensor::new(&input.ty.shape, data);
            let tensors: Vec<_> = op.inputs.iter().zip(values).map(tensor).collect();
            (found.copied().collect(), expected(&op.op, &tensors, &op.output, rows))
        }
        None => (found, reference(&op.problem(), &values)),
    };
    assert_close(&found, &expected, tolerance(op, target), &name);
}

/// Compiles, runs and compares one in `KILN_EVERY` ops, and one of each variant.
fn check_some(ops: &[PlannedOp], target: &Target) {
    let every = std::env::var("KILN_EVERY").map_or(6, |n| n.parse().expect("KILN_EVERY=N"));
    let mut seen = HashSet::new();
    let chosen: Vec<&PlannedOp> = (ops.iter().enumerate())
        .filter(|(index, op)| seen.insert((op.op.name(), op.variant)) || index % every == 0)
        .map(|(_, op)| op)
        .collect();
    for op in &chosen {
        let start = std::time::Instant::now();
        check(op, target);
        println!("{:6.2} s  {}", start.elapsed().as_secs_f64(), op.name());
    }
    println!("{} of {} ops agree on {}", chosen.len(), ops.len(), Runner::shared().name());
}

#[test]
fn kernels_of_sd21_base_are_right_on_this_device() {
    let (ops, target) = planned_ops(true);
    let in_halves = ops.iter().filter(|op| op.is_in_halves()).count();
    println!("{in_halves} of {} ops in runs of {} halves", ops.len(), target.half_run);
    assert!(in_halves > 60, "{in_halves}");
    check_some(&ops, &target);
}

#[test]
fn contractions_of_sd21_base_without_half_arithmetic_are_right_on_this_device() {
    let (mut ops, target) = planned_ops(false);
    ops.retain(|op| matches!(op.op, Op::Matmul(_) | Op::Conv2d(_)));
    assert!(ops.len() > 60 && !ops.iter().any(PlannedOp::is_in_halves));
    check_some(&ops, &target);
}
