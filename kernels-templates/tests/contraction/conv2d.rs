//! Convolutions.

use crate::cases::*;
use crate::check::{SAMPLE, check, check_everywhere, check_sampled, other_targets};
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::{DType, Op};
use kiln_kernels::{Target, candidates};
use kiln_testkit::sampled;

#[test]
fn conv2d_shapes() {
    let e = epilogue(true, None, IDENTITY, true);
    let op = |kernel, stride| Conv2d { epilogue: e.clone(), ..same(kernel, stride) };
    let valid = Conv2d { padding: 0, padding_end: 0, ..op(3, 2) };
    let end = Conv2d { padding: 0, padding_end: 1, ..op(3, 2) };
    let up = Conv2d { upsample: true, ..op(3, 1) };
    let shapes: [(Conv2d, [usize; 3], &[usize], usize); 13] = [
        (op(1, 1), [2, 5, 3], &[23], 40),
        (op(1, 2), [1, 7, 8], &[16], 32),
        (op(3, 1), [1, 1, 1], &[19], 5),
        (op(3, 1), [2, 5, 7], &[23], 40),
        (op(3, 1), [1, 6, 50], &[20], 32),
        (op(3, 1), [1, 8, 16], &[16, 7], 36),
        (op(3, 1), [1, 5, 124], &[6], 32),
        (op(3, 2), [2, 9, 26], &[13], 32),
        (valid, [1, 9, 27], &[8], 32),
        (end.clone(), [1, 8, 26], &[13], 32),
        (end, [2, 5, 31], &[16], 40),
        (up.clone(), [2, 5, 7], &[16], 34),
        (up, [1, 4, 16], &[3, 16], 3),
    ];
    let cases: Vec<_> = shapes
        .into_iter()
        .enumerate()
        .flat_map(|(i, (op, feature_map, c, o))| {
            two_storages(i).map(|s| conv2d(op.clone(), feature_map, c, o, s))
        })
        .collect();
    check_sampled(&cases);
}

#[test]
fn conv2d_epilogues() {
    let cases: Vec<_> = epilogues()
        .into_iter()
        .flat_map(|e| {
            let op = Conv2d { epilogue: e, ..same(3, 1) };
            [
                conv2d(op.clone(), [1, 4, 17], &[11], 72, PLAIN),
                conv2d(op, [2, 3, 5], &[16], 64, STORAGES[3]),
            ]
        })
        .collect();
    check_sampled(&cases);
}

#[test]
fn conv2d_of_split_weights() {
    let e = epilogue(true, Some(2), IDENTITY, true);
    let op = Conv2d { epilogue: e, ..same(3, 1) };
    let mut cases = vec![conv2d(op, [1, 4, 13], &[16], 200, PLAIN)];
    cases.iter_mut().for_each(|c| c.max_weight_bytes = 40_000);
    check_sampled(&cases);
}

/// More patches than fit in memory at a time, with weights in one launch and in several.
#[test]
fn winograd_in_stripes() {
    let e = epilogue(true, Some(2), Activation::Silu, true);
    let op = Conv2d { epilogue: e, ..same(3, 1) };
    let whole = conv2d(op, [1, 131, 126], &[64], 40, PLAIN);
    let split = Case { max_weight_bytes: 300_000, ..whole.clone() };
    let narrow = Target { vector_width: 8, tile_rows: 6, tile_columns: 16, ..Target::cpu() };
    for (target, case) in [(Target::cpu(), split), (narrow, whole)] {
        let output = case.output();
        let problem = case.problem(&output);
        let winograd = &candidates(&problem, &target)[0];
        let launches = winograd.lower(&problem, &target).unwrap().launches.len();
        assert!(winograd.name == "winograd4" && launches > 2, "{launches} of {}", winograd.name);
        check(&target, &case, 2);
    }
}

