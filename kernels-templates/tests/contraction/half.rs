//! Half arithmetic of mobile GPUs: on the device if it has half arithmetic, otherwise emulated.

use crate::cases::*;
use crate::check::check;
use half::f16;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::contraction::mobile::mean_error;
use kiln_kernels::{Argument, Launch, Lowering, Operand, Problem, Target, candidates};
use kiln_testkit::half::{TRIAL, Way, trial, trials};
use kiln_testkit::{Runner, every, random, stored};

/// Everything in FP16.
const HALF: Storage = STORAGES[3];

/// `a * b + c`, rounded once. The sum is exact in multiples of 2^-48. Its first 24 bits are kept,
/// and a last bit says whether there are others.
fn exact(a: f16, b: f16, c: f16) -> f16 {
    let whole = |x: f16| (x.to_f64() * 2f64.powi(24)) as i128;
    let sum = whole(a) * whole(b) + (whole(c) << 24);
    let magnitude = sum.unsigned_abs();
    let shift = (128 - magnitude.leading_zeros()).saturating_sub(24);
    let kept = magnitude >> shift;
    let odd = kept | u128::from(kept << shift != magnitude);
    let value = odd as f64 * 2f64.powi(shift as i32 - 48);
    f16::from_f32(if sum < 0 { -value as f32 } else { value as f32 })
}

/// Three lists of FP16 values of every magnitude. Their products and sums tie, cancel, underflow
/// and overflow.
fn operands() -> [Vec<f16>; 3] {
    const COUNT: usize = 1 << 18;
    let bits = |seed| random(seed, COUNT).into_iter().map(|v| (v * 32768.0) as i16 as u16);
    let finite = |x: f16| if x.is_finite() { x } else { f16::from_bits(x.to_bits() & 0xbfff) };
    let all = |seed| bits(seed).map(f16::from_bits).map(finite);
    // Magnitudes near 1, so that products and sums overlap.
    let exponent = |b: u16| 0x3c00 - (b >> 10 & 7) * 0x400;
    let near = |seed| bits(seed).map(|b| f16::from_bits(b & 0x83ff | exponent(b)));
    let (mut a, mut b): (Vec<f16>, Vec<f16>) = (all(1).collect(), all(2).collect());
    a.extend(near(3));
    b.extend(near(4));
    let cancel = |(i, (a, b)): (usize, (&f16, &f16))| {
        let opposite = finite(f16::from_f32(-(a.to_f32() * b.to_f32())));
        f16::from_bits(opposite.to_bits() ^ (i as u16 & 3))
    };
    let mut c: Vec<f16> = all(5).take(COUNT / 2).collect();
    c.extend((c.len()..COUNT).map(|i| cancel((i, (&a[i], &b[i])))));
    c.extend(near(6).take(COUNT / 2));
    c.extend((c.len()..2 * COUNT).map(|i| cancel((i, (&a[i], &b[i])))));
    [a, b, c]
}

#[test]
fn multiply_add_of_halves_is_rounded_once() {
    let runner = Runner::shared();
    let lists = operands();
    let count = lists[0].len();
    let op: Op = Matmul { sources: 1, epilogue: Epilogue::default() }.into();
    let inputs = [0; 3].map(|_| Operand::new(TensorType::new(DType::F16, &[count])));
    let output = TensorType::f32(&[count]);
    let (max_weight_bytes, max_scratch_bytes) = (u64::MAX, 0);
    let problem =
        Problem { op: &op, inputs: &inputs, output: &output, max_weight_bytes, max_scratch_bytes };
    let input = |index| Argument::Input { index, offset_bytes: 0, len_bytes: 2 * count as u64 };
    let args = vec![input(0), input(1), input(2), Argument::Output];
    let launch = Launch::new(trial().into(), TRIAL, args, [count as u64 / 4, 1, 1], None);
    let launch = Launch { half_arithmetic: true, ..launch };
    let lowering = Lowering { launches: vec![launch], ..Lowering::default() };
    let values = lists.each_ref().map(|list| list.iter().map(|x| x.to_f32()).collect::<Vec<f32>>());
    let found = runner.load(&problem, &lowering, &values).result().unwrap();
    let [a, b, c] = &lists;
    for i in 0..count {
        let expected = exact(a[i], b[i], c[i]).to_f32();
        // A device may also round the product, and may lack subnormal FP16 values.
        let product = (a[i].to_f32() * b[i].to_f32()).abs();
        let allowed = match runner.half() {
            Way::Emulated => 0.0,
            _ => (product + expected.abs()) * 2f32.powi(-10) + 2f32.powi(-13),
        };
        let same = found[i] == expected || (found[i] - expected).abs() <= allowed;
        let overflows = allowed > 0.0 && product + c[i].to_f32().abs() >= 65504.0;
        assert!(same || overflows, "{} * {} + {}: {} for {expected}", a[i], b[i], c[i], found[i]);
    }
}

/// A kernel that cannot be built with half arithmetic is built without it.
#[test]
fn trials_fail_for_half_arithmetic_only() {
    let runner = Runner::shared();
    for trial in trials() {
        assert!(runner.builds_trial(&runner.half().source(&trial)), "{trial}");
        assert!(runner.builds_trial(&Way::Emulated.source(&trial)), "{trial}");
    }
}

