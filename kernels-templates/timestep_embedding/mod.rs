//! Kernels of [`kiln_ir::ops::timestep_embedding`].

use crate::launch::{Call, floating, literal};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::{Result, bail};
use kiln_ir::Op;

/// The variants, best first.
pub const VARIANTS: &[Variant] = &[Variant::naive(floating, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "timestep_embedding", variants: VARIANTS }];

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let Op::TimestepEmbedding(op) = problem.op else {
        bail!("timestep_embedding over another op");
    };
    let half = op.channels / 2;
    let log_step = -f64::from(op.max_period).ln() / half as f64;
    let call = Call::new(problem)
        .input("X", 0)
        .output("OUT")
        .set("half", &half)
        .set("log_step", &literal(log_step as f32));
    let global = [half, problem.output.rows(), 1];
    let template = include_str!("naive.cl.tera");
    let launch = call.launch("timestep_embedding_naive", template, global, None)?;
    Ok(Lowering::of(launch))
}
