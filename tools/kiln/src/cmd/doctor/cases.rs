//! One small problem of odd extents for each kernel family.

use kiln_ir::ops::{
    attention::Attention, chain::Chain, chain::Link, concat::Concat, conv2d::Conv2d,
    epilogue::Activation, epilogue::Epilogue, geglu::Geglu, group_affine::GroupAffine,
    group_norm::GroupNorm, layer_norm::LayerNorm, matmul::Matmul, permute::Permute, pointwise::Add,
    pointwise::Gelu, pointwise::Mul, pointwise::QuickGelu, pointwise::Relu, pointwise::Silu,
    pointwise::Tanh, reductions::Mean, reductions::Softmax, reductions::Variance, scale::Scale,
    slice::Slice, timestep_embedding::TimestepEmbedding, upsample::Upsample,
};
use kiln_ir::{DType, Op};
use kiln_testkit::Tolerance;

/// An op, its inputs and the error that FP32 arithmetic may make.
#[derive(Clone)]
pub struct Case {
    /// The op.
    pub op: Op,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// Allowed difference from the reference.
    pub tolerance: Tolerance,
}

/// An input of a case.
#[derive(Clone)]
pub struct Input {
    /// Shape of the input.
    pub shape: Vec<usize>,
    /// Whether the input is packed at compile time, like weights.
    pub constant: bool,
    /// Values are in `[-spread, spread)`.
    pub spread: f32,
}

/// The storage types with which each family is tested.
pub const STORAGES: [DType; 2] = [DType::F32, DType::F16];

/// One case for each family.
pub fn cases() -> Vec<Case> {
    let mut cases = contractions();
    cases.extend(normalizations());
    cases.extend(pointwise());
    cases.extend(movements());
    cases.sort_by_key(|case| case.op.name());
    cases
}

fn case(op: impl Into<Op>, shapes: &[&[usize]], spread: f32, tolerance: Tolerance) -> Case {
    let input = |shape: &&[usize]| Input { shape: shape.to_vec(), constant: false, spread };
    Case { op: op.into(), inputs: shapes.iter().map(input).collect(), tolerance }
}

/// A contraction of `k` products with a bias, an activation and a residual.
fn contraction(op: impl Into<Op>, x: &[usize], weights: &[usize], y: &[usize]) -> Case {
    let k: usize = weights[1..].iter().product();
    let shapes = [x, weights, &weights[..1], y];
    let mut case = case(op, &shapes, 1.0, Tolerance::contraction(k, 1.0));
    case.inputs[1].constant = true;
    case.inputs[1].spread = 2.0 / (k as f32).sqrt();
    case.inputs[2].constant = true;
    case
}

fn contractions() -> Vec<Case> {
    let activation = Activation::Silu;
    let epilogue = Epilogue { bias: true, row_offset: None, activation, residual: true };
    let matmul = Matmul { sources: 1, epilogue: epilogue.clone() };
    let conv2d = Conv2d { epilogue, ..Conv2d::new(3, 1) };
    let (q, k): (&[usize], &[usize]) = (&[2, 7, 120], &[2, 37, 120]);
    vec![
        chain(),
        contraction(matmul, &[1, 13, 37], &[35, 37], &[1, 13, 35]),
        contraction(conv2d, &[2, 5, 7, 11], &[19, 11, 3, 3], &[2, 5, 7, 19]),
        case(Attention::separate(120, 3, false), &[q, k, k], 1.0, Tolerance::ATTENTION),
    ]
}

