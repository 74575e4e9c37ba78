//! Where each input of a network comes from: the host, or an output of a network before it.

use kiln_bundle::plan::{BufferId, Network, Phase, Plan, Port};

use crate::error::RuntimeError;
use crate::tensor::port_bytes;

/// How an input gets its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// The host writes it.
    Host,
    /// A network before leaves it where it is read.
    Shared,
    /// All of an output is copied.
    Whole { from: BufferId, len_bytes: u64 },
    /// The half of an output that belongs to a branch of guidance is copied.
    Half { from: BufferId, len_bytes: u64 },
    /// The row of a table that belongs to a timestep is copied, so many times.
    Row { from: BufferId, row_bytes: u64, copies: u64 },
}

/// One input's source, and the network that makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub source: Source,
    pub producer: Option<usize>,
}

/// The sources of all inputs of all networks.
///
/// An input comes from the output of its name or its buffer in the last network before; the text
/// encoder's `embedding` is what others call `context`.
/// Errors: `Plan` if an output does not fit the input.
pub(super) fn resolve(plan: &Plan) -> Result<Vec<Vec<Link>>, RuntimeError> {
    (0..plan.networks.len())
        .map(|index| plan.networks[index].inputs.iter().map(|i| link(plan, index, i)).collect())
        .collect()
}

fn link(plan: &Plan, network: usize, input: &Port) -> Result<Link, RuntimeError> {
    let before = plan.networks[..network].iter().enumerate().rev();
    let found = before.flat_map(|(index, other)| other.outputs.iter().map(move |o| (index, o)));
    let matches = |(index, output): &(usize, &Port)| {
        let name_alike =
            output.name == input.name || (input.name == "context" && output.name == "embedding");
        // The latent that the decoder takes is no network's.
        (name_alike || output.buffer == input.buffer) && plan.networks[*index].phase != Phase::Step
    };
    let Some((producer, output)) = { found }.find(matches) else {
        return Ok(Link { source: Source::Host, producer: None });
    };
    let source = source(plan, &plan.networks[producer], output, input)?;
    Ok(Link { source, producer: Some(producer) })
}

fn source(
    plan: &Plan,
    producer: &Network,
    output: &Port,
    input: &Port,
) -> Result<Source, RuntimeError> {
    let from = output.buffer;
    if from == input.buffer {
        return Ok(Source::Shared);
    }
    let (out_bytes, in_bytes) = (port_bytes(output), port_bytes(input));
    let rows = u64::from(plan.manifest.timestep_rows.max(1));
    let row_bytes = out_bytes / rows;
    if output.dtype == input.dtype && in_bytes > 0 {
        if producer.phase == Phase::Timesteps {
            if out_bytes.is_multiple_of(rows) && row_bytes > 0 && in_bytes.is_multiple_of(row_bytes)
            {
                return Ok(Source::Row { from, row_bytes, copies: in_bytes / row_bytes });
            }
        } else if out_bytes == in_bytes {
            return Ok(Source::Whole { from, len_bytes: in_bytes });
        } else if out_bytes == 2 * in_bytes {
            return Ok(Source::Half { from, len_bytes: in_bytes });
        }
    }
    Err(RuntimeError::Plan(format!(
        "output {:?} of {} ({:?} {:?}) does not fit input {:?} ({:?} {:?})",
        output.name,
        producer.name,
        output.dtype,
        output.shape,
        input.name,
        input.dtype,
        input.shape
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_find_their_outputs() {
        let mut plan = kiln_bundle::testing::plan();
        let links = resolve(&plan).unwrap();
        // text_encoder, unet_time, unet, decoder
        assert_eq!(links[0], [Link { source: Source::Host, producer: None }]);
        assert_eq!(links[2][0].source, Source::Host);
        assert_eq!(links[2][1], Link { source: Source::Shared, producer: Some(0) });
        assert_eq!(links[3][0].source, Source::Host);

        // The unet's context in a buffer of its own, of one branch.
        plan.networks[2].inputs[1].buffer = BufferId(6);
        let whole = Source::Whole { from: BufferId(2), len_bytes: 256 };
        assert_eq!(resolve(&plan).unwrap()[2][1].source, whole);
        plan.networks[2].inputs[1].shape = vec![4, 8];
        let half = Source::Half { from: BufferId(2), len_bytes: 128 };
        assert_eq!(resolve(&plan).unwrap()[2][1].source, half);
        plan.networks[2].inputs[1].shape = vec![3, 8];
        assert!(resolve(&plan).unwrap_err().to_string().contains("\"context\""));

        // A table of four rows, one wanted twice.
        plan.networks[2].inputs[1] =
            Port { name: "time".into(), shape: vec![2, 4], ..plan.networks[2].inputs[1].clone() };
        let row = Source::Row { from: BufferId(4), row_bytes: 16, copies: 2 };
        assert_eq!(resolve(&plan).unwrap()[2][1].source, row);
    }
}
