//! Chooses the weights that stay resident over the sampler's loop, and assigns all addresses.
//!
//! Memory that the budget leaves free goes to weights of the denoiser. Blocks whose loads have the
//! least arithmetic to hide behind come first. The other networks run once, so resident weights
//! would save them no reads.

use anyhow::{Result, bail};
use kiln_bundle::plan::{BlockKind, BufferKind, Role};

use super::arena::{self, ArenaProblem, Limits};
use super::blocks::Blocks;
use super::lifetime::{BufferDraft, Lifetimes};
use super::lower::LoweredNetwork;

/// Steps of the arena's search for one placement, about a tenth of a second.
const SEARCH_STEPS: u64 = 20_000_000;

/// Addresses, and the resident blocks.
pub struct Placement {
    /// All buffers: the buffers of [`Lifetimes`], then one for each resident block.
    pub buffers: Vec<BufferDraft>,
    /// Offsets of the buffers, in bytes.
    pub offsets: Vec<u64>,
    /// Resident blocks and their buffers, small blocks included.
    pub resident: Vec<(usize, usize)>,
    /// Bytes of the arena.
    pub height_bytes: u64,
    /// Bytes of an allocation of the arena.
    pub part_bytes: u64,
    /// Largest sum of live buffers, in bytes.
    pub lower_bound_bytes: u64,
}

/// Limits of a placement.
#[derive(Clone, Copy, Debug)]
pub struct ArenaLimits {
    /// Largest size of the arena, in bytes.
    pub capacity_bytes: u64,
    /// Largest allocation in bytes, a multiple of the alignment. A larger arena is several.
    pub part_bytes: u64,
    /// Largest sum of the denoiser's resident weights, in bytes.
    pub most_kept_bytes: u64,
    /// Alignment of every offset, in bytes.
    pub align_bytes: u64,
}

/// Assigns an address to every buffer. The arena is one allocation unless several keep more weights
/// resident.
///
/// Errors: the capacity is too small even if all weights are streamed; a buffer is larger than an
/// allocation.
pub fn place(
    networks: &[LoweredNetwork],
    blocks: &Blocks,
    lifetimes: &Lifetimes,
    limits: ArenaLimits,
) -> Result<Placement> {
    let ArenaLimits { capacity_bytes, part_bytes, .. } = limits;
    let place = |limits| place_within(networks, blocks, lifetimes, limits);
    let one = place(ArenaLimits { capacity_bytes: capacity_bytes.min(part_bytes), ..limits });
    if capacity_bytes <= part_bytes {
        return one;
    }
    let several = place(limits);
    match (one, several) {
        (Ok(one), Ok(several)) if one.kept_bytes() < several.kept_bytes() => Ok(several),
        (Ok(one), _) => Ok(one),
        (Err(_), several) => several,
    }
}

fn place_within(
    networks: &[LoweredNetwork],
    blocks: &Blocks,
    lifetimes: &Lifetimes,
    limits: ArenaLimits,
) -> Result<Placement> {
    let ArenaLimits { capacity_bytes, most_kept_bytes, align_bytes, .. } = limits;
    let mut order = candidates(networks, blocks);
    let fixed = solve(lifetimes.buffers.clone(), limits)?;
    if fixed.1.height_bytes > capacity_bytes {
        bail!(Infeasible(fixed.0, fixed.1.height_bytes));
    }
    let beside_bytes = peak_beside(networks, lifetimes, align_bytes);
    let mut room = capacity_bytes.saturating_sub(beside_bytes).min(most_kept_bytes);
    loop {
        let mut buffers = lifetimes.buffers.clone();
        let mut resident: Vec<_> = lifetimes.small.iter().map(|(b, id)| (*b, *id)).collect();
        let mut left = room;
        for block in &order {
            let draft = &blocks.drafts[*block];
            let len_bytes = draft.len_bytes.next_multiple_of(align_bytes);
            if len_bytes <= left {
                left -= len_bytes;
                let (lower, upper) = lifetimes.weight_span(networks, draft.network);
                let name = format!("{}.weights", draft.name);
                let kind = BufferKind::Weights;
                buffers.push(BufferDraft { name, kind, len_bytes, lower, upper });
                resident.push((*block, buffers.len() - 1));
            }
        }
        let (buffers, solution, lower_bound_bytes) = solve_with_bound(buffers, limits)?;
        if solution.height_bytes <= capacity_bytes {
            resident.sort_unstable();
            let (offsets, height_bytes) = (solution.offsets, solution.height_bytes);
            let part_bytes = limits.part_bytes.min(height_bytes);
            return Ok(Placement {
                buffers,
                offsets,
                resident,
                height_bytes,
                part_bytes,
                lower_bound_bytes,
            });
        }
        let over = solution.height_bytes - capacity_bytes;
        if room <= over {
            order.clear();
        }
        room = room.saturating_sub(over.max(room / 32));
    }
}

