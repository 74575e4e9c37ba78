//! A draft: lowered networks with blocks and live ranges. Placing a draft makes a plan.

use anyhow::Result;
use kiln_bundle::plan::{AVX_VNNI, AVX512_VNNI, Manifest, MemoryPlan, Plan, Role};

use super::assemble::{Decisions, assemble};
use super::blocks::Blocks;
use super::lifetime::{BufferDraft, Lifetimes};
use super::lower::{LoweredNetwork, Work};
use super::memory::beside_arena;
use super::rationale::rationale;
use super::residency::{self, ArenaLimits, Infeasible};
use super::shortfall::{Allocation, Shortfall};
use super::time::{is_in_picture, passes};
use crate::request::PlanRequest;
use crate::strategy::Strategy;

/// Networks lowered by one strategy, without addresses.
pub struct Draft {
    /// The strategy.
    pub strategy: Strategy,
    networks: Vec<LoweredNetwork>,
    blocks: Blocks,
    lifetimes: Lifetimes,
    beside: MemoryPlan,
    manifest: Manifest,
}

/// Result of placing a draft.
pub enum Outcome {
    /// The plan fits the budget.
    Fits(Box<Plan>),
    /// The plan needs more than the budget, or a larger allocation than the device has.
    TooLarge(Shortfall),
}

impl Draft {
    /// Groups the weights of networks into blocks and finds the live ranges of their buffers.
    pub fn new(
        networks: Vec<LoweredNetwork>,
        manifest: Manifest,
        strategy: Strategy,
        request: &PlanRequest,
    ) -> Result<Self> {
        let profile = request.profile;
        let mut blocks = Blocks::default();
        let whole = networks.iter().position(|network| network.source.role == Role::Denoiser);
        for (index, network) in networks.iter().enumerate() {
            match whole.filter(|&whole| whole < index && network.source.role.is_denoiser()) {
                Some(whole) => {
                    blocks.add_variant((index, network), (whole, &networks[whole]))?;
                }
                None => blocks.add(index, network, profile.memory.base_align_bytes),
            }
        }
        let mut lifetimes = Lifetimes::new(&networks, &blocks)?;
        lifetimes.add_factors(request.lora_bytes);
        let beside = beside_arena(&networks, &blocks, &manifest, request);
        Ok(Self { strategy, networks, blocks, lifetimes, beside, manifest })
    }

    /// Lower bound of the predicted time of a picture, in nanoseconds: the time of all launches.
    pub fn least_ns(&self) -> u64 {
        let of_network = |network: &LoweredNetwork| {
            let costs = network.ops.iter().flat_map(|op| match &op.work {
                Work::Kernels { costs, .. } => &costs[..],
                Work::Gather => &[],
            });
            let pass_ns: u64 = costs.map(|cost| cost.ns).sum();
            pass_ns.saturating_mul(passes(&self.manifest, network.source.role))
        };
        let role = |network: &LoweredNetwork| network.source.role;
        let needed = |n: &&LoweredNetwork| is_in_picture(role(n), self.networks.iter().map(role));
        self.networks.iter().filter(needed).map(of_network).fold(0, u64::saturating_add)
    }

    /// Places all buffers, with at most `most_kept_bytes` of the denoiser's weights resident. The
    /// plan's rationale has only the rates.
    pub fn place(&self, request: &PlanRequest, most_kept_bytes: u64) -> Result<Outcome> {
        let (profile, beside) = (request.profile, &self.beside);
        let align_bytes = profile.memory.base_align_bytes;
        let max_alloc_bytes = profile.memory.max_alloc_bytes();
        let over = self.over(max_alloc_bytes - max_alloc_bytes % align_bytes);
        let part_bytes = if over.is_none() { max_alloc_bytes } else { u64::MAX };
        let limits = ArenaLimits {
            capacity_bytes: request.budget_bytes.saturating_sub(beside.peak_bytes()),
            part_bytes: part_bytes - part_bytes % align_bytes,
            most_kept_bytes,
            align_bytes,
        };
        let placed = residency::place(&self.networks, &self.blocks, &self.lifetimes, limits);
        let too_large = |height_bytes: u64, buffers: &[BufferDraft]| {
            let needs_bytes = beside.peak_bytes() + height_bytes;
            let shortfall = Shortfall::new(needs_bytes, buffers, beside);
            Ok(Outcome::TooLarge(Shortfall { allocation: over.clone(), ..shortfall }))
        };
        let placement = match placed.map_err(anyhow::Error::downcast::<Infeasible>) {
            Ok(placement) if over.is_none() => placement,
            Ok(placement) => return too_large(placement.height_bytes, &placement.buffers),
            Err(Ok(Infeasible(buffers, height_bytes))) => return too_large(height_bytes, &buffers),
            Err(Err(error)) => return Err(error),
        };
        let memory = MemoryPlan {
            arena_bytes: placement.height_bytes,
            arena_part_bytes: placement.part_bytes,
            arena_lower_bound_bytes: placement.lower_bound_bytes,
            ..beside.clone()
        };
        let decisions = Decisions {
            networks: &self.networks,
            blocks: &self.blocks,
            lifetimes: &self.lifetimes,
            placement: &placement,
            memory,
            align_bytes,
            max_dispatch_ns: profile.rates.max_dispatch_ns(),
            mad: profile.target.mad,
            vnni: if profile.target.vector_width == 16 { AVX512_VNNI } else { AVX_VNNI },
        };
        let mut plan = assemble(&decisions, self.manifest.clone())?;
        plan.rationale.rates = profile.rates.in_plan();
        Ok(Outcome::Fits(Box::new(plan)))
    }

    /// A block of weights or a buffer that exceeds the device's largest allocation.
    fn over(&self, most_bytes: u64) -> Option<Allocation> {
        let blocks = self.blocks.drafts.iter();
        let blocks = blocks.map(|b| (format!("the block of weights of {}", b.name), b.len_bytes));
        let buffers = self.lifetimes.buffers.iter();
        let buffers = buffers.map(|b| (format!("the buffer {}", b.name), b.len_bytes));
        let (what, len_bytes) = blocks.chain(buffers).find(|(_, len)| *len > most_bytes)?;
        Some(Allocation { what, len_bytes, most_bytes })
    }

    /// Adds the rationale to a plan of this draft, and returns it with the data for writing its
    /// weights.
    pub fn finish(self, mut plan: Plan, request: &PlanRequest) -> Result<Planned> {
        plan.rationale = rationale(&self.networks, &plan, self.strategy, request)?;
        Ok(Planned { plan, networks: self.networks, blocks: self.blocks })
    }
}

/// A plan, and the data for writing its weights.
pub struct Planned {
    /// The plan. Its weights have no offsets or checksums yet.
    pub plan: Plan,
    /// The networks as launches, with the storage type and packing of every constant.
    pub networks: Vec<LoweredNetwork>,
    /// The networks' constants.
    pub blocks: Blocks,
}
