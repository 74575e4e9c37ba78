//! Every contraction variant against the ops' reference evaluation.
//!
//! `small_*` also run under oclgrind, which reports memory errors and races. The tests load the
//! OpenCL library at run time, so it comes as a driver, not through its wrapper:
//! ```sh
//! echo /usr/lib/oclgrind/liboclgrind-rt-icd.so > /tmp/oclgrind.icd
//! OCL_ICD_VENDORS=/tmp/oclgrind.icd OCLGRIND_DATA_RACES=1 OCLGRIND_STOP_ERRORS=1 \
//!     cargo test --release -p kiln-kernels --test contraction small_ -- --test-threads=1
//! ```

mod harness;

use harness::{Runner, Tolerance, check_parts, compare, random, stored};
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, Tensor, TensorType};
use kiln_kernels::{Operand, Problem, Target, candidates};

/// An op with the shapes and storage types of its operands.
#[derive(Clone)]
struct Case {
    op: Op,
    inputs: Vec<Operand>,
    max_weight_bytes: u64,
    max_scratch_bytes: u64,
}

/// Storage types of a case.
#[derive(Clone, Copy)]
struct Storage {
    activations: DType,
    weights: DType,
    /// Of INT8 weights; `WHOLE` for one scale an output channel.
    block: usize,
}

const WHOLE: usize = usize::MAX;

const STORAGES: [Storage; 5] = [
    Storage { activations: DType::F32, weights: DType::F32, block: 0 },
    Storage { activations: DType::F32, weights: DType::F16, block: 0 },
    Storage { activations: DType::F16, weights: DType::F32, block: 0 },
    Storage { activations: DType::F16, weights: DType::F16, block: 0 },
    INT8,
];

const PLAIN: Storage = STORAGES[0];
const INT8: Storage = Storage { activations: DType::F32, weights: DType::I8, block: WHOLE };

fn blocks_of(block: usize) -> Storage {
    Storage { block, ..INT8 }
}

/// All storage types take turns beside the plain one.
fn two_storages(i: usize) -> [Storage; 2] {
    [PLAIN, STORAGES[1 + i % 4]]
}

fn case(op: Op, sources: &[&[usize]], weights: &[usize], storage: Storage) -> Case {
    let activation = |s: &[usize]| Operand::new(TensorType::new(storage.activations, s));
    let constant = |s: &[usize]| match (storage.weights, s.len()) {
        (DType::I8, 1) => Operand::constant(TensorType::f32(s)),
        (dtype, _) => {
            let block = storage.block.min(s[1..].iter().product());
            Operand { block, ..Operand::constant(TensorType::new(dtype, s)) }
        }
    };
    let epilogue = match &op {
        Op::Matmul(op) => op.epilogue.clone(),
        Op::Conv2d(op) => op.epilogue.clone(),
        _ => unreachable!(),
    };
    let mut inputs: Vec<_> = sources.iter().map(|s| activation(s)).collect();
    if matches!(&op, Op::Conv2d(op) if op.prologue.is_some()) {
        inputs.push(Operand::new(TensorType::f32(&[sources[0][0], 2, weights[1]])));
    }
    inputs.push(constant(weights));
    // The shape of the output does not depend on the epilogue's inputs.
    let mut bare = op.clone();
    match &mut bare {
        Op::Matmul(op) => op.epilogue = only_activation(&epilogue),
        Op::Conv2d(op) => op.epilogue = only_activation(&epilogue),
        _ => unreachable!(),
    }
    let types: Vec<_> = inputs.iter().map(|i| &i.ty).collect();
    let output = bare.infer(&types).unwrap();
    if epilogue.bias {
        inputs.push(constant(&[weights[0]]));
    }
    if let Some(offset) = epilogue.row_offset {
        inputs.push(activation(&[1, offset + weights[0] + 3]));
    }
    if epilogue.residual {
        inputs.push(activation(&output.shape));
    }
    Case { op, inputs, max_weight_bytes: u64::MAX, max_scratch_bytes: u64::MAX }
}

