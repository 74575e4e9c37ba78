//! Matrix products.

use crate::cases::*;
use crate::check::{check_everywhere, check_sampled};
use kiln_ir::DType;
use kiln_ir::ops::epilogue::Activation;

#[test]
fn matmul_shapes() {
    let e = || epilogue(true, None, IDENTITY, true);
    let shapes: [(usize, &[usize], usize); 10] = [
        (1, &[37], 48),
        (2, &[64], 33),
        (13, &[31], 35),
        (13, &[300], 3),
        (25, &[17, 40], 64),
        (40, &[64, 16], 100),
        (77, &[128], 96),
        (154, &[20], 32),
        (25, &[1050], 40),
        (600, &[19], 32),
    ];
    let cases: Vec<_> =
        shapes.iter().flat_map(|(m, k, n)| STORAGES.map(|s| matmul(*m, k, *n, e(), s))).collect();
    check_sampled(&cases);
}

#[test]
fn matmul_epilogues() {
    let cases: Vec<_> = epilogues()
        .into_iter()
        .flat_map(|e| {
            [matmul(13, &[41], 72, e.clone(), PLAIN), matmul(30, &[64], 64, e, STORAGES[3])]
        })
        .collect();
    check_sampled(&cases);
}

#[test]
fn matmul_of_split_weights() {
    let e = epilogue(true, Some(2), IDENTITY, true);
    let mut cases = vec![
        matmul(13, &[64], 200, e.clone(), PLAIN),
        matmul(13, &[61], 200, e, STORAGES[3]),
        matmul(13, &[64], 200, epilogue(true, Some(3), Activation::Geglu, true), STORAGES[1]),
    ];
    cases.iter_mut().for_each(|c| c.max_weight_bytes = 20_000);
    check_sampled(&cases);
}

#[test]
fn matmul_of_int8_weights() {
    use Activation::{Geglu, Gelu};
    let e = |activation| epilogue(true, Some(3), activation, true);
    let half = Storage { activations: DType::F16, ..groups_of(64) };
    let mut cases = vec![
        matmul(13, &[300], 40, e(IDENTITY), INT8),
        matmul(13, &[320], 40, e(IDENTITY), groups_of(64)),
        matmul(1, &[32], 35, e(Gelu), groups_of(16)),
        matmul(25, &[64, 128], 72, e(Geglu), groups_of(32)),
        matmul(25, &[41], 72, e(Geglu), INT8),
        matmul(600, &[128], 48, e(IDENTITY), groups_of(128)),
        matmul(30, &[1280], 35, e(IDENTITY), half),
    ];
    let mut split = cases[..5].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 5_000);
    cases.extend(split);
    check_sampled(&cases);
}

#[test]
fn small_matmul() {
    let e = epilogue(true, Some(1), Activation::Geglu, true);
    check_everywhere(&[
        matmul(13, &[5, 18], 36, epilogue(true, None, Activation::QuickGelu, true), PLAIN),
        matmul(3, &[19], 40, e.clone(), STORAGES[3]),
        matmul(3, &[32], 40, e.clone(), groups_of(16)),
        matmul(3, &[19], 40, e, INT8),
    ]);
}
