//! Kernels of [`kiln_ir::ops::attention`].

use crate::launch::{Call, floating, literal};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;
use kiln_ir::ops::attention::{Attention, Columns};

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[Variant { name: "naive", applies: floating, lower: naive }];

/// This folder's line of the registry.
pub const FAMILY: Family = Family { op: "attention", variants: VARIANTS };

fn attention<'a>(problem: &'a Problem) -> Result<&'a Attention> {
    let Op::Attention(op) = problem.op else { bail!("attention over another op") };
    Ok(op)
}

/// Passes an operand: `NAME` and its parameters `name.stride`, `name.start`.
fn operand<'a>(
    problem: &Problem,
    call: Call<'a>,
    name: &'static str,
    key: [&'static str; 2],
    at: Columns,
) -> Call<'a> {
    let stride = problem.inputs[at.input].ty.channels();
    call.input(name, at.input).set(key[0], &stride).set(key[1], &at.start)
}

/// Rows of queries and of keys of one batch entry.
fn lengths(problem: &Problem, op: &Attention) -> (usize, usize) {
    let (q, k) = (&problem.inputs[op.q.input].ty, &problem.inputs[op.k.input].ty);
    (q.rows() / q.batch(), k.rows() / k.batch())
}

fn with_shape<'a>(problem: &Problem, op: &Attention, call: Call<'a>) -> Call<'a> {
    let (lq, lk) = lengths(problem, op);
    call.set("lq", &lq)
        .set("lk", &lk)
        .set("heads", &op.heads)
        .set("d", &op.head_channels())
        .set("channels", &op.channels)
        .set("scale", &literal(op.scale()))
        .set("causal", &op.causal)
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let op = attention(problem)?;
    let (lq, lk) = lengths(problem, op);
    let pairs = problem.inputs[op.q.input].ty.batch() * op.heads;
    let new = || with_shape(problem, op, Call::new(problem));

    let scores = operand(problem, new(), "Q", ["q_stride", "q_start"], op.q);
    let scores = operand(problem, scores, "K", ["k_stride", "k_start"], op.k).scratch("S", 0, true);
    let template = include_str!("naive_scores.cl.tera");
    let scores = scores.launch("attention_scores", template, [lk, lq, pairs], None)?;

    let softmax = new().flops(0).scratch("S", 0, false).scratch("P", 1, true);
    let template = include_str!("naive_softmax.cl.tera");
    let softmax = softmax.launch("attention_softmax", template, [lq, pairs, 1], None)?;

    let sum = new().flops(0).scratch("P", 1, false);
    let sum = operand(problem, sum, "V", ["v_stride", "v_start"], op.v).output("OUT");
    let global = [op.head_channels(), lq, pairs];
    let sum = sum.launch("attention_sum", include_str!("naive.cl.tera"), global, None)?;

    let bytes = 4 * (pairs * lq * lk) as u64;
    Ok(Lowering {
        launches: vec![scores, softmax, sum],
        scratch_bytes: vec![bytes, bytes],
        ..Lowering::default()
    })
}
