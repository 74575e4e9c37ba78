//! The memory plan: what lives where and when.
//!
//! networks -> [`lower`] (variants, schedule) -> [`blocks`] (constants) -> [`lifetime`] ->
//! [`residency`] (addresses in the [`arena`], resident weights) -> [`assemble`] (the plan).

pub mod arena;
pub mod assemble;
pub mod blocks;
pub mod dispatch;
pub mod explain;
pub mod lifetime;
pub mod lower;
pub mod rationale;
pub mod residency;
pub mod schedule;
pub mod time;

use anyhow::{Result, bail};
use kiln_bundle::plan::{Manifest, MemoryPlan, Phase, Plan};
use kiln_ir::DType;

use crate::device::DeviceProfile;
use blocks::Blocks;
use lifetime::Lifetimes;
use lower::{Known, LoweredNetwork, NetworkGraph, Preference, Selection, Storage};
use residency::{Infeasible, Placement};

/// What a plan is made for.
pub struct PlanRequest<'a> {
    /// The device.
    pub profile: &'a DeviceProfile,
    /// Storage types.
    pub storage: Storage<'a>,
    /// Most bytes of the whole process.
    pub budget_bytes: u64,
    /// Rows of the U-Net batch; `None` leaves them to the strategies.
    pub guidance_batch: Option<usize>,
}

/// One way to spend the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Rows of the U-Net batch: 2 runs both branches of guidance at once.
    pub guidance_batch: usize,
    /// How variants are chosen.
    pub preference: Preference,
    /// Largest run of weights that one launch reads.
    pub max_block_bytes: u64,
    /// Storage type of values between ops.
    pub activations: DType,
    /// What reading the repeated network's weights counts for when its variants are chosen; see
    /// [`Selection::reading_percent`].
    pub reading_percent: u64,
    /// The largest pictures of the autoencoder are computed anew by stripes wherever they are read.
    pub recompute: bool,
}

impl Strategy {
    /// How variants of a network are chosen. The others read their weights for one pass, in full.
    pub fn selection(&self, phase: Phase) -> Selection {
        let counted = phase == Phase::Step || self.reading_percent == MUCH;
        Selection {
            preference: self.preference,
            max_weight_bytes: self.max_block_bytes,
            reading_percent: if counted { self.reading_percent } else { 100 },
        }
    }
}

impl std::fmt::Display for Strategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.guidance_batch {
            1 => f.write_str("two U-Net passes a step")?,
            n => write!(f, "one U-Net pass of batch {n} a step")?,
        }
        match self.preference {
            Preference::Fastest => f.write_str(", the fastest variants")?,
            Preference::ScratchUpTo(0) => {
                f.write_str(", the variants with the least scratch memory")?
            }
            Preference::ScratchUpTo(bytes) => {
                write!(f, ", variants with up to {} of scratch memory", explain::mib(bytes))?;
            }
        }
        write!(f, ", weight blocks of up to {}", explain::mib(self.max_block_bytes))?;
        match self.reading_percent {
            0 => f.write_str(", weights as large as is fast")?,
            MUCH => f.write_str(", weights as small as can be")?,
            percent => write!(f, ", reading of weights at {percent} % of its time")?,
        }
        if self.recompute {
            f.write_str(", the largest pictures recomputed by stripes")?;
        }
        match self.activations {
            DType::F16 => f.write_str(", activations in FP16"),
            _ => Ok(()),
        }
    }
}

/// So much that no variant is worth larger weights.
const MUCH: u64 = 10_000;

