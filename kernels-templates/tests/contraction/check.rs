//! Runs the variants of a case and compares them with the reference.

use crate::cases::Case;
use kiln_ir::{DType, Op};
use kiln_kernels::{Problem, Target, candidates};
use kiln_testkit::{Check, Lowered, Pairs, Tolerance, random, random_stored, sampled};

/// A test runs one of this many cases by default.
pub const SAMPLE: usize = 12;

/// Runs the best variants of a case on a target. Bounds follow from the length of the reduction
/// axis and the rounding of the storage types.
pub fn check(target: &Target, case: &Case, most_variants: usize) {
    check_variants(target, case, most_variants, |_| true);
}

/// [`check`], of the variants whose name is wanted.
fn check_variants(
    target: &Target,
    case: &Case,
    most_variants: usize,
    mut wanted: impl FnMut(&str) -> bool,
) {
    let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
    let output = case.op.infer(&types).unwrap();
    let weights = types[case.op.weights()[0]];
    let k = weights.elem_count() / weights.shape[0];
    let values: Vec<_> = (case.inputs.iter().enumerate())
        .map(|(i, input)| {
            let is_weight = input.constant && input.ty.shape.len() > 1;
            let scale = if is_weight { 2.0 / (k as f32).sqrt() } else { 1.0 };
            if input.ty.dtype == DType::I8 {
                let values = random(i as u64 + 1, input.ty.elem_count());
                return quantized(&input.ty.shape, &values, input.scale_group, scale);
            }
            random_stored(i as u64 + 1, &input.ty, scale)
        })
        .collect();
    let problem = case.problem(&output);
    let normalized = matches!(&case.op, Op::Conv2d(op) if op.prologue.is_some());
    // Multiplied values are up to 1, or 1 * 1 + 1 if normalized.
    let largest = if normalized { 2.0 } else { 1.0 };
    let check = Check::new(&problem, &values, largest, Tolerance::contraction(k, largest));
    let variants = candidates(&problem, target);
    assert!(!variants.is_empty(), "{} has no variant", case.op.name());
    let mut lowerings = vec![];
    for variant in variants.into_iter().take(most_variants).filter(|v| wanted(v.name)) {
        let lowering = variant.lower(&problem, target).unwrap();
        let what = format!("{} {} {problem}", variant.name, case.op.name());
        verify_regions(&problem, &lowering, &what);
        if !variant.name.starts_with("winograd") {
            let flops: u64 = lowering.launches.iter().map(|l| l.flops).sum();
            assert_eq!(flops, case.op.flops(&types, &output), "{what}");
        }
        lowerings.push(Lowered { problem: problem.clone(), variant, lowering, target });
    }
    check.hold(&lowerings);
}

/// Weights that INT8 stores without error. In each scale group they are whole numbers, the first of
/// them 127, times a power of two of about `spread` over 127.
pub fn quantized(shape: &[usize], values: &[f32], scale_group: usize, spread: f32) -> Vec<f32> {
    let (channels, k) = (shape[1], shape[1..].iter().product::<usize>());
    let window = k / channels;
    let value = |(i, v): (usize, &f32)| {
        let (n, c, tap) = (i / k, i % k / window, i % window);
        let index = tap * channels + c;
        let number = if index % scale_group == 0 { 127.0 } else { (v * 127.0).round() };
        let exponent =
            (spread / 127.0).log2().round() as i32 - ((n + index / scale_group) % 3) as i32;
        number * 2.0f32.powi(exponent)
    };
    values.iter().enumerate().map(value).collect()
}

/// Checks that launches stay within the limit, and together read every constant completely, parts
/// of it repeatedly.
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

/// Every variant of the sampled cases on a CPU target, and the best variant on one of the other
/// targets in turn, because drivers for CPUs need long to compile these kernels. The `small_` tests
/// run every variant on every target.
pub fn check_sampled(cases: &[Case]) {
    let others = other_targets();
    for (i, case) in sampled(cases, SAMPLE).enumerate() {
        check(&Target::cpu(), case, usize::MAX);
        check(&others[i % others.len()], case, 1);
    }
}

/// Every variant on every target and on every case, by [`Pairs`]. The lines of the im2win copy must
/// not have a power of two as length: oclgrind 21.10 truncates to odd widths without masking.
pub fn check_everywhere(cases: &[Case]) {
    let targets: Vec<_> = [Target::cpu()].into_iter().chain(other_targets()).collect();
    let mut pairs = Pairs::new();
    // Each target in turn with another case, so that few combinations make all pairs.
    for shift in 0..cases.len() {
        for (t, target) in targets.iter().enumerate() {
            let c = (t + shift) % cases.len();
            check_variants(target, &cases[c], usize::MAX, |variant| pairs.adds(variant, c, t));
        }
    }
}

pub fn other_targets() -> Vec<Target> {
    let narrow = Target { vector_width: 4, tile_rows: 5, tile_columns: 12, ..Target::cpu() };
    let wide = Target { tile_rows: 6, tile_columns: 8, ..Target::mobile() };
    let eight = Target { vector_width: 8, ..Target::cpu() };
    vec![Target::gpu(), narrow, Target::mobile(), wide, eight, Target::mobile_half()]
}