fn only_activation(e: &Epilogue) -> Epilogue {
    Epilogue { activation: e.activation, ..Epilogue::default() }
}

fn matmul(m: usize, k: &[usize], n: usize, epilogue: Epilogue, storage: Storage) -> Case {
    let shapes: Vec<_> = k.iter().map(|k| vec![1, m, *k]).collect();
    let op = Matmul { sources: k.len(), epilogue };
    let views: Vec<_> = shapes.iter().map(|s| s.as_slice()).collect();
    case(op.into(), &views, &[n, k.iter().sum()], storage)
}

fn conv2d(op: Conv2d, picture: [usize; 3], c: &[usize], o: usize, storage: Storage) -> Case {
    let [n, h, w] = picture;
    let shapes: Vec<_> = c.iter().map(|c| vec![n, h, w, *c]).collect();
    let views: Vec<_> = shapes.iter().map(|s| s.as_slice()).collect();
    let op = Conv2d { sources: c.len(), ..op };
    let weights = [o, c.iter().sum(), op.kernel, op.kernel];
    case(op.into(), &views, &weights, storage)
}

fn epilogue(bias: bool, row: Option<usize>, activation: Activation, residual: bool) -> Epilogue {
    Epilogue { bias, row_offset: row, activation, residual }
}

/// The combinations that occur in Stable Diffusion, and all at once.
fn epilogues() -> Vec<Epilogue> {
    use Activation::{Geglu, Gelu, Silu};
    vec![
        Epilogue::default(),
        epilogue(true, None, IDENTITY, false),
        epilogue(true, Some(5), IDENTITY, false),
        epilogue(true, None, IDENTITY, true),
        epilogue(true, None, Silu, false),
        epilogue(true, None, Gelu, false),
        epilogue(true, None, Geglu, false),
        epilogue(false, None, Geglu, false),
        epilogue(true, Some(7), Silu, true),
        epilogue(true, Some(7), Geglu, true),
    ]
}

const IDENTITY: Activation = Activation::None;

/// Runs the best variants of a case on a target; bounds follow from the length of the sum and the
/// rounding of the storage types.
fn check(target: &Target, case: &Case, most_variants: usize) {
    let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
    let output = case.op.infer(&types).unwrap();
    let k = match &case.op {
        Op::Matmul(op) => types[op.sources].shape[1],
        Op::Conv2d(op) => {
            let weights = types[op.weights_index()];
            weights.elem_count() / weights.shape[0]
        }
        _ => unreachable!(),
    };
    let values: Vec<_> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(i, input)| {
            let is_weight = input.constant && input.ty.shape.len() > 1;
            let scale = if is_weight { 2.0 / (k as f32).sqrt() } else { 1.0 };
            let values = random(i as u64 + 1, input.ty.elem_count());
            if input.ty.dtype == DType::I8 {
                return quantized(&input.ty.shape, &values, input.block, scale);
            }
            stored(input.ty.dtype, &values.iter().map(|v| v * scale).collect::<Vec<_>>())
        })
        .collect();
    let tensors: Vec<_> =
        case.inputs.iter().zip(&values).map(|(i, v)| Tensor::new(&i.ty.shape, v.clone())).collect();
    let expected = case.op.eval(&tensors.iter().collect::<Vec<_>>());
    let problem = Problem {
        op: &case.op,
        inputs: &case.inputs,
        output: &output,
        max_weight_bytes: case.max_weight_bytes,
        max_scratch_bytes: case.max_scratch_bytes,
    };
    let normalized = matches!(&case.op, Op::Conv2d(op) if op.prologue.is_some());
    // What is multiplied is up to 1, normalized up to 1 * 1 + 1.
    let largest = if normalized { 2.0 } else { 1.0 };
    let abs = largest * (16.0 + 2.0 * (k as f32).sqrt()) * f32::EPSILON;
    // Where a normalized copy is stored in halves, its values of about 1 are off by up to 2^-11, each
    // by itself, in sums whose weights are 1.2 / sqrt(k) in the mean: 6 standard deviations.
    let copies = normalized && types[0].dtype == DType::F16;
    let copied = 6.0 * 1.2 * 2f32.powi(-11) / 3f32.sqrt();
    let runner = Runner::shared();
    let variants = candidates(&problem, target);
    assert!(!variants.is_empty(), "{} has no variant", case.op.name());
    for variant in variants.into_iter().take(most_variants) {
        let lowering = (variant.lower)(&problem, target).unwrap();
        let what = || {
            let types: Vec<_> = types.iter().map(|t| t.to_string()).collect();
            format!("{} {} {} {types:?}", variant.name, case.op.name(), case.op.attributes())
        };
        verify_regions(&problem, &lowering, &what());
        if !variant.name.starts_with("winograd") {
            let flops: u64 = lowering.launches.iter().map(|l| l.flops).sum();
            assert_eq!(flops, case.op.flops(&types, &output), "{}", what());
        }
        let winograd = variant.name.starts_with("winograd");
        let exact = winograd || ["naive", "tiled_cpu"].contains(&variant.name);
        let abs = if copies && !exact { abs + copied } else { abs };
        // Tensor cores cut off what they add below the sum's last place, at each step of 8 or 16.
        let halves = types[0].dtype == DType::F16;
        let cut = if variant.name == "mma" && halves {
            largest * k as f32 / 4.0 * f32::EPSILON
        } else {
            0.0
        };
        let tolerance = Tolerance { abs: abs + cut, rel: 16.0 * f32::EPSILON };
        let tolerance = match winograd {
            true => winograd_tolerance(&case.inputs, tolerance),
            false => tolerance,
        };
        let prepared = runner.prepare(&problem, &lowering, &values);
        runner.run(&prepared);
        let found = runner.output(&prepared);
        compare(&found, &expected.data, output.dtype, tolerance, &what());
        check_parts(runner, &problem, &lowering, &values, (variant.name, &found));
    }
}

