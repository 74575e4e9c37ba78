//! Kernels of [`kiln_ir::ops::attention`].

mod flash;
mod flash_cpu;
mod flash_mma;
mod flash_mma_wide;
mod flash_mobile;

use crate::launch::{Call, floating, literal};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[
    flash_cpu::VARIANT,
    flash_mma::VARIANT,
    flash_mma_wide::VARIANT,
    flash_mobile::HALF_VARIANT,
    flash_mobile::VARIANT,
    Variant::new("flash", flash::computes, flash::lower),
    Variant::naive(floating, naive),
];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "attention", variants: VARIANTS }];

/// The op's extents. `d` is the number of columns of a head.
struct Extents {
    n: usize,
    heads: usize,
    lq: usize,
    lk: usize,
    d: usize,
    causal: bool,
    scale: f32,
    /// Input, row stride and first column of queries, keys and values.
    q: (usize, usize, usize),
    k: (usize, usize, usize),
    v: (usize, usize, usize),
}

impl Extents {
    fn new(problem: &Problem) -> Result<Self> {
        let Op::Attention(op) = problem.op else {
            bail!("attention over another op");
        };
        let [q, k, v] =
            [op.q, op.k, op.v].map(|c| (c.input, problem.inputs[c.input].ty.channels(), c.start));
        let (queries, keys) = (&problem.inputs[q.0].ty, &problem.inputs[k.0].ty);
        let n = queries.batch();
        Ok(Self {
            n,
            heads: op.heads,
            lq: queries.rows() / n,
            lk: keys.rows() / n,
            d: op.head_channels(),
            causal: op.causal,
            scale: op.scale(),
            q,
            k,
            v,
        })
    }

    /// Arithmetic of one of the two contractions, in FLOP.
    fn flops(&self) -> u64 {
        2 * (self.n * self.heads * self.lq * self.lk * self.d) as u64
    }

    /// A launch that reads queries, keys and values and writes the result.
    fn call<'a>(&self, problem: &'a Problem<'a>) -> Call<'a> {
        let call = self.set(Call::new(problem)).input("Q", self.q.0);
        call.input("K", self.k.0).input("V", self.v.0).output("OUT")
    }

    fn set<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.set("heads", &self.heads)
            .set("lq", &self.lq)
            .set("lk", &self.lk)
            .set("d", &self.d)
            .set("channels", &(self.heads * self.d))
            .set("causal", &self.causal)
            .set("scale", &literal(self.scale))
            .set("scale_log2", &literal(self.scale * std::f32::consts::LOG2_E))
            .set("q_stride", &self.q.1)
            .set("q_start", &self.q.2)
            .set("k_stride", &self.k.1)
            .set("k_start", &self.k.2)
            .set("v_stride", &self.v.1)
            .set("v_start", &self.v.2)
    }
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let rows = e.n * e.heads * e.lq;
    let call = || e.set(Call::new(problem));
    let scores = call()
        .flops(e.flops())
        .input("Q", e.q.0)
        .input("K", e.k.0)
        .scratch("SCORES", 0, true)
        .launch(
            "attention_scores",
            include_str!("naive_scores.cl.tera"),
            [e.lk, e.lq, e.n * e.heads],
            None,
        )?;
    let softmax = call().flops(5 * (rows * e.lk) as u64).scratch("SCORES", 0, true).launch(
        "attention_softmax",
        include_str!("naive_softmax.cl.tera"),
        [rows, 1, 1],
        None,
    )?;
    let gather = call()
        .flops(e.flops())
        .scratch("SCORES", 0, false)
        .input("V", e.v.0)
        .output("OUT")
        .launch(
            "attention_naive",
            include_str!("naive.cl.tera"),
            [e.heads * e.d, e.lq, e.n],
            None,
        )?;
    Ok(Lowering {
        launches: vec![scores, softmax, gather],
        scratch_bytes: vec![4 * (rows * e.lk) as u64],
        ..Lowering::default()
    })
}
