//! The time model: what a plan should take on the device it was made for.
//!
//! A launch takes as long as its arithmetic or its memory traffic, whichever is more. A load takes
//! its bytes over the rate of the storage; loads follow one another in the plan's order, each as
//! soon as its slot is free, and a launch waits for the loads before it. Reading runs ahead from
//! one pass of the repeated network into the next, but not from one network into another.
//! Resident weights are read before their network begins.

use kiln_bundle::plan::{Access, Arg, BufferId, Gather, Phase, Plan, Residency, Step};
use kiln_bundle::rationale::Rates;
use std::collections::HashMap;

/// Steps of the sampler that a predicted picture takes.
pub const SAMPLER_STEPS: u64 = 20;

/// Times of a whole plan.
pub struct Prediction {
    /// What each instant's launch reads and writes; 0 where there is none.
    pub bytes: Vec<u64>,
    /// When each instant begins, on one line over all networks, the repeated one in a later pass;
    /// one more than there are instants. A load's instant is as long as the wait for it.
    pub start_ns: Vec<u64>,
    /// The loads in order.
    pub loads: Vec<LoadTime>,
    /// Each network.
    pub networks: Vec<NetworkTime>,
}

/// When a block is read.
pub struct LoadTime {
    /// The instant that waits for it.
    pub instant: u32,
    /// When reading begins: before its network does where it runs ahead from the pass before.
    pub start_ns: i64,
    /// How long it takes.
    pub ns: u64,
}

/// Times of one network.
#[derive(Clone, Copy, Default)]
pub struct NetworkTime {
    /// Reading its resident weights, before the first pass.
    pub resident_ns: u64,
    /// The first pass, which finds empty slots.
    pub first_ns: u64,
    /// Every other pass.
    pub pass_ns: u64,
    /// Of `pass_ns`, waiting for weights.
    pub stall_ns: u64,
}

impl Prediction {
    /// Predicts with the rates in the plan.
    pub fn new(plan: &Plan) -> Self {
        let mut this =
            Self { bytes: traffic(plan), start_ns: vec![], loads: vec![], networks: vec![] };
        let mut now = 0;
        for index in 0..plan.networks.len() {
            now = this.network(plan, index, now);
        }
        this.start_ns.push(now);
        this
    }

    /// Times of a picture with [`SAMPLER_STEPS`] steps.
    pub fn picture_ns(&self, plan: &Plan) -> u64 {
        let times = plan.networks.iter().zip(&self.networks);
        times
            .map(|(network, time)| {
                let passes = passes(plan, network.phase);
                let rest = time.pass_ns.saturating_mul(passes - 1);
                time.resident_ns.saturating_add(time.first_ns).saturating_add(rest)
            })
            .fold(0, u64::saturating_add)
    }

    fn network(&mut self, plan: &Plan, index: usize, now: u64) -> u64 {
        let (lower, upper) = plan.span(index);
        let rates = &plan.rationale.rates;
        let resident_ns = rates.load_ns(resident_bytes(plan, index));
        let mut walk = Walk::new(plan, rates);
        let steps = &plan.networks[index].steps;
        let bytes = &self.bytes[lower as usize..upper as usize];
        walk.pass(steps, bytes);
        let mut time = NetworkTime {
            resident_ns,
            first_ns: walk.now,
            pass_ns: walk.now,
            stall_ns: walk.stall_ns,
        };
        if plan.networks[index].phase == Phase::Step {
            walk.pass(steps, bytes);
            let before = walk.now;
            walk.pass(steps, bytes);
            (time.pass_ns, time.stall_ns) = (walk.now - before, walk.stall_ns);
        }
        let (begin, shift) = (walk.now - time.pass_ns, now + resident_ns);
        self.start_ns.extend(walk.starts.iter().map(|t| t - begin + shift));
        self.loads.extend(walk.loads.iter().map(|(step, start, ns)| LoadTime {
            instant: lower + step,
            start_ns: *start as i64 - begin as i64 + shift as i64,
            ns: *ns,
        }));
        self.networks.push(time);
        shift + time.pass_ns
    }
}

/// Time of a gather: its rows come from storage.
pub fn gather_ns(rates: &Rates, gather: &Gather) -> u64 {
    rates.load_ns(gather.row_bytes.saturating_mul(u64::from(gather.index_count)))
}

