//! Contractions of INT8 weights with activations that are quantized on the fly.

use crate::cases::*;
use crate::check::{check, quantized};
use kiln_ir::DType;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_kernels::contraction::dot::{MADD_VARIANT, VNNI_VARIANT};
use kiln_kernels::{Argument, Operand, Rounding, Target, Variant, candidates};
use kiln_testkit::{Check, Lowered, Runner, Tolerance, every, random, random_stored, stored};

/// The variants, held to sums in FP32: the activations of [`exact`] are stored without error.
const VNNI: Variant = Variant { rounding: |_, _, _| Rounding::FP32, ..VNNI_VARIANT };
const MADD: Variant = Variant { rounding: |_, _, _| Rounding::FP32, ..MADD_VARIANT };
static VARIANTS: [Variant; 2] = [VNNI, MADD];
/// Magnitude of an outlier, beside other activations of up to 1.
const OUTLIER: f32 = 31.7;
/// Distance of outliers: at most one a block on average, and none first of 16.
const OUTLIERS: usize = 112;

fn targets() -> [Target; 2] {
    let wide = Target { vnni: true, ..Target::cpu() };
    [wide.clone(), Target { vector_width: 8, tile_rows: 6, tile_columns: 16, ..wide }]
}

/// Activations whose blocks are whole numbers, up to `most`, times a power of two a row.
fn exact(shape: &[usize], seed: u64, most: f32) -> Vec<f32> {
    let channels = shape.last().copied().unwrap_or(1);
    let values = random(seed, shape.iter().product());
    let value = |(i, v): (usize, &f32)| {
        let number = if i % 16 == 0 { most } else { (v * most).round() };
        number * 2.0f32.powi(-((i / channels % 3) as i32)) / (most + 1.0)
    };
    values.iter().enumerate().map(value).collect()
}

/// Holds both variants to the reference on activations that they store exactly, bytes also with
/// outliers, which are exact beside them.
fn check_exact(case: &Case, target: &Target) {
    let output = case.output();
    let problem = case.problem(&output);
    let k = case.inputs[case.op.weights()[0]].ty.shape[1..].iter().product::<usize>();
    let sources = case.op.contraction().unwrap().sources;
    let [vnni, madd] = &VARIANTS;
    for (variant, most, largest) in
        [(vnni, 127.0, 1.0), (vnni, 127.0, OUTLIER), (madd, 32767.0, 1.0)]
    {
        let values: Vec<_> = (case.inputs.iter().zip(1..).enumerate())
            .map(|(i, (input, seed))| match input.ty.dtype {
                DType::I8 => {
                    let values = random(seed, input.ty.elem_count());
                    let spread = 2.0 / (k as f32).sqrt();
                    quantized(&input.ty.shape, &values, input.scale_group, spread)
                }
                dtype if sources.contains(&i) => {
                    let mut values = exact(&input.ty.shape, seed, most);
                    if largest > 1.0 {
                        values.iter_mut().skip(37).step_by(OUTLIERS).for_each(|v| *v = largest);
                    }
                    stored(dtype, &values)
                }
                _ => random_stored(seed, &input.ty, 1.0),
            })
            .collect();
        assert!(variant.applies(&problem, target), "{} {problem}", variant.name);
        let lowering = variant.lower(&problem, target).unwrap();
        let tolerance = Tolerance::contraction(k, largest);
        let check = Check::new(&problem, &values, largest, tolerance);
        check.hold(&[Lowered { problem: problem.clone(), variant, lowering, target }]);
    }
}

/// Products and windows of every kind; scale groups; several sources; stripes and split weights.
fn cases() -> Vec<Case> {
    use Activation::{Geglu, Gelu, Silu};
    let e = |activation| epilogue(true, Some(3), activation, true);
    let op = |kernel, stride| Conv2d { epilogue: e(Silu), ..same(kernel, stride) };
    let up = Conv2d { upsample: true, ..op(3, 1) };
    let end = Conv2d { padding: 0, padding_end: 1, ..op(3, 2) };
    let mut cases = vec![
        matmul(13, &[320], 40, e(IDENTITY), INT8),
        conv2d(op(3, 1), [2, 3, 5], &[32, 64], 40, INT8),
        matmul(130, &[96], 72, e(Geglu), groups_of(32)),
        conv2d(end, [1, 4, 26], &[64], 33, groups_of(16)),
        conv2d(up, [1, 3, 4], &[48], 40, INT8),
        matmul(25, &[64, 128], 48, e(Gelu), groups_of(64)),
        conv2d(op(1, 1), [2, 5, 3], &[80], 40, INT8),
        conv2d(op(3, 2), [2, 9, 13], &[32], 32, INT8),
    ];
    let split = Case { max_weight_bytes: 9_000, ..cases[0].clone() };
    let stripes = Case { max_scratch_bytes: 5_000, ..cases[1].clone() };
    cases.extend([split, stripes]);
    cases
}

