//! Element-wise ops and data movement against their references.

use kiln_ir::ops::{
    concat::Concat, geglu::Geglu, permute::Permute, pointwise::Add, pointwise::Gelu,
    pointwise::Mul, pointwise::QuickGelu, pointwise::Relu, pointwise::Silu, pointwise::Tanh,
    scale::Scale, slice::Slice, timestep_embedding::TimestepEmbedding, upsample::Upsample,
};
use kiln_testkit::{Tolerance, check};

const SHAPES: [&[usize]; 4] = [&[1, 1], &[3, 37], &[2, 5, 7, 11], &[1, 16]];

#[test]
fn small_silu() {
    SHAPES.iter().for_each(|shape| check(Silu, &[shape], 8.0, Tolerance::SILU));
}

#[test]
fn silu_saturates() {
    check(Silu, &[&[1, 1000]], 200.0, Tolerance::SILU);
}

#[test]
fn small_gelu() {
    SHAPES.iter().for_each(|shape| check(Gelu, &[shape], 8.0, Tolerance::GELU));
}

#[test]
fn small_quick_gelu() {
    SHAPES.iter().for_each(|shape| check(QuickGelu, &[shape], 8.0, Tolerance::SILU));
}

#[test]
fn small_relu_and_tanh() {
    for shape in SHAPES {
        check(Relu, &[shape], 8.0, Tolerance::EXACT);
        check(Tanh, &[shape], 8.0, Tolerance::TANH);
    }
}

#[test]
fn small_scale() {
    SHAPES
        .iter()
        .for_each(|shape| check(Scale { factor: 0.18215 }, &[shape], 3.0, Tolerance::ROUNDED));
}

#[test]
fn small_geglu() {
    for shape in [&[1usize, 2][..], &[3, 74], &[2, 5, 22], &[1, 32], &[130, 8]] {
        check(Geglu, &[shape], 4.0, Tolerance::GEGLU);
    }
}

#[test]
fn small_add_and_mul() {
    let shapes: [[&[usize]; 2]; 6] = [
        [&[1, 1], &[1, 1]],
        [&[3, 37], &[3, 37]],
        [&[2, 7, 11], &[7, 11]],
        [&[2, 3, 5, 17], &[17]],
        [&[4, 5], &[1]],
        [&[1, 130, 64], &[64]],
    ];
    for pair in shapes {
        check(Add, &pair, 3.0, Tolerance::ROUNDED);
        check(Mul, &pair, 3.0, Tolerance::ROUNDED);
    }
}

#[test]
fn long_rows_are_split() {
    check(Add, &[&[3, 9001], &[9001]], 3.0, Tolerance::ROUNDED);
    check(Silu, &[&[9001]], 3.0, Tolerance::SILU);
    check(Geglu, &[&[2, 18002]], 1.0, Tolerance::GELU);
}

#[test]
fn small_upsample() {
    for shape in [[1usize, 1, 1, 1], [2, 3, 5, 7], [1, 2, 1, 33], [1, 4, 3, 64]] {
        check(Upsample, &[&shape], 1.0, Tolerance::EXACT);
    }
}

#[test]
fn small_concat() {
    check(Concat, &[&[1, 1], &[1, 1]], 1.0, Tolerance::EXACT);
    check(Concat, &[&[2, 3, 17], &[2, 3, 5], &[2, 3, 64]], 1.0, Tolerance::EXACT);
    check(Concat, &[&[130, 8], &[130, 12]], 1.0, Tolerance::EXACT);
}

#[test]
fn small_slice() {
    check(Slice { start: 0, len: 1 }, &[&[1, 1]], 1.0, Tolerance::EXACT);
    check(Slice { start: 5, len: 37 }, &[&[2, 3, 43]], 1.0, Tolerance::EXACT);
    check(Slice { start: 4, len: 16 }, &[&[9, 24]], 1.0, Tolerance::EXACT);
}

#[test]
fn small_permute() {
    let permute = |order: &[usize]| Permute { order: order.to_vec() };
    check(permute(&[0]), &[&[19]], 1.0, Tolerance::EXACT);
    check(permute(&[1, 0]), &[&[3, 17]], 1.0, Tolerance::EXACT);
    check(permute(&[0, 2, 3, 1]), &[&[2, 3, 5, 7]], 1.0, Tolerance::EXACT);
    check(permute(&[2, 0, 1, 3]), &[&[2, 3, 5, 19]], 1.0, Tolerance::EXACT);
}

#[test]
fn small_timestep_embedding() {
    let op = TimestepEmbedding { channels: 38, max_period: 10000.0 };
    check(op, &[&[3]], 1.0, Tolerance::TIMESTEP_EMBEDDING);
}

#[test]
fn timesteps_of_the_schedule() {
    // Errors of the angle grow with it: 1000 times a few roundings.
    let op = TimestepEmbedding { channels: 320, max_period: 10000.0 };
    check(op, &[&[50]], 1000.0, Tolerance { abs: 2e-4, rel: 0.0 });
}