/// Ways to spend the budget, the most frugal last. The fastest that fits is taken.
///
/// FP16 activations come first where the device profits, elsewhere when nothing else fits.
pub fn strategies(request: &PlanRequest) -> Vec<Strategy> {
    let profile = request.profile;
    let narrow = request.storage.activations;
    let types = match (narrow, profile.target.half_activations) {
        (DType::F16, true) => vec![DType::F16],
        (DType::F16, false) => vec![DType::F32, DType::F16],
        _ => vec![DType::F32],
    };
    let spending = [
        (2, Preference::Fastest, 1, 0),
        (2, Preference::Fastest, 1, 25),
        (2, Preference::Fastest, 1, 100),
        (2, Preference::Fastest, 1, MUCH),
        (2, Preference::Fastest, 4, 100),
        (2, Preference::ScratchUpTo(16 << 20), 4, 100),
        (2, Preference::ScratchUpTo(16 << 20), 16, 100),
        (1, Preference::ScratchUpTo(4 << 20), 4, 100),
        (1, Preference::ScratchUpTo(4 << 20), 16, 100),
        (1, Preference::ScratchUpTo(1 << 20), 16, 100),
    ];
    let recomputing = [
        (2, Preference::ScratchUpTo(16 << 20), 4, 100),
        (1, Preference::ScratchUpTo(16 << 20), 4, 100),
        (1, Preference::ScratchUpTo(16 << 20), 16, MUCH),
        (1, Preference::ScratchUpTo(8 << 20), 16, MUCH),
        (1, Preference::ScratchUpTo(6 << 20), 32, MUCH),
    ];
    let all = spending.into_iter().map(|s| (s, false)).chain(recomputing.map(|s| (s, true)));
    let list: Vec<_> = all.collect();
    let strategy = |activations| {
        let list = list.clone().into_iter();
        list.map(move |((guidance_batch, preference, divisor, reading_percent), recompute)| {
            Strategy {
                guidance_batch: request.guidance_batch.unwrap_or(guidance_batch),
                preference,
                max_block_bytes: profile.memory.max_block_bytes / divisor,
                activations,
                reading_percent,
                recompute,
            }
        })
    };
    types.into_iter().flat_map(strategy).collect()
}

/// A plan, and what is needed to write its weights.
pub struct Planned {
    /// The plan; weights have no offsets or checksums yet.
    pub plan: Plan,
    /// The networks as launches.
    pub networks: Vec<LoweredNetwork>,
    /// Their constants.
    pub blocks: Blocks,
}

/// What came of one strategy.
pub enum Outcome {
    /// It fits.
    Fits(Box<Plan>),
    /// It needs more than the budget.
    TooLarge(explain::Shortfall),
}

/// Networks lowered by one strategy, before anything has an address.
pub struct Draft {
    /// How the budget is spent.
    pub strategy: Strategy,
    networks: Vec<LoweredNetwork>,
    blocks: Blocks,
    lifetimes: Lifetimes,
    beside: MemoryPlan,
    manifest: Manifest,
}

impl Draft {
    /// Lowers networks, in execution order, by one strategy.
    pub fn new(
        graphs: &[NetworkGraph],
        manifest: Manifest,
        strategy: Strategy,
        request: &PlanRequest,
        known: &mut Known,
    ) -> Result<Self> {
        let profile = request.profile;
        let mut lower = |g: &NetworkGraph| {
            let selection = strategy.selection(g.phase);
            let parted = lower::part_norms(g, profile, selection)?;
            lower::lower(&parted, profile, request.storage, selection, known)
        };
        let networks = graphs.iter().map(&mut lower).collect::<Result<Vec<_>>>()?;
        let mut blocks = Blocks::default();
        for (index, network) in networks.iter().enumerate() {
            blocks.add(index, network, profile.memory.base_align_bytes);
        }
        check_blocks(&blocks, profile.memory.max_alloc_bytes())?;
        let lifetimes = Lifetimes::new(&networks, &blocks);
        let beside = beside_arena(&networks, &blocks, &manifest, profile, request.budget_bytes);
        Ok(Self { strategy, networks, blocks, lifetimes, beside, manifest })
    }

    /// Less than any plan's predicted time of a picture: what its launches take.
    pub fn least_ns(&self) -> u64 {
        let of_network = |network: &LoweredNetwork| {
            let costs = network.ops.iter().flat_map(|op| match &op.work {
                lower::Work::Kernels { costs, .. } => &costs[..],
                lower::Work::Gather => &[],
            });
            let pass_ns: u64 = costs.map(|cost| cost.ns).sum();
            pass_ns.saturating_mul(time::passes(&self.manifest, network.source.phase))
        };
        self.networks.iter().map(of_network).fold(0, u64::saturating_add)
    }

