//! Edges between networks: inputs that are outputs of an earlier network.

use std::collections::HashMap;
use std::ops::Range;

use super::violation::{Violation, buffer_at, port_len_bytes};
use crate::plan::{
    BufferId, GUIDANCE_BRANCHES, Input, Network, NetworkId, Plan, Port, Role, Slice, Source,
};

/// The outputs that networks read, by buffer.
pub(super) struct Edges {
    holds: HashMap<BufferId, Vec<Hold>>,
    /// The networks of the sampler's loop.
    looped: Range<usize>,
}

/// An output that must keep its value for an input.
struct Hold {
    /// Index of the network that computes it.
    producer: usize,
    /// Index of the network that reads it.
    consumer: usize,
    reader: String,
}

impl Edges {
    /// Checks that each producer exists, runs before its consumer and has an output that fits.
    ///
    /// Requires: roles are unique and in order.
    pub(super) fn check(plan: &Plan) -> Result<Edges, Violation> {
        let mut holds: HashMap<BufferId, Vec<Hold>> = HashMap::new();
        for (consumer, network) in plan.networks.iter().enumerate() {
            for input in &network.inputs {
                let Some((producer, output)) = output_of(plan, consumer, input)? else { continue };
                check_slice(plan, (&plan.networks[producer], output), (network, input))?;
                let reader = Violation::input(network, input);
                let hold = Hold { producer, consumer, reader };
                let list = holds.entry(output.buffer).or_default();
                // One hold for each pair of networks, whatever the number of inputs.
                if !list.iter().any(|h| (h.producer, h.consumer) == (producer, consumer)) {
                    list.push(hold);
                }
            }
        }
        Ok(Edges { holds, looped: plan.looped() })
    }

    /// Checks that the sources of a network's inputs are live until they are read for the last
    /// time.
    ///
    /// Requires: every buffer is in the plan. `spans` has one entry a network.
    pub(super) fn check_live(
        plan: &Plan,
        spans: &[(u32, u32)],
        consumer: usize,
    ) -> Result<(), Violation> {
        let (network, looped) = (&plan.networks[consumer], plan.looped());
        let until = match looped.contains(&consumer) {
            true => spans[looped.end - 1].1,
            // All inputs are read at the network's first instant.
            false => spans[consumer].0 + 1,
        };
        for input in &network.inputs {
            let Some((producer, output)) = output_of(plan, consumer, input)? else { continue };
            let source = &plan.buffers[output.buffer.index()];
            // A value of the loop outlives the networks of the loop that come before its producer
            // in the plan.
            let from = match looped.contains(&producer) && producer > looped.start {
                true => spans[looped.start].0,
                false => u32::MAX,
            };
            if source.upper < until || source.lower > from {
                let (by, buffer) =
                    (Violation::input(network, input), buffer_at(plan, output.buffer));
                return Err(Violation::SourceNotLive { by, buffer, until });
            }
        }
        Ok(())
    }

    /// The input that still has to read a buffer when a step of a network writes to it.
    pub(super) fn overwritten_by_step(&self, network: usize, buffer: BufferId) -> Option<&str> {
        // A consumer that runs once has read its inputs when its steps begin.
        let held = |hold: &&Hold| match self.looped.contains(&hold.consumer) {
            true => self.is_held_in_loop(hold, network),
            false => hold.producer < network && network < hold.consumer,
        };
        self.of(buffer).find(held).map(|hold| hold.reader.as_str())
    }

    /// The input that still has to read a buffer when an input of a network is written to it.
    pub(super) fn overwritten_by_input(&self, network: usize, buffer: BufferId) -> Option<&str> {
        let held = |hold: &&Hold| match self.looped.contains(&hold.consumer) {
            true => self.is_held_in_loop(hold, network),
            false => hold.producer < network && network <= hold.consumer,
        };
        self.of(buffer).find(held).map(|hold| hold.reader.as_str())
    }

    /// Whether a network may run between a producer and a consumer in the loop.
    fn is_held_in_loop(&self, hold: &Hold, network: usize) -> bool {
        let from =
            if self.looped.contains(&hold.producer) { self.looped.start } else { hold.producer };
        (from..self.looped.end).contains(&network) && network != hold.producer
    }

    fn of(&self, buffer: BufferId) -> impl Iterator<Item = &Hold> {
        self.holds.get(&buffer).map_or(&[][..], Vec::as_slice).iter()
    }
}

/// The producer of an input and its output; `None` if the host writes the input.
fn output_of<'a>(
    plan: &'a Plan,
    consumer: usize,
    input: &Input,
) -> Result<Option<(usize, &'a Port)>, Violation> {
    let Source::Output { network: NetworkId(id), output, .. } = input.source else {
        return Ok(None);
    };
    let by = || Violation::input(&plan.networks[consumer], input);
    let no_such = |what, id, count| Violation::NoSuch { by: by(), what, id, count };
    let count = plan.networks.len();
    let producer = plan.networks.get(id as usize).ok_or_else(|| no_such("network", id, count))?;
    if id as usize >= consumer || !has_run(producer.role, plan.networks[consumer].role) {
        return Err(Violation::SourceNotRun { by: by(), network: producer.name.clone() });
    }
    let count = producer.outputs.len();
    let port = producer.outputs.get(output as usize);
    Ok(Some((id as usize, port.ok_or_else(|| no_such("output", output, count))?)))
}

/// Whether a producer runs in every image before its consumer, if it stands before it in the plan.
fn has_run(producer: Role, consumer: Role) -> bool {
    match producer {
        // It runs only for an initial image.
        Role::ImageEncoder => false,
        // Which denoisers run is the user's choice; a shallow one follows its whole one.
        Role::Denoiser => consumer == Role::ShallowDenoiser,
        Role::ConditionalDenoiser => consumer == Role::ShallowConditionalDenoiser,
        Role::ShallowDenoiser | Role::ShallowConditionalDenoiser => false,
        _ => true,
    }
}

fn check_slice(
    plan: &Plan,
    (producer, output): (&Network, &Port),
    (consumer, input): (&Network, &Input),
) -> Result<(), Violation> {
    let Source::Output { slice, .. } = input.source else { return Ok(()) };
    let (from_bytes, to_bytes) = (port_len_bytes(output), port_len_bytes(&input.port));
    let rows_are = |row_bytes: u64, rows: u32, total_bytes| {
        row_bytes > 0 && row_bytes.checked_mul(rows.into()) == Some(total_bytes)
    };
    let is_copied = output.buffer != input.port.buffer;
    let fits = match slice {
        Slice::InPlace => !is_copied && from_bytes == to_bytes && output.shape == input.port.shape,
        Slice::Whole => is_copied && from_bytes == to_bytes,
        Slice::GuidanceBranch => {
            is_copied
                && consumer.role.is_denoiser()
                && plan.manifest.batch_of(consumer.role) == 1
                && plan.manifest.guidance_branches == GUIDANCE_BRANCHES
                && rows_are(to_bytes, GUIDANCE_BRANCHES, from_bytes)
        }
        Slice::TimestepRow { row_bytes, copies } => {
            is_copied
                && consumer.role.is_denoiser()
                && producer.role == Role::TimestepProjection
                && rows_are(row_bytes, plan.manifest.timestep_rows, from_bytes)
                && rows_are(row_bytes, copies, to_bytes)
        }
    };
    if fits && output.dtype == input.port.dtype {
        return Ok(());
    }
    Err(Violation::Slice {
        by: Violation::input(consumer, input),
        slice,
        network: producer.name.clone(),
        output: output.name.clone(),
    })
}
