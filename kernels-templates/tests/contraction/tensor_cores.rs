//! What NVIDIA's tensor cores take.

use crate::cases::*;
use crate::check::check;
use crate::harness::Runner;
use kiln_ir::DType;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_kernels::contraction::mma;
use kiln_kernels::{Problem, Target, candidates};

/// Rows of whole 16-byte parts: what the tensor cores take, with sums long enough to be computed in
/// parts.
fn cases() -> Vec<Case> {
    use Activation::{Geglu, Silu};
    let e = |activation| epilogue(true, Some(4), activation, true);
    let op = |kernel, stride| Conv2d { epilogue: e(Silu), ..same(kernel, stride) };
    let up = Conv2d { upsample: true, ..same(3, 1) };
    let end = Conv2d { padding: 0, padding_end: 1, ..same(3, 2) };
    let normalized = Conv2d { prologue: Some(Silu), ..op(3, 1) };
    let half = |block| Storage { activations: DType::F16, ..blocks_of(block) };
    let storages = [PLAIN, STORAGES[1], STORAGES[3], INT8, half(WHOLE), half(32), blocks_of(32)];
    let mut cases: Vec<_> = storages
        .into_iter()
        .flat_map(|s| {
            [
                matmul(130, &[64], 72, e(IDENTITY), s),
                matmul(64, &[1280], 64, e(Silu), s),
                matmul(200, &[512], 40, e(Silu), s),
                matmul(70, &[512], 72, e(Geglu), s),
                matmul(70, &[32, 96], 200, e(Geglu), s),
                matmul(200, &[96], 150, e(Geglu), s),
                conv2d(op(3, 1), [2, 5, 7], &[64], 40, s),
                conv2d(op(3, 1), [1, 9, 8], &[32, 64], 130, s),
                conv2d(op(3, 2), [1, 9, 26], &[32], 32, s),
                conv2d(up.clone(), [1, 4, 6], &[32], 33, s),
                conv2d(end.clone(), [1, 8, 26], &[32], 32, s),
                conv2d(normalized.clone(), [2, 6, 7], &[32, 64], 40, s),
                conv2d(op(3, 1), [1, 12, 11], &[64], 3, s),
            ]
        })
        .collect();
    cases.push(matmul(40, &[40], 72, e(IDENTITY), PLAIN));
    cases.push(conv2d(op(3, 1), [1, 6, 6], &[40], 24, STORAGES[3]));
    let mut split = cases[..4].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 60_000);
    cases.extend(split);
    cases.push(Case { max_scratch_bytes: 0, ..cases[11].clone() });
    cases
}

/// Checks one part of the cases, of three: NVIDIA's driver compiles for seconds a kernel, and parts may
/// run side by side. Without tensor cores, what they do takes a thousand times as long, and fewer are run.
fn check_part(part: usize) {
    let step = if Runner::shared().vendor().contains("NVIDIA") { 1 } else { 7 };
    for case in cases().iter().step_by(step).skip(part).step_by(3) {
        let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
        let output = case.op.infer(&types).unwrap();
        let inputs = &case.inputs;
        let (max_weight_bytes, max_scratch_bytes) = (case.max_weight_bytes, case.max_scratch_bytes);
        let problem =
            Problem { op: &case.op, inputs, output: &output, max_weight_bytes, max_scratch_bytes };
        assert_eq!(candidates(&problem, &Target::nvidia())[0].name, "mma", "{problem}");
        check(&Target::nvidia(), case, 1);
    }
}

#[test]
fn contractions_of_whole_parts() {
    check_part(0);
}

#[test]
fn contractions_of_whole_parts_continued() {
    check_part(1);
}

#[test]
fn contractions_of_whole_parts_concluded() {
    check_part(2);
}

/// Their best variant on other GPUs.
#[test]
fn contractions_of_whole_parts_elsewhere() {
    cases().iter().step_by(9).for_each(|case| check(&Target::gpu(), case, 1));
}

/// Every tile with one of the cases in FP16, and with another.
#[test]
fn every_tile() {
    let cases = cases();
    for (index, (tile_rows, tile_columns)) in mma::tiles().enumerate() {
        let sum_parts = index as u32 % 2 + 1;
        let target = Target { tile_rows, tile_columns, sum_parts, ..Target::nvidia() };
        for case in [&cases[26 + index], &cases[index * 3 % 10]] {
            check(&target, case, 1);
        }
    }
}

/// Partial sums take no more scratch memory than there is: a strategy with little would take another, far
/// slower variant instead.
#[test]
fn partial_sums_fit_the_scratch_memory() {
    let half = Storage { activations: DType::F16, ..INT8 };
    let cases = [
        matmul(64, &[1280], 64, epilogue(true, None, IDENTITY, false), half),
        conv2d(same(3, 1), [2, 32, 32], &[640], 640, half),
        conv2d(Conv2d { prologue: Some(IDENTITY), ..same(3, 1) }, [1, 64, 64], &[320], 320, half),
    ];
    for case in cases {
        let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
        let output = case.op.infer(&types).unwrap();
        let scratch_bytes = |max_scratch_bytes| {
            let problem = Problem {
                op: &case.op,
                inputs: &case.inputs,
                output: &output,
                max_weight_bytes: u64::MAX,
                max_scratch_bytes,
            };
            let lowering = mma::lower(&problem, &Target::nvidia()).unwrap();
            lowering.scratch_bytes.iter().sum::<u64>()
        };
        let most = scratch_bytes(u64::MAX);
        assert!(most > 0);
        for limit in [most - 1, most * 2 / 3] {
            assert!(scratch_bytes(limit) <= limit, "{limit} of {most}");
        }
    }
}