/// How often a network runs for a picture.
pub fn passes(plan: &Plan, phase: Phase) -> u64 {
    match phase {
        Phase::Prompt | Phase::Picture => 1,
        Phase::Timesteps => SAMPLER_STEPS.div_ceil(u64::from(plan.manifest.timestep_rows.max(1))),
        Phase::Step if plan.manifest.guidance_batch == 1 => 2 * SAMPLER_STEPS,
        Phase::Step => SAMPLER_STEPS,
    }
}

/// Bytes of the blocks that are read into the arena for a network.
pub fn resident_bytes(plan: &Plan, index: usize) -> u64 {
    let (_, upper) = plan.span(index);
    let ours = |b: &BufferId| plan.buffers.get(b.index()).is_some_and(|b| b.upper == upper);
    let blocks = plan.blocks.iter();
    blocks
        .filter(|b| matches!(&b.residency, Residency::Resident(buffer) if ours(buffer)))
        .map(|b| b.len_bytes)
        .sum()
}

/// What each instant's launch reads and writes, every argument once. Launches that write one
/// buffer together share its bytes.
fn traffic(plan: &Plan) -> Vec<u64> {
    fn args(step: &Step) -> &[Arg] {
        match step {
            Step::Dispatch(d) => &d.args,
            _ => &[],
        }
    }
    let steps = || plan.networks.iter().flat_map(|n| &n.steps);
    let mut writers: HashMap<(BufferId, u64, u64), u64> = HashMap::new();
    for arg in steps().flat_map(args) {
        if let Arg::Buffer { buffer, offset_bytes, len_bytes, access: Access::Write } = arg {
            *writers.entry((*buffer, *offset_bytes, *len_bytes)).or_default() += 1;
        }
    }
    let bytes = |arg: &Arg| match arg {
        Arg::Buffer { buffer, offset_bytes, len_bytes, access: Access::Write } => {
            len_bytes / writers[&(*buffer, *offset_bytes, *len_bytes)]
        }
        Arg::Buffer { len_bytes, .. } | Arg::Weight { len_bytes, .. } => *len_bytes,
        Arg::U32(_) | Arg::F32(_) => 0,
    };
    let of_step = |step: &Step| match step {
        Step::Gather(g) => 2 * g.row_bytes * u64::from(g.index_count),
        other => args(other).iter().map(bytes).sum(),
    };
    steps().map(of_step).collect()
}

/// One thread that computes and one that reads.
struct Walk<'a> {
    plan: &'a Plan,
    rates: &'a Rates,
    now: u64,
    reader: u64,
    slot_of: HashMap<u32, usize>,
    slot_free: Vec<u64>,
    starts: Vec<u64>,
    loads: Vec<(u32, u64, u64)>,
    stall_ns: u64,
}

impl<'a> Walk<'a> {
    fn new(plan: &'a Plan, rates: &'a Rates) -> Self {
        let slot_free = vec![0; plan.memory.slot_bytes.len()];
        Self {
            plan,
            rates,
            now: 0,
            reader: 0,
            slot_of: HashMap::new(),
            slot_free,
            starts: vec![],
            loads: vec![],
            stall_ns: 0,
        }
    }

    /// Walks the steps once more; what is kept of the pass before is its effect on the next.
    fn pass(&mut self, steps: &[Step], bytes: &[u64]) {
        self.starts.clear();
        self.loads.clear();
        self.stall_ns = 0;
        for ((index, step), bytes) in (0u32..).zip(steps).zip(bytes) {
            self.starts.push(self.now);
            match step {
                Step::Load { block, slot } => {
                    let start = self.reader.max(self.slot_free[slot.index()]);
                    let ns = self.rates.load_ns(self.plan.blocks[block.index()].len_bytes);
                    self.reader = start.saturating_add(ns);
                    self.loads.push((index, start, ns));
                    self.slot_of.insert(block.0, slot.index());
                    let wait = self.reader.saturating_sub(self.now);
                    self.stall_ns += wait;
                    self.now += wait;
                }
                Step::Dispatch(d) => {
                    let ns = self.rates.launch_ns(d.flops, *bytes);
                    self.now = self.now.saturating_add(ns);
                }
                Step::Gather(g) => self.now = self.now.saturating_add(gather_ns(self.rates, g)),
                Step::Free { block } => {
                    if let Some(slot) = self.slot_of.get(&block.0) {
                        self.slot_free[*slot] = self.now;
                    }
                }
            }
        }
    }
}
