//! Chains against their reference: by stripes of some lines, of all lines, and on the whole feature
//! map.

use kiln_ir::ops::chain::{Chain, Link};
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::ops::group_affine::GroupAffine;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{Operand, Problem, Target, candidates};
use kiln_testkit::{Check, Lowered, Tolerance, every, random, random_stored};

/// A chain over `[batch, height, width]`, its channels from source to output, and whether
/// its residual is its source.
struct Case {
    first: Conv2d,
    second: Second,
    feature_map: [usize; 3],
    channels: [usize; 3],
    activations: DType,
    weights: DType,
}

enum Second {
    Conv2d { op: Conv2d, residual: bool },
    Matmul { residual: bool },
    Affine { groups: usize },
}

const SILU: Option<Activation> = Some(Activation::Silu);

fn conv(kernel: usize, prologue: Option<Activation>, upsample: bool) -> Conv2d {
    let epilogue = Epilogue { bias: true, ..Epilogue::default() };
    Conv2d { prologue, upsample, epilogue, ..Conv2d::new(kernel, 1) }
}

impl Case {
    /// The op, and its inputs with the factor of their values.
    fn op(&self) -> (Chain, Vec<(Operand, f32)>) {
        let [n, h, w] = self.feature_map;
        let [c, between, out] = self.channels;
        let value = |shape: &[usize]| (Operand::new(TensorType::new(self.activations, shape)), 1.0);
        let affine = |c: usize| (Operand::new(TensorType::f32(&[n, 2, c])), 1.0);
        let bias = |c: usize| (Operand::constant(TensorType::f32(&[c])), 1.0);
        let weights = |o: usize, c: usize, kernel: usize| {
            let k = c * kernel * kernel;
            let block = if self.weights == DType::I8 { k } else { 0 };
            let ty = TensorType::new(self.weights, &[o, c, kernel, kernel]);
            (Operand { scale_group: block, ..Operand::constant(ty) }, 2.0 / (k as f32).sqrt())
        };
        let mut inputs = vec![value(&[n, h, w, c])];
        inputs.extend(self.first.prologue.map(|_| affine(c)));
        inputs.extend([weights(between, c, self.first.kernel), bias(between)]);
        let second = match &self.second {
            Second::Affine { groups } => {
                inputs.extend([bias(between), bias(between)]);
                Link::GroupAffine(GroupAffine { sources: 1, groups: *groups, eps: 1e-5 })
            }
            Second::Matmul { residual } => {
                let (weights, factor) = weights(out, between, 1);
                let ty = TensorType::new(self.weights, &[out, between]);
                inputs.extend([(Operand { ty, ..weights }, factor), bias(out)]);
                let (h, w) = self.first.window_extent(h, w);
                inputs.extend(residual.then(|| value(&[n, h, w, out])));
                let epilogue = Epilogue { bias: true, residual: *residual, ..Epilogue::default() };
                Link::Matmul(Matmul { sources: 1, epilogue })
            }
            Second::Conv2d { op, residual } => {
                inputs.extend(op.prologue.map(|_| affine(between)));
                inputs.extend([weights(out, between, op.kernel), bias(out)]);
                let (h, w) = self.first.window_extent(h, w);
                inputs.extend(residual.then(|| value(&[n, h, w, out])));
                let epilogue = Epilogue { residual: *residual, ..op.epilogue.clone() };
                Link::Conv2d(Conv2d { epilogue, ..op.clone() })
            }
        };
        (Chain { first: self.first.clone(), between: self.activations, second }, inputs)
    }
}

/// Weights that INT8 with one scale an output channel stores without error.
fn whole_numbers(shape: &[usize], values: &[f32], factor: f32) -> Vec<f32> {
    let k: usize = shape[1..].iter().product();
    let scale = 2f32.powi((factor / 127.0).log2().round() as i32);
    let number = |(i, v): (usize, &f32)| if i % k == 0 { 127.0 } else { (v * 127.0).round() };
    values.iter().enumerate().map(number).map(|v| v * scale).collect()
}

fn check(case: &Case, targets: &[Target], scratch_bytes: &[u64]) {
    let (chain, inputs) = case.op();
    let values: Vec<_> = (inputs.iter().enumerate())
        .map(|(i, (input, factor))| match input.ty.dtype {
            DType::I8 => {
                let values = random(i as u64 + 1, input.ty.elem_count());
                whole_numbers(&input.ty.shape, &values, *factor)
            }
            _ => random_stored(i as u64 + 1, &input.ty, *factor),
        })
        .collect();
    let inputs: Vec<_> = inputs.into_iter().map(|(input, _)| input).collect();
    let op: Op = chain.into();
    let types: Vec<_> = inputs.iter().map(|i| &i.ty).collect();
    let output = op.infer(&types).unwrap();
    // Two sums of values of about 1. The FP16 value between them (and, off CPUs, its normalized
    // copy) has an error of 2^-11 of up to 6, independent for each element: 6 standard deviations
    // of their sum with weights of 1.2 / sqrt(k) on average. Statistics average over all elements.
    let halves =
        if case.activations == DType::F16 { 6.0 * 1.2 * 6.0 * 2f32.powi(-11) } else { 0.0 };
    let tolerance = Tolerance { abs: 2e-5 + halves, rel: 1e-5 };
    let unlimited = Problem::unlimited(&op, &inputs, &output);
    let check = Check::new(&unlimited, &values, 1.0, tolerance);
    let mut seen: Vec<Lowered> = vec![];
    for target in targets {
        for max_scratch_bytes in scratch_bytes {
            let problem = Problem {
                op: &op,
                inputs: &inputs,
                output: &output,
                max_weight_bytes: 1,
                max_scratch_bytes: *max_scratch_bytes,
            };
            let variants = candidates(&problem, target);
            assert_eq!(variants.iter().map(|v| v.name).collect::<Vec<_>>(), ["striped", "naive"]);
            for variant in variants {
                let lowering = variant.lower(&problem, target).unwrap();
                if seen.iter().all(|known| known.lowering != lowering) {
                    seen.push(Lowered { problem: problem.clone(), variant, lowering, target });
                }
            }
        }
    }
    check.hold(&seen);
    // Stripes of several heights, and the whole feature map.
    let limits = targets.len().max(scratch_bytes.len());
    assert!(seen.len() > limits.div_ceil(2), "{} lowerings", seen.len());
}

