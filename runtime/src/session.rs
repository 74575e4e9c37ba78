//! A bundle on a device: makes pictures, or evaluates one network.
//!
//! Owns what the plan's networks and ports mean, by their names: `text_encoder`, `unet_prompt`,
//! `unet_time`, `unet` and `decoder`. The two in the middle may be absent: then the U-Net takes
//! `context` and `timestep` itself. `encoder` is there if the bundle was made to have it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::BundleFile;
use kiln_bundle::plan::{Network, Plan};

use crate::device::{self, DeviceFacts};
use crate::error::RuntimeError;
use crate::executor::{Executor, LaunchTime};
use crate::memory::Allocations;
use crate::pipeline::tokenizer::Tokenizer;
use crate::program::ProgramOrigin;
use crate::reading::WeightReads;
use crate::tensor::{self, port_bytes, port_elems};
use crate::weights::Stream;

mod eval;
mod generate;
mod links;
mod measure;
mod prepare;
mod residency;
mod roles;

pub use crate::executor::{Canceller, ExecutorOptions};
pub use generate::{DumpHook, Init, Picture, Progress, Request};
pub use measure::LaunchSeconds;

use links::{Link, Source};
use residency::Residents;

/// How a bundle is opened.
#[derive(Clone, PartialEq, Debug)]
pub struct SessionOptions {
    /// `auto`, an index, or part of a name; see [`device::select`].
    pub device: String,
    /// Most memory that the plan may promise to take; `None` leaves that to the plan.
    pub budget_bytes: Option<u64>,
    /// How it is loaded on the device.
    pub executor: ExecutorOptions,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let executor = ExecutorOptions::default();
        SessionOptions { device: "auto".into(), budget_bytes: None, executor }
    }
}

/// A bundle, loaded on a device.
pub struct Session {
    bundle: Arc<BundleFile>,
    device: DeviceFacts,
    executor: Executor,
    tokenizer: Option<Tokenizer>,
    links: Vec<Vec<Link>>,
    residents: Residents,
    host: HostBuffers,
    load_seconds: f64,
}

/// What passes between the device and the rest, allocated once.
#[derive(Default)]
struct HostBuffers {
    /// A port's bytes.
    bytes: Vec<u8>,
    /// A port's numbers.
    values: Vec<f32>,
    /// Latents, NCHW.
    latent: Vec<f32>,
    /// What the U-Net reads, NCHW.
    input: Vec<f32>,
    /// The U-Net's outputs for the unconditional and the conditional branch, NCHW.
    branches: [Vec<f32>; 2],
}

impl HostBuffers {
    fn of(plan: &Plan) -> HostBuffers {
        let ports = || plan.networks.iter().flat_map(|n| n.inputs.iter().chain(&n.outputs));
        let latent = || vec![0.0; latent_elems(plan)];
        HostBuffers {
            bytes: Vec::with_capacity(ports().map(port_bytes).max().unwrap_or(0) as usize),
            values: Vec::with_capacity(ports().map(port_elems).max().unwrap_or(0)),
            latent: latent(),
            input: latent(),
            branches: [latent(), latent()],
        }
    }
}

/// Elements of the latents of one picture.
fn latent_elems(plan: &Plan) -> usize {
    let manifest = &plan.manifest;
    manifest.latent_channels as usize * (manifest.latent_px as usize).pow(2)
}

/// What the host has for the inputs of a network.
#[derive(Clone, Copy, Default)]
struct Feed<'a> {
    /// Tokens of all rows.
    tokens: &'a [i32],
    /// One picture's latents, NCHW.
    latent: &'a [f32],
    /// A picture, channels last.
    image: &'a [f32],
    /// Timesteps, of which the last is repeated where there is room for more.
    timesteps: &'a [f32],
    /// Row of the table of timesteps.
    row: u64,
    /// Branch of guidance: 0 unconditional, 1 conditional.
    branch: u64,
}

