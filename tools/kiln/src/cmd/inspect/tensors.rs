//! Storage of the weights of contractions.

use kiln_bundle::plan::{ElementType, Plan};
use kiln_bundle::rationale::StoredWeight;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Result, Write};

use super::text::shorten;

/// A constant weight of a contraction.
#[derive(Serialize)]
pub struct TensorAccount<'a> {
    pub name: &'a str,
    pub shape: &'a [u32],
    pub storage: String,
    pub block: Option<u32>,
    pub relative_error: Option<f64>,
}

/// The tensors of a plan.
pub fn tensors(plan: &Plan) -> Vec<TensorAccount<'_>> {
    plan.rationale.weights.iter().map(TensorAccount::new).collect()
}

impl<'a> TensorAccount<'a> {
    fn new(weight: &'a StoredWeight) -> Self {
        let storage = match weight.dtype {
            ElementType::F32 => "f32",
            ElementType::F16 => "f16",
            ElementType::I8 => "i8",
            ElementType::I32 => "i32",
        };
        Self {
            name: &weight.name,
            shape: &weight.shape,
            storage: storage.to_string(),
            block: weight.block,
            relative_error: weight.relative_error,
        }
    }

    /// The storage in words. One scale an output channel is the normal case.
    fn kind(&self) -> String {
        let sum: u64 = self.shape.iter().skip(1).map(|d| u64::from(*d)).product();
        match self.block.filter(|block| u64::from(*block) != sum) {
            Some(block) => format!("{} in groups of {block}", self.storage),
            None => self.storage.clone(),
        }
    }
}

/// How many tensors are stored in each way, such as `296 i8, 12 i8 in groups of 64, 20 f16`.
pub fn counts(tensors: &[TensorAccount]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    tensors.iter().for_each(|t| *counts.entry(t.kind()).or_default() += 1);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let parts: Vec<_> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    parts.join(", ")
}

/// A line for each tensor, in the order of execution.
pub fn print(tensors: &[TensorAccount], out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{:<66}{:<18}{:<22}{:>8}", "weights", "shape", "stored as", "error")?;
    for t in tensors {
        let shape = t.shape.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
        let error = t.relative_error.map_or("-".into(), |e| format!("{:.2} %", e * 100.0));
        let name = shorten(t.name, 65);
        writeln!(out, "{name:<66}{shape:<18}{:<22}{error:>8}", t.kind())?;
    }
    writeln!(out, "{}\n", counts(tensors))
}