/// Winograd's transforms multiply by up to 5 and 8 in each direction and cancel: sums, of about 1,
/// are some times as large before they are transformed back. FP16 windows are rounded to 11 bits
/// after `winograd2` transforms them; `winograd4` keeps them in FP32.
fn winograd_tolerance(inputs: &[Operand], direct: Tolerance) -> Tolerance {
    let rounded = inputs.iter().any(|i| i.constant && i.ty.dtype == DType::F16);
    let windows = if rounded { 4.0 / 2048.0 } else { 0.0 };
    Tolerance { abs: 8.0 * direct.abs + windows, ..direct }
}

/// Weights that INT8 holds without error: for each block of a sum a power of two, about `spread`
/// over 127, times whole numbers of which the first is 127.
fn quantized(shape: &[usize], values: &[f32], block: usize, spread: f32) -> Vec<f32> {
    let (channels, k) = (shape[1], shape[1..].iter().product::<usize>());
    let window = k / channels;
    let value = |(i, v): (usize, &f32)| {
        let (n, c, tap) = (i / k, i % k / window, i % window);
        let place = tap * channels + c;
        let number = if place % block == 0 { 127.0 } else { (v * 127.0).round() };
        let exponent = (spread / 127.0).log2().round() as i32 - ((n + place / block) % 3) as i32;
        number * 2.0f32.powi(exponent)
    };
    values.iter().enumerate().map(value).collect()
}

/// Launches stay within the limit, and name the whole of a constant between them, some of it again.
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

/// Every variant of every case on a CPU target, and the best variant on one of the others in
/// turn; their kernels take drivers for CPUs long to compile.
fn check_all(cases: &[Case]) {
    let others = other_targets();
    for (i, case) in cases.iter().enumerate() {
        check(&Target::cpu(), case, usize::MAX);
        check(&others[i % others.len()], case, 1);
    }
}

/// Every variant on every target. Lines of the im2win scratch must not be a power of two long:
/// oclgrind 21.10 truncates to odd widths without masking.
fn check_everywhere(cases: &[Case]) {
    for target in other_targets().into_iter().chain([Target::cpu()]) {
        cases.iter().for_each(|case| check(&target, case, usize::MAX));
    }
}

