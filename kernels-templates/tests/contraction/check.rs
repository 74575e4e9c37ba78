//! Runs the variants of a case and compares them with the reference.

use crate::cases::Case;
use crate::harness::{Runner, Tolerance, check_in_place, check_parts, compare, random, stored};
use kiln_ir::{DType, Op, Tensor};
use kiln_kernels::contraction::mobile::mean_error;
use kiln_kernels::{Operand, Problem, Target, candidates};

/// Runs the best variants of a case on a target; bounds follow from the length of the sum and the
/// rounding of the storage types.
pub fn check(target: &Target, case: &Case, most_variants: usize) {
    let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
    let output = case.op.infer(&types).unwrap();
    let weights = types[case.op.weights()[0]];
    let k = weights.elem_count() / weights.shape[0];
    let values: Vec<_> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, input)| {
            let is_weight = input.constant && input.ty.shape.len() > 1;
            let scale = if is_weight { 2.0 / (k as f32).sqrt() } else { 1.0 };
            let values = random(i as u64 + 1, input.ty.elem_count());
            if input.ty.dtype == DType::I8 {
                return quantized(&input.ty.shape, &values, input.block, scale);
            }
            stored(input.ty.dtype, &values.iter().map(|v| v * scale).collect::<Vec<_>>())
        })
        .collect();
    let tensors: Vec<_> =
        case.inputs.iter().zip(&values).map(|(i, v)| Tensor::new(&i.ty.shape, v.clone())).collect();
    let expected = case.op.eval(&tensors.iter().collect::<Vec<_>>());
    let problem = case.problem(&output);
    let normalized = matches!(&case.op, Op::Conv2d(op) if op.prologue.is_some());
    // What is multiplied is up to 1, normalized up to 1 * 1 + 1.
    let largest = if normalized { 2.0 } else { 1.0 };
    let abs = largest * (16.0 + 2.0 * (k as f32).sqrt()) * f32::EPSILON;
    // Where a normalized copy is stored in halves, its values of about 1 are off by up to 2^-11, each
    // by itself, in sums whose weights are 1.2 / sqrt(k) in the mean: 6 standard deviations.
    let copies = normalized && types[0].dtype == DType::F16;
    let copied = 6.0 * 1.2 * 2f32.powi(-11) / 3f32.sqrt();
    let runner = Runner::shared();
    let variants = candidates(&problem, target);
    assert!(!variants.is_empty(), "{} has no variant", case.op.name());
    for variant in variants.into_iter().take(most_variants) {
        let lowering = (variant.lower)(&problem, target).unwrap();
        let what = || {
            let types: Vec<_> = types.iter().map(|t| t.to_string()).collect();
            format!("{} {} {} {types:?}", variant.name, case.op.name(), case.op.attributes())
        };
        verify_regions(&problem, &lowering, &what());
        if !variant.name.starts_with("winograd") {
            let flops: u64 = lowering.launches.iter().map(|l| l.flops).sum();
            assert_eq!(flops, case.op.flops(&types, &output), "{}", what());
        }
        let winograd = variant.name.starts_with("winograd");
        let exact = winograd || ["naive", "tiled_cpu"].contains(&variant.name);
        // So are weights of FP16 that were added to one another.
        let folds = variant.name == "mma"
            && matches!(&case.op, Op::Conv2d(op) if op.upsample)
            && case.inputs.iter().any(|i| i.constant && i.ty.dtype == DType::F16);
        let abs = if (copies && !exact) || folds { abs + copied } else { abs };
        // Tensor cores cut off what they add below the sum's last place, at each step of 8 or 16.
        let halves = types[0].dtype == DType::F16;
        let cut = if variant.name == "mma" && halves {
            largest * k as f32 / 4.0 * f32::EPSILON
        } else {
            0.0
        };
        let halved = if variant.name == "tiled_mobile_half" {
            halved(target.half_run, normalized)
        } else {
            0.0
        };
        let tolerance = Tolerance { abs: abs + cut + halved, rel: 16.0 * f32::EPSILON };
        let tolerance = match winograd {
            true => winograd_tolerance(&case.inputs, tolerance),
            false => tolerance,
        };
        let prepared = runner.prepare(&problem, &lowering, &values);
        runner.run(&prepared);
        let found = runner.output(&prepared);
        compare(&found, &expected.data, output.dtype, tolerance, &what());
        check_parts(runner, &problem, &lowering, &values, (variant.name, &found));
        check_in_place(runner, &problem, &lowering, &values, (variant.name, &found));
    }
}