/// Relative L2 error of a matrix product in runs of `run` FP16 products.
fn error(k: usize, run: u32, signed: bool) -> f64 {
    const ROWS: usize = 16;
    const COLUMNS: usize = 64;
    let values = |seed, count| {
        let list = random(seed, count).into_iter();
        stored(
            DType::F16,
            &list.map(|v| if signed { v } else { v.abs() / 8.0 }).collect::<Vec<_>>(),
        )
    };
    let case = matmul(
        ROWS,
        &[k],
        COLUMNS,
        Epilogue::default(),
        Storage { activations: DType::F16, ..HALF },
    );
    let (x, w) = (values(1, ROWS * k), values(2, COLUMNS * k));
    // The result is FP32, so that only sums have errors.
    let output = TensorType::f32(&[1, ROWS, COLUMNS]);
    let problem = Problem {
        op: &case.op,
        inputs: &case.inputs,
        output: &output,
        max_weight_bytes: u64::MAX,
        max_scratch_bytes: 0,
    };
    let target = Target { half_run: run, ..Target::mobile() };
    let variant = candidates(&problem, &target)[0];
    assert_eq!(variant.name, "tiled_mobile_half");
    let lowering = variant.lower(&problem, &target).unwrap();
    assert!(lowering.launches.iter().all(|launch| launch.half_arithmetic));
    let values = [x.clone(), w.clone()];
    let found = Runner::shared().load(&problem, &lowering, &values).result().unwrap();
    let (mut off, mut norm) = (0.0, 0.0);
    for (i, found) in found.iter().enumerate() {
        let (x, w) = (&x[i / COLUMNS * k..][..k], &w[i % COLUMNS * k..][..k]);
        let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        off += (f64::from(*found) - sum).powi(2);
        norm += sum.powi(2);
    }
    (off / norm).sqrt()
}

/// The bounds of `contraction/mobile` at the longest sums of Stable Diffusion: the mean error for
/// random signs, the largest error for one sign. Summing everything in FP16 would have more than
/// ten times the error.
#[test]
fn sums_in_runs_of_halves_keep_their_bound() {
    for (k, run) in [(320, 16), (2880, 8), (2880, 16), (2880, 32), (17280, 16)] {
        let (random, positive) = (error(k, run, true), error(k, run, false));
        println!("k {k}, run {run}: {random:.1e} of random signs, {positive:.1e} of one");
        let bound = f64::from(mean_error(run));
        assert!(random <= bound && random > bound / 8.0, "{k}, {run}: {random:e} for {bound:e}");
        assert!(positive <= f64::from(run) * 2f64.powi(-11), "{k}, {run}: {positive:e}");
    }
    let whole = error(2880, 2880, true);
    assert!(whole > 8.0 * error(2880, 16, true), "{whole:e}");
}

#[test]
fn contractions_in_halves() {
    use Activation::{Geglu, Gelu, None, Silu};
    let e = |activation| epilogue(true, Some(4), activation, true);
    let op = |kernel, stride| Conv2d { epilogue: e(Silu), ..same(kernel, stride) };
    let up = Conv2d { upsample: true, ..op(3, 1) };
    let end = Conv2d { padding: 0, padding_end: 1, ..op(3, 2) };
    let normalized = |activation| Conv2d { prologue: Some(activation), ..op(3, 1) };
    let mut cases = vec![
        matmul(1, &[37], 48, e(None), HALF),
        matmul(13, &[300], 3, e(Gelu), HALF),
        matmul(25, &[17, 40], 64, e(Geglu), HALF),
        matmul(25, &[1050], 40, e(None), HALF),
        matmul(77, &[128], 96, Epilogue::default(), HALF),
        conv2d(op(1, 2), [1, 7, 8], &[16], 32, HALF),
        conv2d(op(3, 1), [1, 8, 16], &[16, 7], 36, HALF),
        conv2d(end, [1, 8, 26], &[13], 32, HALF),
        conv2d(up, [1, 4, 16], &[3, 16], 3, HALF),
        conv2d(normalized(Silu), [2, 5, 7], &[32, 16], 36, HALF),
        conv2d(normalized(None), [1, 6, 13], &[20], 33, HALF),
    ];
    let mut split = vec![cases[2].clone(), cases[6].clone()];
    split.iter_mut().for_each(|c| c.max_weight_bytes = 4_000);
    cases.extend(split);
    cases.push(Case { max_scratch_bytes: 3_000, ..cases[9].clone() });
    let wide = Target { tile_rows: 6, tile_columns: 8, half_run: 8, ..Target::mobile() };
    let half = Target::mobile_half();
    for i in (0..cases.len()).step_by(every(2)) {
        check(if i % 3 == 2 { &wide } else { &half }, &cases[i], 1);
    }
}

/// Values that are not stored in FP16 are multiplied in FP32. Without half arithmetic, all values
/// are.
#[test]
fn values_of_other_types_are_multiplied_in_float() {
    let first =
        |target: &Target, case: &Case| candidates(&case.problem(&case.output()), target)[0].name;
    let case = |storage| matmul(4, &[64], 8, Epilogue::default(), storage);
    let half = Target::mobile_half();
    assert_eq!(first(&half, &case(HALF)), "tiled_mobile_half");
    assert_eq!(first(&Target::mobile(), &case(HALF)), "tiled_mobile");
    let quantized = Storage { activations: DType::F16, ..INT8 };
    for storage in [STORAGES[0], STORAGES[1], STORAGES[2], quantized] {
        assert_eq!(first(&half, &case(storage)), "tiled_mobile");
    }
}
