//! The time model: the predicted time of a plan on its device.
//!
//! Launches take the times of [`cost`](super::cost). A load takes its bytes over the rate of the
//! storage. Loads follow one another in the plan's order. Each begins when its slot is free, and a
//! launch waits for the loads before it. A load also uses memory bandwidth, even if nothing waits
//! for it. Loads run ahead from one pass of the denoiser into the next, but not from one network
//! into another. Resident weights are read before their network begins.

use kiln_bundle::plan::{Dispatch, Gather, Manifest, Network, Plan, Role, Step};
use kiln_bundle::rationale::Rates;
use std::collections::HashMap;

use super::cost::single_issue_ns;

/// Time of a gather in nanoseconds. Its rows come from storage.
pub fn gather_ns(rates: &Rates, gather: &Gather) -> u64 {
    rates.load_ns(gather.row_bytes.saturating_mul(u64::from(gather.index_count)))
}

/// Number of sampler steps of a predicted image: the model's default.
pub fn sampler_steps(manifest: &Manifest) -> u64 {
    u64::from(manifest.schedule.steps.max(1))
}

/// Number of passes of a network for an image of [`sampler_steps`].
pub fn passes(manifest: &Manifest, role: Role) -> u64 {
    match role {
        Role::TimestepProjection => {
            sampler_steps(manifest).div_ceil(u64::from(manifest.timestep_rows.max(1)))
        }
        Role::Denoiser => sampler_steps(manifest) * passes_a_step(manifest),
        role if role.is_denoiser() => 0,
        _ => 1,
    }
}

/// Whether an image of the model's defaults needs a network: no variant of the denoiser, and not
/// the tiny decoder beside a full one.
pub fn is_in_picture(role: Role, mut roles: impl Iterator<Item = Role>) -> bool {
    match role {
        Role::TinyDecoder => roles.all(|other| other != Role::Decoder),
        role => role == Role::Denoiser || !role.is_denoiser(),
    }
}

fn roles(plan: &Plan) -> impl Iterator<Item = Role> {
    plan.networks.iter().map(|network| network.role)
}

/// Passes of the denoiser in a step of a sampler with one evaluation a step.
pub fn passes_a_step(manifest: &Manifest) -> u64 {
    u64::from(manifest.guidance_branches / manifest.guidance_batch.max(1))
}

/// A step of the plan for the time model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A block is read into a slot.
    Load {
        /// The slot.
        slot: usize,
        /// Duration of the read in nanoseconds.
        ns: u64,
        /// Time that the read takes from the device by using memory bandwidth, in nanoseconds,
        /// however far ahead it runs.
        taken_ns: u64,
    },
    /// The device computes, for this many nanoseconds.
    Run(u64),
    /// A slot becomes free.
    Free {
        /// The slot.
        slot: usize,
    },
}

/// Times of one network, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkTime {
    /// Reading of its resident weights, before the first pass.
    pub resident_ns: u64,
    /// The first pass, which starts with empty slots.
    pub first_ns: u64,
    /// Each later pass.
    pub pass_ns: u64,
    /// Part of `pass_ns` that waits for weights.
    pub stall_ns: u64,
}

impl NetworkTime {
    /// Times of a network that has `events` in each pass.
    pub fn new(events: &[Event], repeats: bool, resident_ns: u64) -> Self {
        Walk::passes(events, repeats).1.with_resident(resident_ns)
    }

    /// Time of `passes` passes.
    pub fn total_ns(&self, passes: u64) -> u64 {
        let rest_ns = self.pass_ns.saturating_mul(passes.saturating_sub(1));
        self.resident_ns.saturating_add(self.first_ns).saturating_add(rest_ns)
    }

    fn with_resident(self, resident_ns: u64) -> Self {
        Self { resident_ns, ..self }
    }
}

/// Predicted times of a whole plan.
pub struct Prediction {
    /// Start of each instant on one time line over all networks, then the end of the last. The
    /// denoiser is shown in a later pass. A load's instant lasts as long as the wait for the load.
    pub start_ns: Vec<u64>,
    /// The loads, in order.
    pub loads: Vec<LoadTime>,
    /// Times of each network.
    pub networks: Vec<NetworkTime>,
}