    /// Places everything, with at most so many bytes of the repeated network's weights resident. Of the
    /// rationale the plan has the rates.
    pub fn place(&self, request: &PlanRequest, most_kept_bytes: u64) -> Result<Outcome> {
        let (profile, beside) = (request.profile, &self.beside);
        let align_bytes = profile.memory.base_align_bytes;
        let max_alloc_bytes = profile.memory.max_alloc_bytes();
        let capacity_bytes =
            request.budget_bytes.saturating_sub(beside.peak_bytes()).min(max_alloc_bytes);
        let room = residency::Room { capacity_bytes, most_kept_bytes, align_bytes };
        let placement = match residency::place(&self.networks, &self.blocks, &self.lifetimes, room)
        {
            Ok(placement) => placement,
            Err(error) => match error.downcast::<Infeasible>() {
                Ok(Infeasible(buffers, height_bytes)) => {
                    let needs_bytes = beside.peak_bytes() + height_bytes;
                    let shortfall = explain::Shortfall {
                        allocation: (height_bytes > max_alloc_bytes)
                            .then_some((height_bytes, max_alloc_bytes)),
                        ..explain::Shortfall::new(needs_bytes, &buffers, beside)
                    };
                    return Ok(Outcome::TooLarge(shortfall));
                }
                Err(error) => return Err(error),
            },
        };
        let decisions = assemble::Decisions {
            networks: &self.networks,
            blocks: &self.blocks,
            lifetimes: &self.lifetimes,
            placement: &placement,
            memory: with_arena(beside.clone(), &placement),
            align_bytes,
            max_dispatch_ns: profile.rates.max_dispatch_ns(),
        };
        let mut plan = assemble::assemble(&decisions, self.manifest.clone())?;
        plan.rationale.rates = profile.rates.in_plan();
        Ok(Outcome::Fits(Box::new(plan)))
    }

    /// One of its plans, with the reasons and what is needed to write its weights.
    pub fn finish(self, mut plan: Plan, request: &PlanRequest) -> Result<Planned> {
        plan.rationale = rationale::rationale(&self.networks, &plan, self.strategy, request)?;
        Ok(Planned { plan, networks: self.networks, blocks: self.blocks })
    }
}

/// Refuses weights that one launch reads together and no single allocation holds.
fn check_blocks(blocks: &Blocks, max_alloc_bytes: u64) -> Result<()> {
    match blocks.drafts.iter().find(|block| block.len_bytes > max_alloc_bytes) {
        None => Ok(()),
        Some(block) => bail!(
            "the weights of {} take {}, and the device allocates at most {} at once",
            block.name,
            explain::mib(block.len_bytes),
            explain::mib(max_alloc_bytes)
        ),
    }
}

fn with_arena(mut memory: MemoryPlan, placement: &Placement) -> MemoryPlan {
    memory.arena_bytes = placement.height_bytes;
    memory.arena_lower_bound_bytes = placement.lower_bound_bytes;
    memory
}

/// Every part of the budget but the arena.
///
/// Slots are sized by the largest block that may be streamed. A block of the repeated network may
/// turn out resident, so its slot may be larger than needed, never smaller.
fn beside_arena(
    networks: &[LoweredNetwork],
    blocks: &Blocks,
    manifest: &Manifest,
    profile: &DeviceProfile,
    budget_bytes: u64,
) -> MemoryPlan {
    let streamed: Vec<u64> =
        blocks.drafts.iter().filter(|b| !b.small).map(|b| b.len_bytes).collect();
    let slot_bytes = streamed.iter().copied().max().unwrap_or(0);
    let slot_count = (profile.memory.slot_count as usize).min(streamed.len());
    let pixels = u64::from(manifest.image_px).pow(2);
    let launches: usize =
        networks.iter().flat_map(|n| &n.ops).map(lower::LoweredOp::launch_count).sum();
    MemoryPlan {
        budget_bytes,
        slot_bytes: vec![slot_bytes; slot_count],
        staging_bytes: if profile.memory.unified { 0 } else { slot_bytes },
        host_bytes: HOST_FIXED_BYTES + pixels * HOST_BYTES_PER_PIXEL + launches as u64 * 2048,
        program_bytes: profile.memory.compiler_bytes
            + profile.memory.kernel_bytes * kernel_count(networks),
        baseline_bytes: profile.memory.process_baseline_bytes,
        ..MemoryPlan::default()
    }
}

/// Tokenizer (vocabulary and merge ranks as hash maps), the buffers of direct reads (2 MiB) and the
/// program itself.
const HOST_FIXED_BYTES: u64 = 16 << 20;
/// The decoded picture in `f32`, twice while its layout changes, and as bytes, plain and compressed.
const HOST_BYTES_PER_PIXEL: u64 = 3 * (4 + 4 + 1 + 1);

fn kernel_count(networks: &[LoweredNetwork]) -> u64 {
    let mut sources = std::collections::HashSet::new();
    for op in networks.iter().flat_map(|n| &n.ops) {
        if let lower::Work::Kernels { lowering, .. } = &op.work {
            sources.extend(lowering.launches.iter().map(|l| (&*l.source, l.entry)));
        }
    }
    sources.len() as u64
}
