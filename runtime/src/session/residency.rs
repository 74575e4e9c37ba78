//! Which resident blocks are in the arena, and which must be loaded before a run.
//!
//! A resident block's buffer is its own only for its lifetime; networks outside of that may use
//! the space. Whether they do is in the plan, so what to load is known before anything runs.

use kiln_bundle::plan::{Arg, BlockId, Plan, Residency, Step};

use crate::weights::Run;

/// The rule of a plan, and what is loaded at the moment.
pub(super) struct Residents {
    /// For each network: the resident blocks that it reads.
    read: Vec<Vec<BlockId>>,
    /// For each network: the resident blocks whose space it uses for something else.
    clobbered: Vec<Vec<BlockId>>,
    /// For each block.
    loaded: Vec<bool>,
}

impl Residents {
    pub(super) fn of(plan: &Plan) -> Residents {
        let networks = 0..plan.networks.len();
        Residents {
            read: networks.clone().map(|network| blocks_read(plan, network)).collect(),
            clobbered: networks.map(|network| blocks_clobbered(plan, network)).collect(),
            loaded: vec![false; plan.blocks.len()],
        }
    }

    /// Adds to each network of a sequence the blocks to load before it. Assumes that the
    /// sequence runs to its end; if not, call [`forget`](Self::forget).
    pub(super) fn schedule(&mut self, networks: &[usize]) -> Vec<Run> {
        networks
            .iter()
            .map(|&network| {
                for block in &self.clobbered[network] {
                    self.loaded[block.index()] = false;
                }
                let mut residents = Vec::new();
                for &block in &self.read[network] {
                    if !std::mem::replace(&mut self.loaded[block.index()], true) {
                        residents.push(block);
                    }
                }
                Run { network, residents }
            })
            .collect()
    }

    /// Nothing is known to be loaded.
    pub(super) fn forget(&mut self) {
        self.loaded.fill(false);
    }
}

fn blocks_read(plan: &Plan, network: usize) -> Vec<BlockId> {
    let mut blocks = Vec::new();
    for step in &plan.networks[network].steps {
        let Step::Dispatch(dispatch) = step else { continue };
        for arg in &dispatch.args {
            if let Arg::Weight { block, .. } = *arg
                && matches!(plan.blocks[block.index()].residency, Residency::Resident(_))
                && !blocks.contains(&block)
            {
                blocks.push(block);
            }
        }
    }
    blocks
}

fn blocks_clobbered(plan: &Plan, network: usize) -> Vec<BlockId> {
    let (lower, upper) = plan.span(network);
    let live: Vec<_> = (0..plan.buffers.len())
        .filter(|&index| plan.buffers[index].lower < upper && lower < plan.buffers[index].upper)
        .collect();
    let mut blocks = Vec::new();
    for (id, block) in (0..).map(BlockId).zip(&plan.blocks) {
        let Residency::Resident(own) = block.residency else { continue };
        let own_bytes = plan.buffers[own.index()].offset_bytes;
        let overlaps = |&index: &usize| {
            let other = &plan.buffers[index];
            index != own.index()
                && other.offset_bytes < own_bytes + block.len_bytes
                && own_bytes < other.offset_bytes + other.len_bytes
        };
        if live.iter().any(overlaps) {
            blocks.push(id);
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bundle's test plan: block 2 is resident through the U-Net at 1408..5504, which no
    /// other buffer uses.
    #[test]
    fn a_block_is_loaded_once_until_its_space_is_used() {
        let mut plan = kiln_bundle::testing::plan();
        let mut residents = Residents::of(&plan);
        let sequence = [0, 1, 2, 2, 1, 2, 3];
        let loads =
            |runs: Vec<Run>| -> Vec<usize> { runs.iter().map(|r| r.residents.len()).collect() };
        assert_eq!(loads(residents.schedule(&sequence)), [0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(loads(residents.schedule(&sequence)), [0; 7]);
        residents.forget();
        assert_eq!(loads(residents.schedule(&sequence)), [0, 0, 1, 0, 0, 0, 0]);

        // The embedding of timesteps in the same space.
        plan.buffers[3].offset_bytes = 1408;
        let mut residents = Residents::of(&plan);
        assert_eq!(loads(residents.schedule(&sequence)), [0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(loads(residents.schedule(&sequence)), [0, 0, 1, 0, 0, 1, 0]);
    }
}