fn other_targets() -> Vec<Target> {
    let narrow = Target { vector_width: 4, tile_rows: 5, tile_columns: 12, ..Target::cpu() };
    let wide = Target { tile_rows: 6, tile_columns: 8, ..Target::mobile() };
    vec![Target::gpu(), narrow, Target::mobile(), wide, Target { vector_width: 8, ..Target::cpu() }]
}

fn same(kernel: usize, stride: usize) -> Conv2d {
    Conv2d::new(kernel, stride)
}

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
    check_all(&cases);
}

#[test]
fn matmul_epilogues() {
    let cases: Vec<_> = epilogues()
        .into_iter()
        .flat_map(|e| {
            [matmul(13, &[41], 72, e.clone(), PLAIN), matmul(30, &[64], 64, e, STORAGES[3])]
        })
        .collect();
    check_all(&cases);
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
    check_all(&cases);
}

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
        .flat_map(|(i, (op, picture, c, o))| {
            two_storages(i).map(|s| conv2d(op.clone(), picture, c, o, s))
        })
        .collect();
    check_all(&cases);
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
    check_all(&cases);
}

#[test]
fn conv2d_of_split_weights() {
    let e = epilogue(true, Some(2), IDENTITY, true);
    let op = Conv2d { epilogue: e, ..same(3, 1) };
    let mut cases = vec![conv2d(op, [1, 4, 13], &[16], 200, PLAIN)];
    cases.iter_mut().for_each(|c| c.max_weight_bytes = 40_000);
    check_all(&cases);
}

/// More patches than are there at a time, whole and with weights that several launches read.
#[test]
fn winograd_in_stripes() {
    let e = epilogue(true, Some(2), Activation::Silu, true);
    let op = Conv2d { epilogue: e, ..same(3, 1) };
    let whole = conv2d(op, [1, 131, 126], &[64], 40, PLAIN);
    let split = Case { max_weight_bytes: 300_000, ..whole.clone() };
    let narrow = Target { vector_width: 8, tile_rows: 6, tile_columns: 16, ..Target::cpu() };
    for (target, case) in [(Target::cpu(), split), (narrow, whole)] {
        let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
        let output = case.op.infer(&types).unwrap();
        let problem = Problem {
            op: &case.op,
            inputs: &case.inputs,
            output: &output,
            max_weight_bytes: case.max_weight_bytes,
            max_scratch_bytes: case.max_scratch_bytes,
        };
        let winograd = &candidates(&problem, &target)[0];
        let launches = (winograd.lower)(&problem, &target).unwrap().launches.len();
        assert!(winograd.name == "winograd4" && launches > 2, "{launches} of {}", winograd.name);
        check(&target, &case, 2);
    }
}

#[test]
fn matmul_of_int8_weights() {
    use Activation::{Geglu, Gelu};
    let e = |activation| epilogue(true, Some(3), activation, true);
    let half = Storage { activations: DType::F16, ..blocks_of(64) };
    let mut cases = vec![
        matmul(13, &[300], 40, e(IDENTITY), INT8),
        matmul(13, &[320], 40, e(IDENTITY), blocks_of(64)),
        matmul(1, &[32], 35, e(Gelu), blocks_of(16)),
        matmul(25, &[64, 128], 72, e(Geglu), blocks_of(32)),
        matmul(25, &[41], 72, e(Geglu), INT8),
        matmul(600, &[128], 48, e(IDENTITY), blocks_of(128)),
        matmul(30, &[1280], 35, e(IDENTITY), half),
    ];
    let mut split = cases[..5].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 5_000);
    cases.extend(split);
    check_all(&cases);
}

