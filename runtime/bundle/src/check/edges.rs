//! Edges between networks: inputs that are outputs of an earlier network.

use std::collections::HashMap;

use super::violation::{Violation, buffer_at, port_len_bytes};
use crate::plan::{
    BufferId, GUIDANCE_BRANCHES, Input, Network, NetworkId, Plan, Port, Role, Slice, Source,
};

/// The outputs that networks read, by buffer.
pub(super) struct Edges {
    holds: HashMap<BufferId, Vec<Hold>>,
}

/// An output that must keep its value for an input.
struct Hold {
    /// Index of the network that computes it.
    producer: usize,
    /// Index of the network that reads it.
    consumer: usize,
    /// Index of the last network that may run before it is read for the last time.
    last: usize,
    /// The consumer runs again within the sampler's loop.
    looped: bool,
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
                let looped = network.role.is_looped();
                let last = plan.with_role(Role::Denoiser).filter(|_| looped).unwrap_or(consumer);
                let reader = Violation::input(network, input);
                let hold = Hold { producer, consumer, last, looped, reader };
                let list = holds.entry(output.buffer).or_default();
                // One hold for each pair of networks, whatever the number of inputs.
                if !list.iter().any(|h| (h.producer, h.consumer) == (producer, consumer)) {
                    list.push(hold);
                }
            }
        }
        Ok(Edges { holds })
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
        let network = &plan.networks[consumer];
        let until = match plan.with_role(Role::Denoiser).filter(|_| network.role.is_looped()) {
            Some(denoiser) => spans[denoiser].1,
            // All inputs are read at the network's first instant.
            None => spans[consumer].0 + 1,
        };
        for input in &network.inputs {
            let Some((producer, output)) = output_of(plan, consumer, input)? else { continue };
            let source = &plan.buffers[output.buffer.index()];
            // The timestep projection's outputs outlive a preview, which comes before it in the
            // plan.
            let from = match plan.with_role(Role::TinyDecoder) {
                Some(tiny) if network.role.is_looped() && producer > tiny => spans[tiny].0,
                _ => u32::MAX,
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
        let held = |hold: &&Hold| match hold.looped {
            true => hold.producer < network && network <= hold.last,
            false => hold.producer < network && network < hold.last,
        };
        self.of(buffer).find(held).map(|hold| hold.reader.as_str())
    }

    /// The input that still has to read a buffer when an input of a network is written to it.
    pub(super) fn overwritten_by_input(&self, network: usize, buffer: BufferId) -> Option<&str> {
        let held = |hold: &&Hold| hold.producer < network && network <= hold.last;
        self.of(buffer).find(held).map(|hold| hold.reader.as_str())
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
    // An image encoder runs only for an initial image.
    if id as usize >= consumer || producer.role == Role::ImageEncoder {
        return Err(Violation::SourceNotRun { by: by(), network: producer.name.clone() });
    }
    let count = producer.outputs.len();
    let port = producer.outputs.get(output as usize);
    Ok(Some((id as usize, port.ok_or_else(|| no_such("output", output, count))?)))
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
                && consumer.role == Role::Denoiser
                && plan.manifest.guidance_batch == 1
                && plan.manifest.guidance_branches == GUIDANCE_BRANCHES
                && rows_are(to_bytes, GUIDANCE_BRANCHES, from_bytes)
        }
        Slice::TimestepRow { row_bytes, copies } => {
            is_copied
                && consumer.role == Role::Denoiser
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
