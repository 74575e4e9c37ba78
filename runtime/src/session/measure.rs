//! Times whole networks: as a picture runs them, and the device's part alone.

use std::sync::Arc;
use std::time::Instant;

use super::{Feed, Session, latent_elems};
use crate::error::RuntimeError;
use crate::pipeline::rng::NormalRng;
use crate::tensor::port_elems;
use crate::weights::StreamStats;

/// A timestep in the middle of the schedule.
const TIMESTEP: f32 = 500.0;

/// The time of a network's launches.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LaunchSeconds {
    /// Until the host has given them all to the driver.
    pub host: f64,
    /// Until the device is done.
    pub all: f64,
}

/// Inputs of ordinary size for every network.
struct Inputs {
    tokens: Vec<i32>,
    latent: Vec<f32>,
    image: Vec<f32>,
}

impl Inputs {
    fn of(session: &Session) -> Inputs {
        let ports = || session.plan().networks.iter().flat_map(|network| &network.inputs);
        let elems = |name| ports().find(|port| port.name == name).map_or(0, port_elems);
        let mut latent = vec![0.0; latent_elems(session.plan())];
        NormalRng::from_seed(0).fill(&mut latent);
        let image = (0..elems("image")).map(|i| (i % 256) as f32 / 127.5 - 1.0).collect();
        Inputs { tokens: vec![1; elems("tokens")], latent, image }
    }

    fn feed(&self) -> Feed<'_> {
        let (tokens, latent, image) = (&self.tokens, &self.latent, &self.image);
        Feed { tokens, latent, image, timesteps: &[TIMESTEP], ..Feed::default() }
    }
}

impl Session {
    /// Runs every network once, in the plan's order, so that all memory holds ordinary numbers.
    pub fn run_all(&mut self) -> Result<(), RuntimeError> {
        let inputs = Inputs::of(self);
        let sequence: Vec<usize> = (0..self.plan().networks.len()).collect();
        let run = |session: &mut Session, stream: &mut _| {
            sequence.iter().try_for_each(|&network| session.run(network, inputs.feed(), stream))
        };
        self.with_stream(&sequence, run).map(drop)
    }

    /// Runs a network `passes` times in a row, weights and inputs included, as a sampler does;
    /// seconds of each pass until the device is done, and what was read. `cold`: resident weights
    /// are read again before the first.
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
                session.run(network, inputs.feed(), stream)?;
                session.executor.finish()?;
                seconds.push(started.elapsed().as_secs_f64());
            }
            Ok(seconds)
        })
    }

    /// Times a network's launches alone: resident weights are where they belong, and what is read
    /// through slots is taken to be there.
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