/// Two convolutions with biases.
fn chain() -> Case {
    let activation = Activation::Silu;
    let epilogue = Epilogue { bias: true, row_offset: None, activation, residual: false };
    let conv2d = Conv2d { epilogue, ..Conv2d::new(3, 1) };
    let second = Link::Conv2d(conv2d.clone());
    let op = Chain { first: conv2d, between: DType::F32, second };
    let shapes: [&[usize]; 5] = [&[2, 5, 7, 11], &[19, 11, 3, 3], &[19], &[5, 19, 3, 3], &[5]];
    // The value between the two is up to 3. Its error is up to that of the first convolution.
    let mut case = case(op, &shapes, 1.0, Tolerance::contraction(19 * 9, 4.0));
    for input in &mut case.inputs[1..] {
        input.constant = true;
        let k: usize = input.shape[1..].iter().product();
        input.spread = if k > 1 { 2.0 / (k as f32).sqrt() } else { 1.0 };
    }
    case
}

fn normalizations() -> Vec<Case> {
    let group_norm = GroupNorm { sources: 1, groups: 3, eps: 1e-5, activation: Activation::Silu };
    let group_affine = GroupAffine { sources: 1, groups: 3, eps: 1e-5 };
    vec![
        case(group_affine, &[&[2, 5, 7, 21], &[21], &[21]], 2.0, Tolerance::GROUP_AFFINE),
        case(group_norm, &[&[2, 5, 7, 21], &[21], &[21]], 2.0, Tolerance::GROUP_NORM),
        case(LayerNorm { eps: 1e-5 }, &[&[3, 37], &[37], &[37]], 2.0, Tolerance::LAYER_NORM),
        case(Softmax, &[&[3, 37]], 6.0, Tolerance::SOFTMAX),
        case(Mean, &[&[3, 257]], 1.0, Tolerance::MEAN),
        case(Variance, &[&[3, 257]], 1.0, Tolerance::MEAN),
    ]
}

fn pointwise() -> Vec<Case> {
    let shape: &[usize] = &[2, 5, 7, 11];
    let embedding = TimestepEmbedding { channels: 38, max_period: 10000.0 };
    vec![
        case(Add, &[shape, &[7, 11]], 3.0, Tolerance::ROUNDED),
        case(Mul, &[shape, &[11]], 3.0, Tolerance::ROUNDED),
        case(Scale { factor: 0.18215 }, &[shape], 3.0, Tolerance::ROUNDED),
        case(Silu, &[shape], 8.0, Tolerance::SILU),
        case(Relu, &[shape], 8.0, Tolerance::EXACT),
        case(Tanh, &[shape], 8.0, Tolerance::TANH),
        case(Gelu, &[shape], 8.0, Tolerance::GELU),
        case(QuickGelu, &[shape], 8.0, Tolerance::SILU),
        case(Geglu, &[&[3, 74]], 4.0, Tolerance::GEGLU),
        case(embedding, &[&[3]], 1.0, Tolerance::TIMESTEP_EMBEDDING),
    ]
}

/// Cases of ops that only move values. Their results must be exact.
fn movements() -> Vec<Case> {
    let order = vec![0, 2, 3, 1];
    vec![
        case(Concat, &[&[2, 3, 17], &[2, 3, 5], &[2, 3, 64]], 1.0, Tolerance::EXACT),
        case(Permute { order }, &[&[2, 3, 5, 7]], 1.0, Tolerance::EXACT),
        case(Slice { start: 5, len: 37 }, &[&[2, 3, 43]], 1.0, Tolerance::EXACT),
        case(Upsample, &[&[2, 3, 5, 7]], 1.0, Tolerance::EXACT),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::TensorType;

    #[test]
    fn every_family_has_one_case_in_order() {
        let cases: Vec<&str> = cases().iter().map(|case| case.op.name()).collect();
        let mut families: Vec<&str> = kiln_kernels::families().map(|f| f.op).collect();
        families.sort();
        assert_eq!(cases, families);
    }

    #[test]
    fn shapes_agree() {
        for case in cases() {
            let types: Vec<TensorType> =
                case.inputs.iter().map(|i| TensorType::new(DType::F32, &i.shape)).collect();
            let inferred = case.op.infer(&types.iter().collect::<Vec<_>>());
            assert!(inferred.is_ok(), "{}: {inferred:?}", case.op.name());
        }
    }
}
