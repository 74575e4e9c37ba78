//! Graph to graph: each pass is one file, listed here in the order in which they run.
//!
//! A pass changes a graph and says how often it did. The driver removes what became dead,
//! verifies the graph after every pass, and names the pass in any error.

pub mod chain;
pub(crate) mod contraction;
mod fold_concat;
mod fold_constants;
mod fold_upsample;
mod fuse_activation;
mod fuse_add;
mod fuse_norm;
pub mod halve;
pub mod hoist;
mod merge_qkv;
mod merge_rows;
pub mod part_norm;
mod share;

use anyhow::{Context, Result};
use kiln_ir::{Graph, ValueId, verify};

/// A pass.
pub struct Pass {
    /// Name in errors and reports.
    pub name: &'static str,
    /// Changes the graph; returns how many places it changed.
    pub run: fn(&mut Graph) -> Result<usize>,
}

/// All passes over a single graph, in order. After them [`halve`] chooses storage types, where a
/// plan wants it, [`hoist`] splits the U-Net, and [`part_norm`] undoes `fuse_norm` where that is faster.
pub const PASSES: &[Pass] = &[
    Pass { name: "share", run: share::run },
    Pass { name: "fold_constants", run: fold_constants::run },
    Pass { name: "fold_upsample", run: fold_upsample::run },
    Pass { name: "fold_concat", run: fold_concat::run },
    Pass { name: "fuse_add", run: fuse_add::run },
    Pass { name: "fuse_activation", run: fuse_activation::run },
    Pass { name: "fuse_residual", run: fuse_add::run },
    Pass { name: "merge_qkv", run: merge_qkv::run },
    Pass { name: "merge_rows", run: merge_rows::run },
    Pass { name: "fuse_norm", run: fuse_norm::run },
];

/// Runs all passes; returns how many places each changed.
pub fn optimize(graph: &mut Graph) -> Result<Vec<(&'static str, usize)>> {
    verify::verify(graph).with_context(|| format!("{} before any pass", graph.name))?;
    let mut report = Vec::new();
    for pass in PASSES {
        let context = || format!("{} after pass {}", graph.name, pass.name);
        let at = context();
        let changes = (pass.run)(graph).with_context(|| at.clone())?;
        graph.remove_dead();
        verify::verify(graph).with_context(|| at)?;
        report.push((pass.name, changes));
    }
    Ok(report)
}

/// The only reader of a value, if there is exactly one that reads it once and the value is not
/// an output.
fn sole_user(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let users = graph.users(value);
    let [user] = users.as_slice() else { return None };
    let uses = graph.operands(*user).iter().filter(|v| **v == value).count();
    (uses == 1 && !graph.is_output(value)).then_some(*user)
}

/// The ops of a graph in topological order, taken before the pass changes anything.
fn ops_in_order(graph: &Graph) -> Result<Vec<ValueId>> {
    let order = graph.topological()?;
    Ok(order.into_iter().filter(|id| graph.node(*id).op().is_some()).collect())
}
