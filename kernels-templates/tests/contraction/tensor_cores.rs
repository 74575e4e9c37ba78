//! Contractions on NVIDIA's tensor cores.

use crate::cases::*;
use crate::check::check;
use kiln_ir::DType;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_kernels::contraction::tensor_cores;
use kiln_kernels::{Target, Tiling, candidates};
use kiln_testkit::{Runner, every};

/// Rows in multiples of 16 bytes, which tensor cores require, and sums long enough for split-K.
fn cases() -> Vec<Case> {
    use Activation::{Geglu, Silu};
    let e = |activation| epilogue(true, Some(4), activation, true);
    let op = |kernel, stride| Conv2d { epilogue: e(Silu), ..same(kernel, stride) };
    let up = Conv2d { upsample: true, ..same(3, 1) };
    let end = Conv2d { padding: 0, padding_end: 1, ..same(3, 2) };
    let normalized = Conv2d { prologue: Some(Silu), ..op(3, 1) };
    let half = |group| Storage { activations: DType::F16, ..groups_of(group) };
    let storages = [PLAIN, STORAGES[1], STORAGES[3], INT8, half(WHOLE), half(32), groups_of(32)];
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

#[test]
fn contractions_of_whole_parts() {
    // Without tensor cores, their emulation takes a thousand times as long.
    let step = if Runner::shared().vendor().contains("NVIDIA") { 1 } else { 7 * every(2) };
    for case in cases().iter().step_by(step) {
        let output = case.output();
        let problem = case.problem(&output);
        assert_eq!(candidates(&problem, &Target::nvidia())[0].name, "mma", "{problem}");
        check(&Target::nvidia(), case, 1);
    }
}

/// The best variant on GPUs without tensor cores.
#[test]
fn contractions_of_whole_parts_elsewhere() {
    cases().iter().step_by(9 * every(2)).for_each(|case| check(&Target::gpu(), case, 1));
}

/// Every tile in FP32 and in FP16, with one or two parts for split-K. `make test` takes a product
/// with one of the two types in turn, and a convolution with the other.
#[test]
fn every_tile() {
    let e = epilogue(true, Some(4), Activation::Silu, true);
    let conv = Conv2d { epilogue: e.clone(), ..same(3, 1) };
    let mma = &tensor_cores::VARIANT;
    let tilings = (mma.tuning)(&Target::nvidia()).into_iter().filter(|t| t.sum_parts == 1);
    for (index, tiling) in tilings.enumerate() {
        let (tile_rows, tile_columns) = (tiling.rows, tiling.columns);
        let sum_parts = index as u32 % 2 + 1;
        let target = Target::nvidia().with_tiling(Tiling { sum_parts, ..tiling });
        // The narrowest tile is only for outputs of at most its own columns.
        let columns = if tile_columns < 64 { 3 } else { 100 };
        for (s, storage) in [PLAIN, STORAGES[3]].into_iter().enumerate() {
            let cases = [
                matmul(130, &[512], columns, e.clone(), storage),
                conv2d(conv.clone(), [2, 5, 7], &[64], columns, storage),
            ];
            for case in cases.iter().skip((index / 2 + s) % every(2)).step_by(every(2)) {
                let output = case.output();
                let launch = &mma.lower(&case.problem(&output), &target).unwrap().launches[0];
                let rows = output.elem_count() / columns;
                let tiles =
                    [rows.div_ceil(tile_rows as usize), columns.div_ceil(tile_columns as usize)];
                // Each work-group has four warps.
                let work_items = [128 * tiles[0] as u64, tiles[1] as u64, sum_parts.into()];
                assert_eq!(launch.global, work_items, "{tile_rows}x{tile_columns}");
                check(&target, case, 1);
            }
        }
    }
}

/// Partial sums take no more scratch memory than the limit. A strategy with a low limit would
/// otherwise take another, much slower variant.
#[test]
fn partial_sums_fit_the_scratch_memory() {
    let half = Storage { activations: DType::F16, ..INT8 };
    let cases = [
        matmul(64, &[1280], 64, epilogue(true, None, IDENTITY, false), half),
        conv2d(same(3, 1), [2, 32, 32], &[640], 640, half),
        conv2d(Conv2d { prologue: Some(IDENTITY), ..same(3, 1) }, [1, 64, 64], &[320], 320, half),
    ];
    for case in cases {
        let output = case.output();
        let scratch_bytes = |max_scratch_bytes| {
            let case = Case { max_scratch_bytes, ..case.clone() };
            let lowering =
                tensor_cores::VARIANT.lower(&case.problem(&output), &Target::nvidia()).unwrap();
            lowering.scratch_bytes.iter().sum::<u64>()
        };
        let most = scratch_bytes(u64::MAX);
        assert!(most > 0);
        for limit in [most - 1, most * 2 / 3] {
            assert!(scratch_bytes(limit) <= limit, "{limit} of {most}");
        }
    }
}
