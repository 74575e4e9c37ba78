//! Reductions and normalizations of rows against their references.

use kiln_ir::DType;
use kiln_ir::ops::{
    layer_norm::LayerNorm, reductions::Mean, reductions::Softmax, reductions::Variance,
};
use kiln_testkit::{Tolerance, check, check_values, random};

const SHAPES: [&[usize]; 6] = [&[1, 1], &[3, 37], &[2, 5, 7], &[1, 64], &[2, 257], &[70, 16]];

#[test]
fn small_mean_and_variance() {
    for shape in SHAPES {
        check(Mean, &[shape], 1.0, Tolerance::MEAN);
        check(Variance, &[shape], 1.0, Tolerance::MEAN);
    }
}

#[test]
fn long_mean_and_variance() {
    // The naive kernels sum 100000 terms one by one.
    let tolerance = Tolerance { abs: 1e-5, rel: 5e-4 };
    check(Mean, &[&[2, 100_003]], 1.0, tolerance);
    check(Variance, &[&[2, 100_003]], 1.0, tolerance);
}

#[test]
fn variance_of_a_large_mean_does_not_cancel() {
    let values: Vec<f32> = random(1, 3 * 301).iter().map(|v| 1000.0 + v).collect();
    let shape: &[usize] = &[3, 301];
    // The mean is wrong by a few units of 1000; its square adds to a variance of 1/3.
    let tolerance = Tolerance { abs: 0.0, rel: 1e-5 };
    check_values(&Variance.into(), &[shape], &[values], DType::F32, tolerance);
}

#[test]
fn small_softmax() {
    for shape in SHAPES {
        check(Softmax, &[shape], 6.0, Tolerance::SOFTMAX);
    }
    check(Softmax, &[&[5, 77]], 60.0, Tolerance { abs: 1e-35, rel: 1e-5 });
}

/// Down to the smallest floats: the error of an exponential, 5e-7, and of a division.
#[test]
fn small_probabilities_keep_their_precision() {
    let values: Vec<f32> = random(1, 512 * 16).iter().map(|v| 43.0 * v).collect();
    let tolerance = Tolerance { abs: 0.0, rel: 8e-7 };
    check_values(&Softmax.into(), &[&[512, 16]], &[values], DType::F32, tolerance);
}

#[test]
fn softmax_of_long_rows() {
    check(Softmax, &[&[3, 4096]], 6.0, Tolerance { abs: 0.0, rel: 3e-5 });
}

#[test]
fn small_layer_norm() {
    for shape in SHAPES {
        let channels = &shape[shape.len() - 1..];
        check(LayerNorm { eps: 1e-5 }, &[shape, channels, channels], 2.0, Tolerance::LAYER_NORM);
    }
}

#[test]
fn layer_norm_of_the_model() {
    let tolerance = Tolerance { abs: 4e-6, rel: 4e-6 };
    for c in [320usize, 1024, 1280] {
        check(LayerNorm { eps: 1e-5 }, &[&[2, 33, c], &[c], &[c]], 2.0, tolerance);
    }
}
