//! Group normalization against its reference.

use kiln_ir::DType;
use kiln_ir::ops::{epilogue::Activation, group_affine::GroupAffine, group_norm::GroupNorm};
use kiln_testkit::{Tolerance, check, check_values, random};

fn norm(groups: usize, activation: Activation) -> GroupNorm {
    GroupNorm { sources: 1, groups, eps: 1e-5, activation }
}

#[test]
fn small_group_norm() {
    let cases: [(&[usize], usize); 6] = [
        (&[1, 4], 2),
        (&[2, 3, 3, 12], 4),
        (&[2, 5, 7, 21], 3),
        (&[1, 1, 9, 35], 5),
        (&[3, 17, 66], 2),
        (&[1, 6, 6, 37], 37),
    ];
    for (shape, groups) in cases {
        let c = &shape[shape.len() - 1..];
        for activation in [Activation::None, Activation::Silu] {
            check(norm(groups, activation), &[shape, c, c], 2.0, Tolerance::GROUP_NORM);
        }
    }
}

#[test]
fn many_chunks_and_channels() {
    check(
        norm(32, Activation::Silu),
        &[&[2, 40, 41, 320], &[320], &[320]],
        2.0,
        Tolerance::GROUP_NORM,
    );
    check(
        norm(32, Activation::None),
        &[&[1, 8, 8, 1280], &[1280], &[1280]],
        2.0,
        Tolerance::GROUP_NORM,
    );
}

#[test]
fn a_large_mean_does_not_cancel() {
    let shape: &[usize] = &[1, 61, 67, 8];
    let x = random(1, 61 * 67 * 8).iter().map(|v| 300.0 + v).collect();
    let values = [x, vec![1.0; 8], vec![0.0; 8]];
    // x itself is rounded to 300 * 2^-24, that is 3e-5 standard deviations.
    let tolerance = Tolerance { abs: 3e-4, rel: 1e-4 };
    let op = norm(2, Activation::None).into();
    check_values(&op, &[shape, &[8], &[8]], &values, DType::F32, tolerance);
}

#[test]
fn small_two_sources_with_groups_across_them() {
    let two = |groups| GroupNorm { sources: 2, ..norm(groups, Activation::Silu) };
    check(two(4), &[&[2, 3, 3, 5], &[2, 3, 3, 7], &[12], &[12]], 2.0, Tolerance::GROUP_NORM);
    check(two(32), &[&[1, 8, 8, 640], &[1, 8, 8, 320], &[960], &[960]], 2.0, Tolerance::GROUP_NORM);
}

#[test]
fn small_group_affine() {
    let op = |sources, groups| GroupAffine { sources, groups, eps: 1e-5 };
    check(op(1, 3), &[&[2, 5, 7, 21], &[21], &[21]], 2.0, Tolerance::GROUP_AFFINE);
    check(op(1, 37), &[&[1, 6, 6, 37], &[37], &[37]], 2.0, Tolerance::GROUP_AFFINE);
    check(op(2, 4), &[&[2, 3, 3, 5], &[2, 3, 3, 7], &[12], &[12]], 2.0, Tolerance::GROUP_AFFINE);
}

#[test]
fn many_channels_of_two_sources_as_scales_and_shifts() {
    let op = GroupAffine { sources: 2, groups: 32, eps: 1e-5 };
    check(
        op,
        &[&[2, 24, 41, 640], &[2, 24, 41, 320], &[960], &[960]],
        2.0,
        Tolerance::GROUP_AFFINE,
    );
}
