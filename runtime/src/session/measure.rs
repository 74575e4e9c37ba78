//! Times whole networks: with weights and inputs, as for an image, and their launches alone.

use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::plan::{Feed, Source};

use super::{HostInputs, Session, latent_elems};
use crate::error::RuntimeError;
use crate::pipeline::rng::NormalRng;
use crate::stream::StreamStats;
use crate::tensor::port_elems;

/// A timestep in the middle of the schedule.
const TIMESTEP: f32 = 500.0;

/// The time of a network's launches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LaunchSeconds {
    /// Seconds until the host has passed all launches to the driver.
    pub host: f64,
    /// Seconds until the device is done.
    pub all: f64,
}

/// Inputs of ordinary size for every network.
pub(super) struct Inputs {
    tokens: Vec<i32>,
    latent: Vec<f32>,
    image: Vec<f32>,
    guidance: Vec<f32>,
}

impl Inputs {
    pub fn of(session: &Session) -> Inputs {
        let inputs = || session.plan().networks.iter().flat_map(|network| &network.inputs);
        let elems = |feed| {
            let input = inputs().find(|input| input.source == Source::Host(feed));
            input.map_or(0, |input| port_elems(&input.port))
        };
        let mut latent = vec![0.0; latent_elems(session.plan())];
        NormalRng::from_seed(0).fill(&mut latent);
        let image = (0..elems(Feed::Image)).map(|i| (i % 256) as f32 / 127.5 - 1.0).collect();
        let guidance = vec![0.5; elems(Feed::Guidance)];
        Inputs { tokens: vec![1; elems(Feed::Tokens)], latent, image, guidance }
    }

    pub fn values(&self) -> HostInputs<'_> {
        let Inputs { tokens, latent, image, guidance } = self;
        let timesteps = &[TIMESTEP];
        HostInputs { tokens, latent, image, guidance, timesteps, ..HostInputs::default() }
    }
}

impl Session {
    /// Runs every network once in the plan's order. Afterwards all memory holds ordinary numbers.
    pub fn run_all(&mut self) -> Result<(), RuntimeError> {
        let inputs = Inputs::of(self);
        let sequence: Vec<usize> = (0..self.plan().networks.len()).collect();
        let run = |session: &mut Session, stream: &mut _| {
            sequence.iter().try_for_each(|&network| session.run(network, inputs.values(), stream))
        };
        self.with_stream(&sequence, run).map(drop)
    }

    /// Runs a network `passes` times in a row, weights and inputs included. Returns the seconds of
    /// each pass until the device is done, and the counts of the stream. If `cold`, resident
    /// weights are read again before the first pass.
    pub fn time_passes(
        &mut self,
        network: usize,
        passes: usize,
        cold: bool,
    ) -> Result<(Vec<f64>, StreamStats), RuntimeError> {
        if cold {
            self.residents.forget();
        }
        let inputs = Inputs::of(self);
        self.with_stream(&vec![network; passes], |session, stream| {
            let mut seconds = Vec::with_capacity(passes);
            for _ in 0..passes {
                let started = Instant::now();
                session.run(network, inputs.values(), stream)?;
                session.executor.finish()?;
                seconds.push(started.elapsed().as_secs_f64());
            }
            Ok(seconds)
        })
    }

    /// Times a network's launches alone. Resident weights are in their places; slots hold any
    /// bytes.
    pub fn time_launches(&mut self, network: usize) -> Result<LaunchSeconds, RuntimeError> {
        let bundle = Arc::clone(&self.bundle);
        if network >= bundle.plan().networks.len() {
            return Err(RuntimeError::Input(format!("there is no network {network}")));
        }
        self.executor.finish()?;
        let started = Instant::now();
        self.executor.launch(network)?;
        let host = started.elapsed().as_secs_f64();
        self.executor.finish()?;
        Ok(LaunchSeconds { host, all: started.elapsed().as_secs_f64() })
    }
}