/// Stripes of one line, of several (the last one shorter), of one feature map and of all.
#[test]
fn conv2d_of_normalized_input() {
    use Activation::{None, Silu};
    let op = |stride, activation| Conv2d {
        prologue: Some(activation),
        epilogue: epilogue(true, Some(2), IDENTITY, true),
        ..same(3, stride)
    };
    let up = Conv2d { upsample: true, ..op(1, Silu) };
    let end = Conv2d { padding: 0, padding_end: 1, ..op(2, None) };
    let half = Storage { activations: DType::F16, ..groups_of(16) };
    let cases = [
        conv2d(op(1, Silu), [2, 7, 5], &[23], 40, PLAIN),
        conv2d(op(1, Silu), [1, 6, 13], &[16, 7], 36, STORAGES[1]),
        conv2d(op(1, None), [2, 4, 16], &[32], 33, STORAGES[3]),
        conv2d(op(2, Silu), [1, 9, 26], &[13], 32, STORAGES[2]),
        conv2d(end, [2, 8, 6], &[16], 40, PLAIN),
        conv2d(up, [1, 4, 6], &[32], 34, groups_of(32)),
        conv2d(op(1, Silu), [2, 5, 7], &[32, 16], 36, half),
    ];
    let others = other_targets();
    for (i, whole) in sampled(&cases, SAMPLE).cloned().enumerate() {
        check(&Target::cpu(), &whole, usize::MAX);
        let Op::Conv2d(op) = &whole.op else { unreachable!() };
        let channels: usize = whole.inputs[..op.sources].iter().map(|x| x.ty.channels()).sum();
        let line_bytes = (4 * (whole.inputs[0].ty.shape[2] + 2) * channels) as u64;
        let some = Case { max_scratch_bytes: 5 * line_bytes, ..whole.clone() };
        let split = Case { max_weight_bytes: 10_000, max_scratch_bytes: 0, ..whole };
        check(&Target::cpu(), &some, 3);
        check(&Target::cpu(), &split, 3);
        check(&others[i % others.len()], if i % 2 == 0 { &some } else { &split }, 1);
    }
}

#[test]
fn conv2d_of_int8_weights() {
    let op =
        |activation| Conv2d { epilogue: epilogue(true, Some(2), activation, true), ..same(3, 1) };
    let up = Conv2d { upsample: true, ..op(Activation::Silu) };
    let half = Storage { activations: DType::F16, ..groups_of(32) };
    let mut cases = vec![
        conv2d(op(IDENTITY), [1, 4, 17], &[23], 40, INT8),
        conv2d(op(IDENTITY), [2, 5, 7], &[64], 36, groups_of(64)),
        conv2d(op(Activation::Silu), [1, 6, 26], &[320, 64], 36, groups_of(64)),
        conv2d(up, [1, 4, 6], &[32], 33, half),
        conv2d(
            Conv2d { epilogue: epilogue(true, None, IDENTITY, false), ..same(3, 2) },
            [1, 9, 13],
            &[16],
            35,
            groups_of(16),
        ),
    ];
    let mut split = cases[..3].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 40_000);
    cases.extend(split);
    check_sampled(&cases);
}

#[test]
fn small_conv2d() {
    let op = Conv2d { epilogue: epilogue(true, Some(1), Activation::Silu, true), ..same(3, 1) };
    let up = Conv2d { upsample: true, ..same(3, 1) };
    let end = Conv2d { padding: 0, padding_end: 1, ..same(3, 2) };
    let normalized = Conv2d { prologue: Some(Activation::Silu), ..same(3, 1) };
    check_everywhere(&[
        conv2d(op.clone(), [1, 3, 15], &[5, 3], 17, PLAIN),
        conv2d(op, [2, 3, 4], &[17], 6, STORAGES[3]),
        conv2d(up, [1, 2, 4], &[5], 4, STORAGES[1]),
        conv2d(same(3, 2), [1, 5, 5], &[4], 4, PLAIN),
        conv2d(end, [1, 6, 6], &[4], 4, PLAIN),
        conv2d(same(3, 1), [1, 3, 5], &[16, 32], 17, groups_of(16)),
        Case { max_scratch_bytes: 0, ..conv2d(normalized, [1, 3, 5], &[5, 3], 6, PLAIN) },
    ]);
}
