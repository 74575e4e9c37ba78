//! Kernels of [`kiln_ir::ops::concat`].

use crate::elementwise::Shares;
use crate::launch::{Call, floating};
use crate::{Family, Lowering, Problem, Target, Variant};
use anyhow::Result;
use serde::Serialize;

/// Names of the sources in the templates.
const NAMES: [&str; 8] = ["X0", "X1", "X2", "X3", "X4", "X5", "X6", "X7"];

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[Variant::new("vector", computes, vector), Variant::naive(computes, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "concat", variants: VARIANTS }];

/// A source for the templates: its columns of the output.
#[derive(Serialize)]
struct Source {
    name: &'static str,
    channels: usize,
    start: usize,
    end: usize,
}

fn computes(problem: &Problem, target: &Target) -> bool {
    floating(problem, target) && problem.inputs.len() <= NAMES.len()
}

fn call<'a>(problem: &'a Problem) -> (Call<'a>, Vec<Source>) {
    let mut call = Call::new(problem);
    let mut sources = vec![];
    let mut end = 0;
    for (index, (name, operand)) in NAMES.into_iter().zip(problem.inputs).enumerate() {
        call = call.input(name, index);
        let (start, channels) = (end, operand.ty.channels());
        end = start + channels;
        sources.push(Source { name, channels, start, end });
    }
    (call.output("OUT").set("sources", &sources).set("channels", &end), sources)
}

fn vector(problem: &Problem, target: &Target) -> Result<Lowering> {
    let (call, sources) = call(problem);
    let rows = problem.output.rows();
    let widest = sources.iter().map(|s| s.channels).max().unwrap_or(1);
    let shares = Shares::new(rows, widest, 1, target);
    let strides: Vec<usize> = sources.iter().map(|s| s.channels).collect();
    let call = shares.set(call, &strides).set("rows", &rows);
    let template = include_str!("vector.cl.tera");
    let launch = call.launch("concat_vector", template, shares.global, Some(shares.local))?;
    Ok(Lowering::of(launch))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let global = [problem.output.channels(), problem.output.rows(), 1];
    let template = include_str!("naive.cl.tera");
    let launch = call(problem).0.launch("concat_naive", template, global, None)?;
    Ok(Lowering::of(launch))
}