/// Six standard deviations of sums whose runs are of halves.
/// What is multiplied is 1 / sqrt(3) in the mean, normalized 2 / 3, and weights 2 / sqrt(3 k).
fn halved(run: u32, normalized: bool) -> f32 {
    let mean = if normalized { 2.0 / 3.0 } else { 1.0 / 3f32.sqrt() };
    6.0 * mean * 2.0 / 3f32.sqrt() * mean_error(run)
}

/// Winograd's transforms multiply by up to 5 and 8 in each direction and cancel: sums, of about 1,
/// are some times as large before they are transformed back. FP16 windows are rounded to 11 bits
/// after `winograd2` transforms them; `winograd4` keeps them in FP32.
fn winograd_tolerance(inputs: &[Operand], direct: Tolerance) -> Tolerance {
    let rounded = inputs.iter().any(|i| i.constant && i.ty.dtype == DType::F16);
    let windows = if rounded { 4.0 / 2048.0 } else { 0.0 };
    Tolerance { abs: 8.0 * direct.abs + windows, ..direct }
}

/// Weights that INT8 holds without error: for each block of a sum a power of two, about `spread`
/// over 127, times whole numbers of which the first is 127.
fn quantized(shape: &[usize], values: &[f32], block: usize, spread: f32) -> Vec<f32> {
    let (channels, k) = (shape[1], shape[1..].iter().product::<usize>());
    let window = k / channels;
    let value = |(i, v): (usize, &f32)| {
        let (n, c, tap) = (i / k, i % k / window, i % window);
        let place = tap * channels + c;
        let number = if place % block == 0 { 127.0 } else { (v * 127.0).round() };
        let exponent = (spread / 127.0).log2().round() as i32 - ((n + place / block) % 3) as i32;
        number * 2.0f32.powi(exponent)
    };
    values.iter().enumerate().map(value).collect()
}

/// Launches stay within the limit, and name the whole of a constant between them, some of it again.
fn verify_regions(problem: &Problem, lowering: &kiln_kernels::Lowering, what: &str) {
    use kiln_kernels::Argument;
    for (index, packing) in &lowering.packings {
        let shape = &problem.inputs[*index].ty.shape;
        let total = packing.size_bytes(shape);
        let mut regions: Vec<_> = lowering
            .launches
            .iter()
            .flat_map(|l| &l.args)
            .filter_map(|a| match a {
                Argument::Input { index: i, offset_bytes, len_bytes } if i == index => {
                    Some((*offset_bytes, *len_bytes))
                }
                _ => None,
            })
            .collect();
        regions.sort();
        regions.dedup();
        let end = regions.iter().fold(0, |end, (offset, len)| {
            assert_eq!(*offset, end, "{what}: a gap in input {index}");
            offset + len
        });
        assert_eq!(end, total, "{what}: input {index}");
    }
}

/// Every variant of every case on a CPU target, and the best variant on one of the others in
/// turn; their kernels take drivers for CPUs long to compile.
pub fn check_all(cases: &[Case]) {
    let others = other_targets();
    for (i, case) in cases.iter().enumerate() {
        check(&Target::cpu(), case, usize::MAX);
        check(&others[i % others.len()], case, 1);
    }
}

/// Every variant on every target. Lines of the im2win scratch must not be a power of two long:
/// oclgrind 21.10 truncates to odd widths without masking.
pub fn check_everywhere(cases: &[Case]) {
    for target in other_targets().into_iter().chain([Target::cpu()]) {
        cases.iter().for_each(|case| check(&target, case, usize::MAX));
    }
}

pub fn other_targets() -> Vec<Target> {
    let narrow = Target { vector_width: 4, tile_rows: 5, tile_columns: 12, ..Target::cpu() };
    let wide = Target { tile_rows: 6, tile_columns: 8, ..Target::mobile() };
    let eight = Target { vector_width: 8, ..Target::cpu() };
    vec![Target::gpu(), narrow, Target::mobile(), wide, eight, Target::mobile_half()]
}
