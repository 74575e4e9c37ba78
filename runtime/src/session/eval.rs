//! Evaluates one network on given inputs: for tests, comparisons and measurements.

use std::sync::Arc;

use kiln_bundle::plan::{Port, Source};

use super::{HostInputs, Session};
use crate::error::RuntimeError;
use crate::tensor::{self, Tensor, Values, port_elems};

impl Session {
    /// Runs one network and returns its first output.
    ///
    /// An input that is not given comes from its source in the plan: the source's network runs
    /// first, on the given inputs. `unet` takes `latent`, `timestep` and `context`, also if parts
    /// of it are hoisted.
    /// Shapes: tensors of four axes are `[N, C, H, W]` here and in the answer; all others are as on
    /// the device. An input of one row is repeated for a network of two, and the answer is then the
    /// first row: `text_encoder` takes `tokens: [1, 77]` and gives `[1, 77, C]`.
    /// Errors: `Input` if a network, an input or a shape is wrong; otherwise the errors of a run.
    pub fn eval(
        &mut self,
        network: &str,
        inputs: &[(&str, &Tensor)],
    ) -> Result<Tensor, RuntimeError> {
        let target = self.index_of(network)?;
        let mut sequence = Vec::new();
        self.require(target, inputs, &mut sequence)?;
        sequence.sort_unstable();
        self.check_names(&sequence, inputs)?;
        let (answer, _) = self.with_stream(&sequence, |session, stream| {
            let mut repeats = usize::MAX;
            for &network in &sequence {
                repeats = session.give(network, inputs)?;
                session.executor.run(network, stream)?;
            }
            session.answer(target, repeats)
        })?;
        Ok(answer)
    }

    fn index_of(&self, name: &str) -> Result<usize, RuntimeError> {
        let networks = &self.plan().networks;
        networks.iter().position(|network| network.name == name).ok_or_else(|| {
            let names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
            RuntimeError::Input(format!("no network {name:?}; there are: {}", names.join(", ")))
        })
    }

    /// Adds a network and the networks that its inputs come from.
    fn require(
        &self,
        network: usize,
        inputs: &[(&str, &Tensor)],
        sequence: &mut Vec<usize>,
    ) -> Result<(), RuntimeError> {
        if sequence.contains(&network) {
            return Ok(());
        }
        sequence.push(network);
        let entry = &self.plan().networks[network];
        for input in &entry.inputs {
            match input.source {
                _ if given(&input.port, inputs).is_some() => {}
                Source::Output { network, .. } => {
                    self.require(network.index(), inputs, sequence)?
                }
                Source::Host(_) => {
                    let (name, shape) = (&input.port.name, given_shape(&input.port));
                    let message = format!("{} needs {name:?} of shape {shape:?}", entry.name);
                    return Err(RuntimeError::Input(message));
                }
            }
        }
        Ok(())
    }

    fn check_names(
        &self,
        sequence: &[usize],
        inputs: &[(&str, &Tensor)],
    ) -> Result<(), RuntimeError> {
        let networks = &self.plan().networks;
        let inputs_of = sequence.iter().flat_map(|&network| &networks[network].inputs);
        let mut ports = inputs_of.map(|input| &input.port);
        for (name, _) in inputs {
            if !ports.clone().any(|port| port.name == *name) {
                let names: Vec<&str> = ports.by_ref().map(|port| port.name.as_str()).collect();
                let message = format!("no input {name:?}; there are: {}", names.join(", "));
                return Err(RuntimeError::Input(message));
            }
        }
        Ok(())
    }

    /// Writes or copies a network's inputs. Returns the number of repetitions of the given rows.
    fn give(&mut self, network: usize, inputs: &[(&str, &Tensor)]) -> Result<usize, RuntimeError> {
        let bundle = Arc::clone(&self.bundle);
        let entry = &bundle.plan().networks[network];
        let mut repeats = usize::MAX;
        for input in &entry.inputs {
            match given(&input.port, inputs) {
                Some(tensor) => {
                    repeats = repeats.min(self.write_tensor(&input.port, tensor)?);
                }
                None => self.provide(entry, input, HostInputs::default())?,
            }
        }
        Ok(repeats)
    }

    fn write_tensor(&mut self, port: &Port, tensor: &Tensor) -> Result<usize, RuntimeError> {
        let (elems, count) = (port_elems(port), tensor.elem_count());
        let shape = given_shape(port);
        let fits = match (tensor.shape.as_slice(), shape.as_slice()) {
            ([_, rest @ ..], [_, port_rest @ ..]) if !port_rest.is_empty() => rest == port_rest,
            _ => true,
        };
        let product: usize = tensor.shape.iter().product();
        if !fits || product != count || count == 0 || !elems.is_multiple_of(count) {
            let (name, found) = (&port.name, &tensor.shape);
            return Err(RuntimeError::Input(format!(
                "input {name:?} has shape {found:?}; it takes {shape:?} or one row of it"
            )));
        }
        let bytes = &mut self.host.bytes;
        match (&tensor.values, port.shape.as_slice()) {
            (Values::I32(values), _) => {
                tensor::encode_i32(port, values.iter().copied().cycle().take(elems), bytes)?;
            }
            (Values::F32(values), [_, _, _, channels]) => {
                let rows = values.chunks(values.len() / tensor.shape[0]);
                let last = rows.flat_map(|row| tensor::to_channels_last(row, *channels as usize));
                tensor::encode(port, last.cycle().take(elems), bytes)?;
            }
            (Values::F32(values), _) => {
                tensor::encode(port, values.iter().copied().cycle().take(elems), bytes)?;
            }
        }
        self.executor.write_port(port, &self.host.bytes)?;
        Ok(elems / count)
    }

    /// The first output without its repeated rows.
    fn answer(&mut self, network: usize, repeats: usize) -> Result<Tensor, RuntimeError> {
        let name = self.plan().networks[network].name.clone();
        let Some(port) = self.plan().networks[network].outputs.first().cloned() else {
            return Err(RuntimeError::Plan(format!("{name} has no output")));
        };
        self.read_output(network, 0)?;
        let mut shape: Vec<usize> = port.shape.iter().map(|&axis| axis as usize).collect();
        if let Some(rows) = shape.first_mut()
            && rows.is_multiple_of(repeats)
        {
            *rows /= repeats;
        }
        let elems: usize = shape.iter().product();
        let values = &self.host.values[..elems];
        if let [rows, height, width, channels] = shape[..] {
            let rows_of = values.chunks(values.len() / rows);
            let first = rows_of.flat_map(|row| tensor::to_channels_first(row, channels));
            return Ok(Tensor::f32(&[rows, channels, height, width], first.collect()));
        }
        Ok(Tensor::f32(&shape, values.to_vec()))
    }
}

/// The shape of a port as tensors are given: four axes are `[N, C, H, W]`.
fn given_shape(port: &Port) -> Vec<usize> {
    let shape: Vec<usize> = port.shape.iter().map(|&axis| axis as usize).collect();
    match shape[..] {
        [rows, height, width, channels] => vec![rows, channels, height, width],
        _ => shape,
    }
}

fn given<'a>(port: &Port, inputs: &[(&str, &'a Tensor)]) -> Option<&'a Tensor> {
    inputs.iter().find(|(name, _)| *name == port.name).map(|&(_, tensor)| tensor)
}
