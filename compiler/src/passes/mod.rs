//! Graph to graph: each pass is one file, and [`PASSES`] lists them all in the order in which they
//! run.
//!
//! A pass changes a graph and says how often it did. The driver removes dead nodes, verifies the
//! graph after every pass that changed it, and names the pass in any error.

pub mod chain;
pub(crate) mod contraction;
mod cse;
mod fold_concat;
mod fold_constants;
mod fold_upsample;
pub mod fp16_activations;
mod fuse_activation;
mod fuse_add;
mod fuse_norm;
pub mod hoist;
mod merge_qkv;
mod merge_rows;
pub mod unfuse_norm;

use anyhow::{Context as _, Result};
use kiln_ir::{DType, Graph, ValueId, verify};
use std::ops::RangeInclusive;

use crate::device::DeviceProfile;
use crate::model::NetworkGraph;
use crate::strategy::Strategy;
use kiln_bundle::plan::Role;

/// A pass.
pub struct Pass {
    /// When it runs.
    pub stage: Stage,
    /// Name in errors and reports.
    pub name: &'static str,
    /// What it does.
    pub run: Run,
}

/// When a pass runs. Stages are in order; a later one knows more of the plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// On every graph as it was built: computes things once, or at compile time.
    Declutter,
    /// On every graph: makes one op of several.
    Fuse,
    /// For a strategy, before the split: what crosses between networks has one type on both sides.
    Strategy,
    /// Takes networks that run more rarely out of the U-Net.
    Split,
    /// For a device and a strategy, on each network.
    Device,
}

/// What a pass does to a graph; the number is that of the places it changed.
pub enum Run {
    /// Rewrites every graph.
    Always(fn(&mut Graph) -> Result<usize>),
    /// Rewrites the graphs for which the condition holds.
    If(fn(&Setting) -> bool, fn(&mut Graph) -> Result<usize>),
    /// Rewrites a graph as device and strategy ask for it.
    For(fn(&mut Graph, &Setting) -> Result<usize>),
    /// Makes several networks of the U-Net.
    Split(fn(&NetworkGraph) -> Result<Vec<NetworkGraph>>),
}

/// What a graph is optimized for.
pub struct Setting<'a> {
    /// What its network is for.
    pub role: Role,
    /// The strategy.
    pub strategy: Strategy,
    /// The device.
    pub profile: &'a DeviceProfile,
}

/// All passes, in the order in which they run.
pub const PASSES: &[Pass] = &[
    Pass { stage: Stage::Declutter, name: "cse", run: Run::Always(cse::run) },
    Pass { stage: Stage::Declutter, name: "fold_constants", run: Run::Always(fold_constants::run) },
    Pass { stage: Stage::Declutter, name: "fold_upsample", run: Run::Always(fold_upsample::run) },
    Pass { stage: Stage::Declutter, name: "fold_concat", run: Run::Always(fold_concat::run) },
    Pass { stage: Stage::Fuse, name: "fuse_add", run: Run::Always(fuse_add::run) },
    Pass { stage: Stage::Fuse, name: "fuse_activation", run: Run::Always(fuse_activation::run) },
    // Residuals, which an epilogue adds after the activation.
    Pass { stage: Stage::Fuse, name: "fuse_add_again", run: Run::Always(fuse_add::run) },
    Pass { stage: Stage::Fuse, name: "merge_qkv", run: Run::Always(merge_qkv::run) },
    Pass { stage: Stage::Fuse, name: "merge_rows", run: Run::Always(merge_rows::run) },
    Pass { stage: Stage::Fuse, name: "fuse_norm", run: Run::Always(fuse_norm::run) },
    Pass {
        stage: Stage::Strategy,
        name: "fp16_activations",
        run: Run::If(stores_fp16, fp16_activations::run),
    },
    Pass { stage: Stage::Strategy, name: "chain", run: Run::If(recomputes, chain::run) },
    Pass { stage: Stage::Split, name: "hoist", run: Run::Split(hoist::run) },
    Pass { stage: Stage::Device, name: "unfuse_norm", run: Run::For(unfuse_norm::run) },
];

fn stores_fp16(setting: &Setting) -> bool {
    setting.strategy.activations == DType::F16
}

/// The largest feature maps are those of the autoencoder.
fn recomputes(setting: &Setting) -> bool {
    setting.strategy.recompute && matches!(setting.role, Role::ImageEncoder | Role::Decoder)
}

impl Pass {
    /// Runs it on one graph, removes dead nodes and verifies; returns how many places it changed.
    fn rewrite(&self, graph: &mut Graph, setting: Option<&Setting>) -> Result<usize> {
        let at = format!("{} after pass {}", graph.name, self.name);
        let changes = match (&self.run, setting) {
            (Run::Always(run), _) => run(graph),
            (Run::If(holds, run), Some(setting)) if holds(setting) => run(graph),
            (Run::For(run), Some(setting)) => run(graph, setting),
            _ => return Ok(0),
        };
        let changes = changes.with_context(|| at.clone())?;
        graph.remove_dead();
        if changes > 0 {
            verify::verify(graph).context(at)?;
        }
        Ok(changes)
    }

    fn split(
        &self,
        split: fn(&NetworkGraph) -> Result<Vec<NetworkGraph>>,
        network: &NetworkGraph,
    ) -> Result<Vec<NetworkGraph>> {
        let at = || format!("{} after pass {}", network.name, self.name);
        let parts = split(network).with_context(at)?;
        parts.iter().try_for_each(|part| verify::verify(&part.graph)).with_context(at)?;
        Ok(parts)
    }
}

/// Runs the passes that depend on nothing but the graph; returns how many places each changed.
pub fn optimize(graph: &mut Graph) -> Result<Vec<(&'static str, usize)>> {
    verify::verify(graph).with_context(|| format!("{} before any pass", graph.name))?;
    let always = PASSES.iter().filter(|pass| matches!(pass.run, Run::Always(_)));
    always.map(|pass| Ok((pass.name, pass.rewrite(graph, None)?))).collect()
}

/// Runs the passes of some stages on networks; there are more of them after [`Stage::Split`].
pub fn run(
    stages: RangeInclusive<Stage>,
    mut networks: Vec<NetworkGraph>,
    strategy: Strategy,
    profile: &DeviceProfile,
) -> Result<Vec<NetworkGraph>> {
    for pass in PASSES.iter().filter(|pass| stages.contains(&pass.stage)) {
        if let Run::Split(split) = pass.run {
            let split = networks.iter().map(|network| pass.split(split, network));
            networks = split.collect::<Result<Vec<_>>>()?.concat();
            continue;
        }
        for NetworkGraph { role, graph, .. } in &mut networks {
            pass.rewrite(graph, Some(&Setting { role: *role, strategy, profile }))?;
        }
    }
    Ok(networks)
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