/// The read of a block.
pub struct LoadTime {
    /// The instant that waits for the read.
    pub instant: u32,
    /// Start of the read. It is before the network's start if the read runs ahead from the previous
    /// pass.
    pub start_ns: i64,
    /// Duration of the read.
    pub ns: u64,
}

impl Prediction {
    /// Predicts with the launch times and the rates in the plan.
    pub fn new(plan: &Plan) -> Self {
        Self::of_launches(plan, |dispatch| dispatch.predicted_ns)
    }

    /// Predicts with [`single_issue_ns`]: the longest times that follow from the machine code.
    pub fn single_issue(plan: &Plan) -> Self {
        Self::of_launches(plan, |dispatch| single_issue_ns(plan, dispatch))
    }

    fn of_launches(plan: &Plan, launch_ns: impl Fn(&Dispatch) -> u64) -> Self {
        let mut this = Self { start_ns: vec![], loads: vec![], networks: vec![] };
        let mut now = 0;
        for index in 0..plan.networks.len() {
            now = this.network(plan, index, &launch_ns, now);
        }
        this.start_ns.push(now);
        this
    }

    /// Time of an image with [`sampler_steps`], in nanoseconds.
    pub fn picture_ns(&self, plan: &Plan) -> u64 {
        let times = plan.networks.iter().zip(&self.networks);
        times
            .filter(|(network, _)| is_in_picture(network.role, roles(plan)))
            .map(|(network, time)| time.total_ns(passes(&plan.manifest, network.role)))
            .fold(0, u64::saturating_add)
    }

    /// Time of a sampler step after the first, and the part of it that waits for weights.
    pub fn step_ns(&self, plan: &Plan) -> (u64, u64) {
        let denoiser = plan.with_role(Role::Denoiser);
        let time = denoiser.map(|i| self.networks[i]).unwrap_or_default();
        let passes = passes_a_step(&plan.manifest);
        (passes * time.pass_ns, passes * time.stall_ns)
    }

