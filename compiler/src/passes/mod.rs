//! Passes from graph to graph, one file each. [`PASSES`] lists them in the order in which they run.
//!
//! A pass changes a graph and returns the number of changes. The driver removes dead nodes,
//! verifies the graph after every pass that changed it, and names the pass in any error.

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
mod shallow;
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
    /// Stage in which the pass runs.
    pub stage: Stage,
    /// Name in errors and reports.
    pub name: &'static str,
    /// The function.
    pub run: Run,
}

/// The stage in which a pass runs. Stages are in order. A later stage knows more of the plan.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// On every new graph: removes duplicate work, or moves work to compile time.
    Declutter,
    /// On every graph: merges several ops into one.
    Fuse,
    /// For a strategy, before the split, so that a value between networks has one type on both
    /// sides.
    Strategy,
    /// Splits networks that run less often from the U-Net.
    Split,
    /// For a device and a strategy, on each network.
    Device,
}

/// The function of a pass. A returned number counts changes.
pub enum Run {
    /// Rewrites every graph.
    Always(fn(&mut Graph) -> Result<usize>),
    /// Rewrites the graphs for which the condition holds.
    If(fn(&Setting) -> bool, fn(&mut Graph) -> Result<usize>),
    /// Rewrites a graph for a device and a strategy.
    For(fn(&mut Graph, &Setting) -> Result<usize>),
    /// Splits the U-Net into several networks.
    Split(fn(&NetworkGraph) -> Result<Vec<NetworkGraph>>),
}

/// The target of an optimization.
pub struct Setting<'a> {
    /// Role of the graph's network.
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
    // For residuals, which an epilogue adds after the activation.
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
    Pass { stage: Stage::Split, name: "shallow", run: Run::Split(shallow::run) },
    Pass { stage: Stage::Device, name: "unfuse_norm", run: Run::For(unfuse_norm::run) },
];

fn stores_fp16(setting: &Setting) -> bool {
    setting.strategy.activations == DType::F16
}

/// The largest feature maps are in the autoencoder.
fn recomputes(setting: &Setting) -> bool {
    setting.strategy.recompute && (setting.role == Role::ImageEncoder || setting.role.is_decoder())
}

impl Pass {
    /// Runs the pass on one graph, removes dead nodes and verifies. Returns the number of changes.
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

/// Runs the passes that depend only on the graph. Returns the number of changes of each.
pub fn optimize(graph: &mut Graph) -> Result<Vec<(&'static str, usize)>> {
    verify::verify(graph).with_context(|| format!("{} before any pass", graph.name))?;
    let always = PASSES.iter().filter(|pass| matches!(pass.run, Run::Always(_)));
    always.map(|pass| Ok((pass.name, pass.rewrite(graph, None)?))).collect()
}

/// Runs the passes of some stages on networks. [`Stage::Split`] adds networks.
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

/// The only reader of a value. `None` if there are several, if it reads the value more than once,
/// or if the value is an output.
fn sole_user(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let users = graph.users(value);
    let [user] = users.as_slice() else { return None };
    let uses = graph.operands(*user).iter().filter(|v| **v == value).count();
    (uses == 1 && !graph.is_output(value)).then_some(*user)
}

/// The ops of a graph in topological order. The list does not follow later changes.
fn ops_in_order(graph: &Graph) -> Result<Vec<ValueId>> {
    let order = graph.topological()?;
    Ok(order.into_iter().filter(|id| graph.node(*id).op().is_some()).collect())
}