/// One line at a time, some, more, all: two of them in turn for the `index`-th case of a test, and
/// with `KILN_EVERY=1` all four.
fn scratch(index: usize) -> Vec<u64> {
    let all = [0, 20_000, 40_000, u64::MAX];
    let step = every(2).min(2);
    all.into_iter().skip(index % step).step_by(step).collect()
}

fn case(first: Conv2d, second: Second, feature_map: [usize; 3], channels: [usize; 3]) -> Case {
    let (activations, weights) = (DType::F32, DType::F32);
    Case { first, second, feature_map, channels, activations, weights }
}

/// An upsampled feature map, read by every op that reads one in the decoder.
#[test]
fn small_upsampled() {
    let first = || conv(3, None, true);
    let windows = |residual| Second::Conv2d { op: conv(3, SILU, false), residual };
    let rows = |residual| Second::Matmul { residual };
    let seconds = [windows(false), rows(true), rows(false), Second::Affine { groups: 3 }];
    for (i, second) in seconds.into_iter().enumerate() {
        check(&case(first(), second, [1, 5, 3], [11, 21, 19]), &[Target::cpu()], &scratch(i));
    }
}

/// Both convolutions of a residual block, over its own source; or the first and the statistics of
/// what follows. `make test` takes each on one of the shapes.
#[test]
fn small_normalized_twice() {
    let windows = |residual| Second::Conv2d { op: conv(3, SILU, false), residual };
    let affine = || Second::Affine { groups: 1 };
    let (wide, narrow) = (([1, 8, 4], [32, 48, 32]), ([2, 11, 5], [9, 7, 9]));
    let cases = [
        (wide, windows(true)),
        (narrow, windows(false)),
        (narrow, affine()),
        (narrow, windows(true)),
        (wide, windows(false)),
        (wide, affine()),
    ];
    let count = cases.len() / every(2).min(2);
    for (i, ((feature_map, channels), second)) in cases.into_iter().take(count).enumerate() {
        let case = case(conv(3, SILU, false), second, feature_map, channels);
        check(&case, &[Target::cpu()], &scratch(i));
    }
}

#[test]
fn every_storage_and_device_class() {
    let narrow = Target { vector_width: 8, ..Target::cpu() };
    let others = [narrow, Target::gpu(), Target::mobile()];
    let storages = [(DType::F16, DType::F32), (DType::F16, DType::F16), (DType::F16, DType::I8)];
    for (s, (activations, weights)) in storages.into_iter().enumerate() {
        // Every storage on one of the targets in turn, and with `KILN_EVERY=1` on all.
        let targets = |first: usize| match every(2) {
            1 => others.to_vec(),
            _ => vec![others[(first + s) % others.len()].clone()],
        };
        let stored = |case| Case { activations, weights, ..case };
        let windows = Second::Conv2d { op: conv(3, SILU, false), residual: true };
        let block = stored(case(conv(3, SILU, false), windows, [1, 10, 6], [32, 32, 32]));
        check(&block, &[Target::cpu()], &[0, 20_000]);
        check(&block, &targets(0), &[20_000]);
        let affine = Second::Affine { groups: 4 };
        let statistics = stored(case(conv(3, None, true), affine, [1, 6, 8], [16, 32, 32]));
        check(&statistics, &targets(1), &[20_000]);
    }
}

/// The scratch memory of a chain is small because the value between its ops is never whole.
#[test]
fn stripes_take_the_scratch_memory_they_are_given() {
    let second = Second::Conv2d { op: conv(3, SILU, false), residual: true };
    let (chain, inputs) = case(conv(3, SILU, false), second, [1, 256, 256], [128, 128, 128]).op();
    let inputs: Vec<_> = inputs.into_iter().map(|(input, _)| input).collect();
    let op: Op = chain.into();
    let output = op.infer(&inputs.iter().map(|i| &i.ty).collect::<Vec<_>>()).unwrap();
    let max_scratch_bytes = 8 << 20;
    let (inputs, max_weight_bytes) = (&inputs[..], 1 << 20);
    let problem = Problem { op: &op, inputs, output: &output, max_weight_bytes, max_scratch_bytes };
    let target = Target::cpu();
    let lowering = candidates(&problem, &target)[0].lower(&problem, &target).unwrap();
    assert!(lowering.scratch_bytes.iter().sum::<u64>() <= max_scratch_bytes);
    // 258 pixels of 128 channels are 132,096 bytes: (l + 4) + (l + 2) lines and l + 2 of 256
    // pixels.
    let lines = 16;
    assert_eq!(
        lowering.launches.iter().filter(|l| l.entry == "conv2d_stripe_carry").count(),
        256 / lines - 1
    );
    assert_eq!(lowering.in_place, [0]);
}