    fn network(
        &mut self,
        plan: &Plan,
        index: usize,
        launch_ns: impl Fn(&Dispatch) -> u64,
        now: u64,
    ) -> u64 {
        let (lower, _) = plan.span(index);
        let resident_ns = plan.rationale.rates.load_ns(resident_bytes(plan, index));
        let repeats = plan.networks[index].role.is_denoiser();
        let (walk, time) = Walk::passes(&events(plan, index, launch_ns), repeats);
        let time = time.with_resident(resident_ns);
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

/// Bytes of resident blocks that are loaded for a network.
pub fn resident_bytes(plan: &Plan, index: usize) -> u64 {
    plan.networks[index].loads.iter().map(|block| plan.blocks[block.index()].len_bytes).sum()
}

/// Bytes of weights that are streamed for an image of [`sampler_steps`].
pub fn streamed_bytes(plan: &Plan) -> u64 {
    let of_pass = |steps: &[Step]| -> u64 {
        let loads = steps.iter().filter_map(|step| match step {
            Step::Load { block, .. } => Some(plan.blocks[block.index()].len_bytes),
            _ => None,
        });
        loads.sum()
    };
    let of_image = |n: &Network| passes(&plan.manifest, n.role).saturating_mul(of_pass(&n.steps));
    let needed = plan.networks.iter().filter(|n| is_in_picture(n.role, roles(plan)));
    needed.map(of_image).fold(0, u64::saturating_add)
}

/// One event for each step of a network.
fn events(plan: &Plan, index: usize, launch_ns: impl Fn(&Dispatch) -> u64) -> Vec<Event> {
    let rates = &plan.rationale.rates;
    let mut slots = HashMap::new();
    let event = |step: &Step| match step {
        Step::Load { block, slot } => {
            slots.insert(*block, slot.index());
            let len_bytes = plan.blocks[block.index()].len_bytes;
            // Each byte is written and then checked or copied, in device memory.
            let taken_ns = rates.work_ns(0, false, 2 * len_bytes);
            Event::Load { slot: slot.index(), ns: rates.load_ns(len_bytes), taken_ns }
        }
        Step::Dispatch(dispatch) => Event::Run(launch_ns(dispatch)),
        Step::Gather(gather) => Event::Run(gather_ns(rates, gather)),
        Step::Free { block } => match slots.get(block) {
            Some(slot) => Event::Free { slot: *slot },
            None => Event::Run(0),
        },
    };
    plan.networks[index].steps.iter().map(event).collect()
}

/// The time of the device and of the stream thread.
#[derive(Default)]
struct Walk {
    now: u64,
    reader: u64,
    slot_free: Vec<u64>,
    starts: Vec<u64>,
    loads: Vec<(u32, u64, u64)>,
    stall_ns: u64,
}

impl Walk {
    /// Walks the first pass and, if the network repeats, two more, so that the last one is typical.
    fn passes(events: &[Event], repeats: bool) -> (Self, NetworkTime) {
        let mut walk = Self::default();
        walk.pass(events);
        let (first_ns, mut before) = (walk.now, 0);
        if repeats {
            walk.pass(events);
            before = walk.now;
            walk.pass(events);
        }
        let (pass_ns, stall_ns) = (walk.now - before, walk.stall_ns);
        (walk, NetworkTime { resident_ns: 0, first_ns, pass_ns, stall_ns })
    }

    /// Walks one pass. The stream and the slots continue from the previous pass.
    fn pass(&mut self, events: &[Event]) {
        self.starts.clear();
        self.loads.clear();
        self.stall_ns = 0;
        for (index, event) in (0u32..).zip(events) {
            self.starts.push(self.now);
            match *event {
                Event::Load { slot, ns, taken_ns } => {
                    let start = self.reader.max(*self.slot(slot));
                    self.reader = start.saturating_add(ns);
                    self.loads.push((index, start, ns));
                    let wait_ns = self.reader.saturating_sub(self.now);
                    self.stall_ns += wait_ns;
                    self.now += wait_ns + taken_ns;
                }
                Event::Run(ns) => self.now = self.now.saturating_add(ns),
                Event::Free { slot } => *self.slot(slot) = self.now,
            }
        }
    }

    fn slot(&mut self, slot: usize) -> &mut u64 {
        if self.slot_free.len() <= slot {
            self.slot_free.resize(slot + 1, 0);
        }
        &mut self.slot_free[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Event = Event::Load { slot: 0, ns: 10, taken_ns: 0 };
    const FREE: Event = Event::Free { slot: 0 };

    #[test]
    fn one_slot_alternates_reading_and_computing() {
        let events = [LOAD, Event::Run(4), FREE, LOAD, Event::Run(6), FREE];
        let time = NetworkTime::new(&events, true, 7);
        let expected = NetworkTime { resident_ns: 7, first_ns: 30, pass_ns: 30, stall_ns: 20 };
        assert_eq!(time, expected);
        assert_eq!(time.total_ns(3), 7 + 3 * 30);
    }

    #[test]
    fn what_is_read_ahead_takes_time_too() {
        let load = Event::Load { slot: 0, ns: 10, taken_ns: 2 };
        let time = NetworkTime::new(&[load, FREE, Event::Run(50)], true, 0);
        assert_eq!((time.first_ns, time.pass_ns, time.stall_ns), (62, 52, 0));
    }

    #[test]
    fn a_second_slot_hides_what_the_slower_one_leaves() {
        let other = Event::Load { slot: 1, ns: 10, taken_ns: 0 };
        let free = Event::Free { slot: 1 };
        let computing = [LOAD, Event::Run(15), FREE, other, Event::Run(15), free];
        let time = NetworkTime::new(&computing, true, 0);
        assert_eq!((time.first_ns, time.pass_ns, time.stall_ns), (40, 30, 0));
        let reading = [LOAD, Event::Run(3), FREE, other, Event::Run(3), free];
        let time = NetworkTime::new(&reading, true, 0);
        assert_eq!((time.first_ns, time.pass_ns, time.stall_ns), (23, 20, 14));
    }
}