#[test]
fn small_sums_of_integers_are_exact() {
    for (i, case) in cases().iter().enumerate() {
        let targets = targets();
        check_exact(case, &targets[i % 2]);
        if every(2) == 1 {
            check_exact(case, &targets[1 - i % 2]);
        }
    }
}

/// Normalized sources and FP16 are held to the rounding of the variants.
#[test]
fn small_quantized_activations_are_within_their_rounding() {
    let e = epilogue(true, Some(4), IDENTITY, true);
    let normalized = Conv2d { prologue: Some(Activation::Silu), epilogue: e.clone(), ..same(3, 1) };
    let half = Storage { activations: DType::F16, ..groups_of(32) };
    let whole = conv2d(normalized, [2, 6, 7], &[32, 64], 40, INT8);
    let stripes = Case { max_scratch_bytes: 8_000, ..whole.clone() };
    let cases = [whole, stripes, matmul(30, &[1280], 35, e, half)];
    for (case, target) in cases.iter().zip(targets().iter().cycle()) {
        let output = case.output();
        let names: Vec<_> =
            candidates(&case.problem(&output), target).iter().map(|v| v.name).collect();
        assert_eq!(names[..2], ["int8_vnni", "int8_madd"]);
        check(target, case, 2);
    }
}

/// Kernels are tried once on memory as it is, to have them compiled: a list of outliers in it must
/// lead nowhere. Outside of the weights, a processor or Oclgrind ends the test.
#[test]
fn small_records_of_any_content_are_read_within_bounds() {
    const ANYTHING: f32 = f32::from_bits(0x7f7f_7f7f);
    let [target, _] = targets();
    let case = matmul(13, &[320], 40, epilogue(true, None, IDENTITY, false), INT8);
    let output = case.output();
    let problem = case.problem(&output);
    let [weights] = case.op.weights()[..] else { panic!("{problem}") };
    let activations = case.op.contraction().unwrap().sources[0];
    let value = |(index, input): (usize, &Operand)| match index {
        _ if index == activations => vec![ANYTHING; input.ty.elem_count()],
        _ if index == weights => {
            let values = random(1, input.ty.elem_count());
            quantized(&input.ty.shape, &values, input.scale_group, 0.1)
        }
        _ => random_stored(1, &input.ty, 1.0),
    };
    let values: Vec<_> = case.inputs.iter().enumerate().map(value).collect();
    let mut lowering = VNNI.lower(&problem, &target).unwrap();
    // Records in place of those that the first launch would make.
    lowering.launches.retain(|launch| launch.entry == "contraction_dot_cpu");
    assert!(!lowering.launches.is_empty());
    for argument in lowering.launches.iter_mut().flat_map(|launch| &mut launch.args) {
        if let Argument::Scratch { index, .. } = *argument {
            let len_bytes = lowering.scratch_bytes[index];
            assert!(len_bytes <= case.inputs[activations].ty.size_bytes());
            *argument = Argument::Input { index: activations, offset_bytes: 0, len_bytes };
        }
    }
    let found = Runner::shared().load(&problem, &lowering, &values).result().unwrap();
    assert_eq!(found.len(), 13 * 40);
}

/// Too few rows, columns or channels, weights of another type and other devices.
#[test]
fn other_contractions_have_other_variants() {
    let e = || epilogue(true, None, IDENTITY, false);
    let [target, _] = targets();
    let best = |case: &Case, target: &Target| {
        let output = case.output();
        candidates(&case.problem(&output), target)[0].name
    };
    let usual = matmul(16, &[64], 32, e(), INT8);
    assert_eq!(best(&usual, &target), "int8_vnni");
    assert_eq!(best(&usual, &Target::cpu()), "int8_madd");
    assert_eq!(best(&usual, &Target { vector_width: 4, ..Target::cpu() }), "tiled_cpu");
    assert_eq!(best(&usual, &Target::gpu()), "tiled_gpu");
    for case in [
        matmul(2, &[64], 32, e(), INT8),
        matmul(16, &[64], 4, e(), INT8),
        matmul(16, &[68], 32, e(), INT8),
        matmul(16, &[64], 32, e(), PLAIN),
    ] {
        assert_eq!(best(&case, &target), "tiled_cpu");
    }
}