impl Session {
    /// Opens a bundle and loads it on a device: from here on nothing is allocated there.
    ///
    /// Errors: [`RuntimeError`]; the device may be absent, too small, or refuse the kernels.
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
        Session::open_with(path, options, &mut |_, _| {})
    }

    /// As [`open`](Self::open). `progress` hears how many kernels are built, and of how many.
    pub fn open_with(
        path: &Path,
        options: &SessionOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session, RuntimeError> {
        Session::load(Arc::new(BundleFile::open(path)?), options, progress)
    }

    /// As [`open_with`](Self::open_with), for a bundle that is open.
    ///
    /// Errors: also `Budget`.
    pub fn load(
        bundle: Arc<BundleFile>,
        options: &SessionOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Session, RuntimeError> {
        let started = Instant::now();
        let peak_bytes = bundle.plan().memory.peak_bytes();
        if let Some(budget_bytes) = options.budget_bytes.filter(|&bytes| bytes < peak_bytes) {
            return Err(RuntimeError::Budget { peak_bytes, budget_bytes });
        }
        let links = links::resolve(bundle.plan())?;
        let device = device::select(&options.device)?;
        device.meets(bundle.plan())?;
        let tokenizer = match bundle.tokenizer() {
            [] => None,
            merges => Some(Tokenizer::from_merges(merges)?),
        };
        let executor = Executor::load(Arc::clone(&bundle), &device, &options.executor, progress)?;
        let residents = Residents::of(bundle.plan());
        let host = HostBuffers::of(bundle.plan());
        let load_seconds = started.elapsed().as_secs_f64();
        Ok(Session { bundle, device, executor, tokenizer, links, residents, host, load_seconds })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.bundle.plan()
    }

    /// The device.
    pub fn device(&self) -> &DeviceFacts {
        &self.device
    }

    /// Where the compiled programs came from.
    pub fn programs(&self) -> ProgramOrigin {
        self.executor.programs()
    }

    /// How weights are read; `None` while the memory has been given back.
    pub fn weight_reads(&self) -> Option<WeightReads> {
        self.executor.weight_reads()
    }

    /// What is allocated on the device.
    pub fn allocations(&self) -> Allocations {
        self.executor.allocations()
    }

    /// What stops a picture or an evaluation of this session.
    pub fn canceller(&self) -> Canceller {
        self.executor.canceller().clone()
    }

    /// Gives the device's memory and the large host buffers back. The next picture allocates
    /// them again, as loading did, and reads what it needs from the bundle; kernels stay.
    pub fn trim(&mut self) -> Result<(), RuntimeError> {
        self.residents.forget();
        (self.host.bytes, self.host.values) = (Vec::new(), Vec::new());
        self.executor.release_memory()
    }

    /// The times of all launches since the last call; none unless opened with profiling.
    pub fn take_launch_times(&mut self) -> Result<Vec<LaunchTime>, RuntimeError> {
        self.executor.take_launch_times()
    }

    /// How many launches of a network the driver has recorded, to be enqueued in few calls.
    pub fn recorded_launches(&self, network: usize) -> usize {
        self.executor.recorded_launches(network)
    }

    fn network(&self, name: &str) -> Result<usize, RuntimeError> {
        let networks = &self.plan().networks;
        networks.iter().position(|network| network.name == name).ok_or_else(|| {
            let names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
            RuntimeError::Input(format!("no network {name:?}; there are: {}", names.join(", ")))
        })
    }

    /// Runs `body` with a stream for the sequence of networks; after an error nothing is taken
    /// to be in the arena.
    fn with_stream<T>(
        &mut self,
        sequence: &[usize],
        body: impl FnOnce(&mut Session, &mut Stream) -> Result<T, RuntimeError>,
    ) -> Result<(T, crate::weights::StreamStats), RuntimeError> {
        self.executor.canceller().clear();
        let runs = self.residents.schedule(sequence);
        let run = |session: &mut Session| {
            let mut stream = session.executor.start_stream(runs)?;
            let answer = body(session, &mut stream)?;
            session.executor.finish()?;
            Ok((answer, stream.finish()?))
        };
        let answer = run(self);
        if answer.is_err() {
            self.residents.forget();
            // What is still enqueued must not meet the next run's loads; the error is known.
            let _ = self.executor.finish();
        }
        answer
    }

    /// Gives a network its inputs and enqueues it.
    fn run(
        &mut self,
        network: usize,
        feed: Feed<'_>,
        stream: &mut Stream,
    ) -> Result<(), RuntimeError> {
        let bundle = Arc::clone(&self.bundle);
        let entry = &bundle.plan().networks[network];
        for input in 0..entry.inputs.len() {
            self.transfer(entry, network, input, feed)?;
        }
        self.executor.run(network, stream)
    }

    fn transfer(
        &mut self,
        entry: &Network,
        network: usize,
        input: usize,
        feed: Feed<'_>,
    ) -> Result<(), RuntimeError> {
        let port = &entry.inputs[input];
        let to = |copy: u64, len_bytes: u64| (port.buffer, copy * len_bytes);
        match self.links[network][input].source {
            Source::Shared => Ok(()),
            Source::Whole { from, len_bytes } => self.executor.copy((from, 0), to(0, 0), len_bytes),
            Source::Half { from, len_bytes } => {
                self.executor.copy((from, feed.branch * len_bytes), to(0, 0), len_bytes)
            }
            Source::Row { from, row_bytes, copies } => (0..copies).try_for_each(|copy| {
                self.executor.copy((from, feed.row * row_bytes), to(copy, row_bytes), row_bytes)
            }),
            Source::Host => self.write_input(entry, input, feed),
        }
    }

    fn write_input(
        &mut self,
        entry: &Network,
        input: usize,
        feed: Feed<'_>,
    ) -> Result<(), RuntimeError> {
        let port = &entry.inputs[input];
        let elems = port_elems(port);
        let channels = self.bundle.plan().manifest.latent_channels as usize;
        let bytes = &mut self.host.bytes;
        let misfit = |found: usize| {
            let (name, network) = (&port.name, &entry.name);
            let message = format!("input {name:?} of {network} takes {elems} values, not {found}");
            Err(RuntimeError::Plan(message))
        };
        match port.name.as_str() {
            "tokens" if elems == feed.tokens.len() => {
                tensor::encode_i32(port, feed.tokens.iter().copied(), bytes)?;
            }
            "tokens" => return misfit(feed.tokens.len()),
            "latent" if !feed.latent.is_empty() && elems.is_multiple_of(feed.latent.len()) => {
                let rows = tensor::to_channels_last(feed.latent, channels).cycle();
                tensor::encode(port, rows.take(elems), bytes)?;
            }
            "latent" => return misfit(feed.latent.len()),
            "image" if elems == feed.image.len() => {
                tensor::encode(port, feed.image.iter().copied(), bytes)?;
            }
            "image" => return misfit(feed.image.len()),
            "timestep" if !feed.timesteps.is_empty() && elems >= feed.timesteps.len() => {
                let last = feed.timesteps[feed.timesteps.len() - 1];
                let padded = feed.timesteps.iter().copied().chain(std::iter::repeat(last));
                tensor::encode(port, padded.take(elems), bytes)?;
            }
            "timestep" => return misfit(feed.timesteps.len()),
            name => {
                let network = &entry.name;
                let message = format!("nothing gives {network} its input {name:?}");
                return Err(RuntimeError::Plan(message));
            }
        }
        self.executor.write_port(port, &self.host.bytes)
    }

    /// Reads an output's numbers into `self.host.values`, as they lie on the device.
    fn read_output(&mut self, network: usize, output: usize) -> Result<(), RuntimeError> {
        let port = &self.bundle.plan().networks[network].outputs[output];
        self.host.bytes.clear();
        self.host.bytes.resize(port_bytes(port) as usize, 0);
        self.executor.read_port(port, &mut self.host.bytes)?;
        tensor::decode(port, &self.host.bytes, &mut self.host.values)
    }
}
