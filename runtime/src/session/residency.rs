//! Which resident blocks are in the arena.
//!
//! The plan says for each network which resident blocks it reads and which it overwrites. The
//! blocks to load before each run therefore follow from the sequence of networks.

use kiln_bundle::plan::Plan;

use crate::stream::Run;

/// Whether each block is in the arena.
pub(super) struct Residents(Vec<bool>);

impl Residents {
    pub(super) fn of(plan: &Plan) -> Residents {
        Residents(vec![false; plan.blocks.len()])
    }

    /// Adds to each network of a sequence the blocks to load before it. The sequence must run to
    /// its end; otherwise call [`forget`](Self::forget).
    pub(super) fn schedule(&mut self, plan: &Plan, networks: &[usize]) -> Vec<Run> {
        let run = |&network: &usize| {
            let entry = &plan.networks[network];
            for block in &entry.overwrites {
                self.0[block.index()] = false;
            }
            let mut residents = entry.loads.clone();
            residents.retain(|block| !std::mem::replace(&mut self.0[block.index()], true));
            Run { network, residents }
        };
        networks.iter().map(run).collect()
    }

    /// Marks every block as absent from the arena.
    pub(super) fn forget(&mut self) {
        self.0.fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_bundle::plan::BlockId;

    /// The bundle's test plan: the denoiser, network 2, reads resident block 2.
    #[test]
    fn a_block_is_loaded_once_until_its_space_is_used() {
        let mut plan = kiln_bundle::testing::plan();
        let mut residents = Residents::of(&plan);
        let sequence = [0, 1, 2, 2, 1, 2, 3];
        let loads =
            |runs: Vec<Run>| -> Vec<usize> { runs.iter().map(|r| r.residents.len()).collect() };
        assert_eq!(loads(residents.schedule(&plan, &sequence)), [0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(loads(residents.schedule(&plan, &sequence)), [0; 7]);
        residents.forget();
        assert_eq!(loads(residents.schedule(&plan, &sequence)), [0, 0, 1, 0, 0, 0, 0]);

        plan.networks[1].overwrites = vec![BlockId(2)];
        let mut residents = Residents::of(&plan);
        assert_eq!(loads(residents.schedule(&plan, &sequence)), [0, 0, 1, 0, 0, 1, 0]);
        assert_eq!(loads(residents.schedule(&plan, &sequence)), [0, 0, 1, 0, 0, 1, 0]);
    }
}