/// Stripes of one line, of some (the last shorter), of one picture and of all.
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
    let half = Storage { activations: DType::F16, ..blocks_of(16) };
    let cases = [
        conv2d(op(1, Silu), [2, 7, 5], &[23], 40, PLAIN),
        conv2d(op(1, Silu), [1, 6, 13], &[16, 7], 36, STORAGES[1]),
        conv2d(op(1, None), [2, 4, 16], &[32], 33, STORAGES[3]),
        conv2d(op(2, Silu), [1, 9, 26], &[13], 32, STORAGES[2]),
        conv2d(end, [2, 8, 6], &[16], 40, PLAIN),
        conv2d(up, [1, 4, 6], &[32], 34, blocks_of(32)),
        conv2d(op(1, Silu), [2, 5, 7], &[32, 16], 36, half),
    ];
    let others = other_targets();
    for (i, whole) in cases.into_iter().enumerate() {
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
    let half = Storage { activations: DType::F16, ..blocks_of(32) };
    let mut cases = vec![
        conv2d(op(IDENTITY), [1, 4, 17], &[23], 40, INT8),
        conv2d(op(IDENTITY), [2, 5, 7], &[64], 36, blocks_of(64)),
        conv2d(op(Activation::Silu), [1, 6, 26], &[320, 64], 36, blocks_of(64)),
        conv2d(up, [1, 4, 6], &[32], 33, half),
        conv2d(
            Conv2d { epilogue: epilogue(true, None, IDENTITY, false), ..same(3, 2) },
            [1, 9, 13],
            &[16],
            35,
            blocks_of(16),
        ),
    ];
    let mut split = cases[..3].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 40_000);
    cases.extend(split);
    check_all(&cases);
}

/// Rows of whole 16-byte parts: what the tensor cores take, with sums long enough to be computed in
/// parts. Also the best variant of other GPUs.
#[test]
fn contractions_of_whole_parts() {
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
                matmul(70, &[32, 96], 200, e(Geglu), s),
                matmul(200, &[96], 150, e(Geglu), s),
                conv2d(op(3, 1), [2, 5, 7], &[64], 40, s),
                conv2d(op(3, 1), [1, 9, 8], &[32, 64], 130, s),
                conv2d(op(3, 2), [1, 9, 26], &[32], 32, s),
                conv2d(up.clone(), [1, 4, 6], &[32], 33, s),
                conv2d(end.clone(), [1, 8, 26], &[32], 32, s),
                conv2d(normalized.clone(), [2, 6, 7], &[32, 64], 40, s),
            ]
        })
        .collect();
    cases.push(matmul(40, &[40], 72, e(IDENTITY), PLAIN));
    cases.push(conv2d(op(3, 1), [1, 6, 6], &[40], 24, STORAGES[3]));
    let mut split = cases[..4].to_vec();
    split.iter_mut().for_each(|c| c.max_weight_bytes = 60_000);
    cases.extend(split);
    cases.push(Case { max_scratch_bytes: 0, ..cases[9].clone() });
    // Without tensor cores, what they do takes a thousand times as long.
    let step = if Runner::shared().vendor().contains("NVIDIA") { 1 } else { 7 };
    for case in cases.iter().step_by(step) {
        let types: Vec<_> = case.inputs.iter().map(|i| &i.ty).collect();
        let output = case.op.infer(&types).unwrap();
        let inputs = &case.inputs;
        let (max_weight_bytes, max_scratch_bytes) = (case.max_weight_bytes, case.max_scratch_bytes);
        let problem =
            Problem { op: &case.op, inputs, output: &output, max_weight_bytes, max_scratch_bytes };
        assert_eq!(candidates(&problem, &Target::nvidia())[0].name, "mma", "{problem}");
        check(&Target::nvidia(), case, 1);
    }
    cases.iter().step_by(9).for_each(|case| check(&Target::gpu(), case, 1));
}

#[test]
fn small_matmul() {
    let e = epilogue(true, Some(1), Activation::Geglu, true);
    check_everywhere(&[
        matmul(13, &[5, 18], 36, epilogue(true, None, Activation::Gelu, true), PLAIN),
        matmul(3, &[19], 40, e.clone(), STORAGES[3]),
        matmul(3, &[32], 40, e.clone(), blocks_of(16)),
        matmul(3, &[19], 40, e, INT8),
    ]);
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
        conv2d(same(3, 1), [1, 3, 5], &[16, 32], 17, blocks_of(16)),
        Case { max_scratch_bytes: 0, ..conv2d(normalized, [1, 3, 5], &[5, 3], 6, PLAIN) },
    ]);
}
