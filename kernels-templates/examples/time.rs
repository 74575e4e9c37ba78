//! Times kernels on the first OpenCL device (`KILN_TEST_DEVICE` picks another): bytes moved and
//! arithmetic a second, best of several
//! runs of each launch.
//!
//! `cargo run --release -p kiln-kernels --example time [cpu|gpu] [name]`

#[path = "../tests/harness/mod.rs"]
mod harness;

use harness::{Runner, random, stored};
use kiln_ir::ops::{
    attention::Attention, epilogue::Activation, geglu::Geglu, group_norm::GroupNorm,
    layer_norm::LayerNorm,
};
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{Operand, Problem, Target};

const RUNS: usize = 20;

fn cases() -> Vec<(&'static str, Op, Vec<Vec<usize>>)> {
    let norm =
        || Op::from(GroupNorm { sources: 1, groups: 32, eps: 1e-5, activation: Activation::Silu });
    let group_norm = |x: [usize; 4]| (norm(), vec![x.to_vec(), vec![x[3]], vec![x[3]]]);
    let attention = |lq: usize, lk: usize, heads: usize, d: usize, causal: bool| {
        let (q, k) = (vec![1, lq, heads * d], vec![1, lk, heads * d]);
        (Op::from(Attention::separate(heads * d, heads, causal)), vec![q, k.clone(), k])
    };
    let case = |name, (op, shapes)| (name, op, shapes);
    vec![
        case("group_norm+silu 1x64x64x320", group_norm([1, 64, 64, 320])),
        case("group_norm+silu 2x64x64x320", group_norm([2, 64, 64, 320])),
        case("group_norm+silu 1x512x512x128", group_norm([1, 512, 512, 128])),
        case("group_norm+silu 1x512x512x256", group_norm([1, 512, 512, 256])),
        (
            "layer_norm 4096x320",
            LayerNorm { eps: 1e-5 }.into(),
            vec![vec![4096, 320], vec![320], vec![320]],
        ),
        ("geglu 4096x2560", Geglu.into(), vec![vec![4096, 2560]]),
        case("attention 5 heads 4096x4096x64", attention(4096, 4096, 5, 64, false)),
        case("attention 10 heads 1024x1024x64", attention(1024, 1024, 10, 64, false)),
        case("attention 20 heads 64x64x64", attention(64, 64, 20, 64, false)),
        case("attention 5 heads 4096x77x64", attention(4096, 77, 5, 64, false)),
        case("attention 16 heads causal 77x77x64", attention(77, 77, 16, 64, true)),
        case("attention 1 head 4096x4096x512", attention(4096, 4096, 1, 512, false)),
    ]
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let gpu = args.first().is_some_and(|a| a == "gpu");
    let nvidia = Runner::shared().vendor().contains("NVIDIA");
    let target = match (gpu, nvidia) {
        (true, true) => Target::nvidia(),
        (true, false) => Target::gpu(),
        _ => Target::cpu(),
    };
    let wanted = args.get(1).map_or("", |a| a.as_str());
    let runner = Runner::shared();
    for (name, op, shapes) in cases().into_iter().filter(|(n, ..)| n.contains(wanted)) {
        for storage in [DType::F32, DType::F16] {
            time(runner, &target, name, &op, &shapes, storage);
        }
    }
}

fn time(
    runner: &Runner,
    target: &Target,
    name: &str,
    op: &Op,
    shapes: &[Vec<usize>],
    storage: DType,
) {
    let inputs: Vec<Operand> =
        shapes.iter().map(|s| Operand::new(TensorType::new(storage, s))).collect();
    let types: Vec<&TensorType> = inputs.iter().map(|o| &o.ty).collect();
    let output = op.infer(&types).unwrap();
    let problem = Problem {
        op,
        inputs: &inputs,
        output: &output,
        max_weight_bytes: u64::MAX,
        max_scratch_bytes: u64::MAX,
    };
    let values: Vec<Vec<f32>> =
        types.iter().map(|t| stored(storage, &random(1, t.elem_count()))).collect();
    let variant = kiln_kernels::candidates(&problem, target)[0];
    let lowering = (variant.lower)(&problem, target).unwrap();
    let prepared = runner.prepare(&problem, &lowering, &values);
    let mut each = vec![f64::INFINITY; lowering.launches.len()];
    for _ in 0..RUNS {
        let seconds = runner.run_each(&prepared);
        each.iter_mut().zip(seconds).for_each(|(best, s)| *best = best.min(s));
    }
    let best: f64 = each.iter().sum();
    let bytes: u64 = types.iter().map(|t| t.size_bytes()).sum::<u64>() + output.size_bytes();
    let flops = op.flops(&types, &output);
    println!(
        "{name:36} {storage} {:10} {:8.3} ms {:7.1} GB/s {:7.1} GFLOP/s  launches{}",
        variant.name,
        best * 1e3,
        bytes as f64 / best / 1e9,
        flops as f64 / best / 1e9,
        each.iter().map(|s| format!(" {:.3}", s * 1e3)).collect::<String>()
    );
}