impl Placement {
    /// Bytes of resident weights.
    fn kept_bytes(&self) -> u64 {
        let weights = self.buffers.iter().filter(|b| b.kind == BufferKind::Weights);
        weights.map(|b| b.len_bytes).sum()
    }
}

/// The arena exceeds its capacity. Has the buffers and the height that they need, in bytes.
#[derive(Debug, thiserror::Error)]
#[error("the arena needs {1} bytes")]
pub struct Infeasible(pub Vec<BufferDraft>, pub u64);

/// The blocks of the denoiser, those with the least arithmetic a byte first.
fn candidates(networks: &[LoweredNetwork], blocks: &Blocks) -> Vec<usize> {
    let mut list: Vec<usize> = (0..blocks.drafts.len())
        .filter(|b| {
            let draft = &blocks.drafts[*b];
            draft.kind == BlockKind::Weights
                && networks[draft.network].source.role == Role::Denoiser
        })
        .collect();
    let intensity = |b: &usize| {
        let draft = &blocks.drafts[*b];
        draft.flops as f64 / draft.len_bytes as f64
    };
    list.sort_by(|a, b| intensity(a).total_cmp(&intensity(b)).then(a.cmp(b)));
    list
}

/// Largest sum of live buffers in the interval of the denoiser's resident weights, in bytes.
fn peak_beside(networks: &[LoweredNetwork], lifetimes: &Lifetimes, align_bytes: u64) -> u64 {
    let Some(step) = networks.iter().position(|n| n.source.role == Role::Denoiser) else {
        return 0;
    };
    let (lower, upper) = lifetimes.weight_span(networks, step);
    let inside = lifetimes.buffers.iter().filter(|b| b.lower < upper && b.upper > lower).cloned();
    problem(&inside.collect::<Vec<_>>(), align_bytes).lower_bound_bytes()
}

fn problem(buffers: &[BufferDraft], align_bytes: u64) -> ArenaProblem {
    let buffers = buffers
        .iter()
        .map(|b| arena::Buffer::new(b.lower, b.upper, b.len_bytes, align_bytes))
        .collect();
    ArenaProblem { buffers, ..ArenaProblem::default() }
}

fn solve(
    buffers: Vec<BufferDraft>,
    limits: ArenaLimits,
) -> Result<(Vec<BufferDraft>, arena::Solution)> {
    let ArenaLimits { capacity_bytes, part_bytes, align_bytes, .. } = limits;
    let work = Limits { search_steps: SEARCH_STEPS, ..Limits::default() };
    let problem = ArenaProblem {
        capacity_bytes: Some(capacity_bytes),
        part_bytes: (part_bytes < capacity_bytes).then_some(part_bytes),
        ..problem(&buffers, align_bytes)
    };
    let solution = arena::solve(&problem, &work)?;
    Ok((buffers, solution))
}

fn solve_with_bound(
    buffers: Vec<BufferDraft>,
    limits: ArenaLimits,
) -> Result<(Vec<BufferDraft>, arena::Solution, u64)> {
    let (buffers, solution) = solve(buffers, limits)?;
    let lower_bound_bytes = problem(&buffers, 1).lower_bound_bytes();
    Ok((buffers, solution, lower_bound_bytes))
}
