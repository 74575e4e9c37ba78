//! A bundle on a device: makes images, or evaluates one network.
//!
//! The plan says what each network is for, where each input comes from and which resident weights
//! each network reads and overwrites. The session runs the networks in the order that the sampler
//! needs, and writes the values that are the host's.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kiln_bundle::BundleFile;
pub use kiln_bundle::lora::Lora;
use kiln_bundle::plan::{Feed, Input, Network, Plan, Slice, Source};

use crate::device::{self, DeviceFacts};
use crate::error::RuntimeError;
use crate::executor::{Executor, LaunchTime};
use crate::memory::Allocations;
use crate::pipeline::emphasis;
use crate::pipeline::tokenizer::Tokenizer;
use crate::program::ProgramOrigin;
use crate::reading::WeightReads;
use crate::stream::{Stream, StreamStats};
use crate::tensor::{self, port_bytes, port_elems};

mod canvas;
mod eval;
mod evaluations;
mod finite;
mod generate;
mod measure;
mod prepare;
mod residency;
mod roles;
mod settings;

pub use crate::executor::{Canceller, ExecutorOptions};
pub use finite::NotFiniteOp;
pub use generate::{Decoder, DumpHook, Init, Picture, Progress, Request};
pub use measure::LaunchSeconds;
pub use settings::Settings;
#[cfg(feature = "cli")]
pub(crate) use {canvas::check_init, generate::latent_name, roles::decoder};

use residency::Residents;

/// How a bundle is opened.
#[derive(Clone, PartialEq, Debug)]
pub struct SessionOptions {
    /// `auto`, an index, or part of a name; see [`device::select`].
    pub device: String,
    /// Largest planned peak that is accepted; `None` accepts any plan.
    pub budget_bytes: Option<u64>,
    /// How the plan is loaded on the device.
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
    residents: Residents,
    host: HostBuffers,
    load_seconds: f64,
    /// Names and strengths of the LoRAs.
    loras: Vec<(String, f32)>,
}

/// Values on their way to and from the device, allocated once.
#[derive(Default)]
struct HostBuffers {
    /// A port's bytes.
    bytes: Vec<u8>,
    /// A port's numbers.
    values: Vec<f32>,
    /// The latent, NCHW.
    latent: Vec<f32>,
    /// The latent scaled as the denoiser reads it, NCHW.
    scaled_latent: Vec<f32>,
    /// The denoiser's output for each branch of guidance, NCHW: unconditional and conditional, or
    /// conditional alone.
    branches: Vec<Vec<f32>>,
}

impl HostBuffers {
    fn of(plan: &Plan) -> HostBuffers {
        let inputs = || plan.networks.iter().flat_map(|n| &n.inputs).map(|input| &input.port);
        let ports = || inputs().chain(plan.networks.iter().flat_map(|n| &n.outputs));
        let latent = || vec![0.0; latent_elems(plan)];
        HostBuffers {
            bytes: Vec::with_capacity(ports().map(port_bytes).max().unwrap_or(0) as usize),
            values: Vec::with_capacity(ports().map(port_elems).max().unwrap_or(0)),
            latent: latent(),
            scaled_latent: latent(),
            branches: (0..plan.manifest.guidance_branches).map(|_| latent()).collect(),
        }
    }
}

/// Elements of the latent of one image.
fn latent_elems(plan: &Plan) -> usize {
    let manifest = &plan.manifest;
    manifest.latent_channels as usize * manifest.latent.pixels() as usize
}

/// The host's feeds in one run of a network, and the slices of this run.
#[derive(Clone, Copy, Default)]
struct HostInputs<'a> {
    /// [`Feed::Tokens`].
    tokens: &'a [i32],
    /// [`Feed::Latent`], NCHW.
    latent: &'a [f32],
    /// [`Feed::Image`], channels last.
    image: &'a [f32],
    /// [`Feed::Timestep`].
    timesteps: &'a [f32],
    /// [`Feed::Guidance`].
    guidance: &'a [f32],
    /// [`Feed::Condition`], channels last; zeros if empty.
    condition: &'a [f32],
    /// Row of [`Slice::TimestepRow`].
    row: u64,
    /// Row of [`Slice::GuidanceBranch`]: 0 unconditional, 1 conditional.
    branch: u64,
}

impl Session {
    /// Opens a bundle file and [loads](Self::load) it without reports of progress.
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Session, RuntimeError> {
        Session::load(Arc::new(BundleFile::open(path)?), options, &mut |_, _| {})
    }

    /// Loads an open bundle on a device. Later calls allocate nothing there.
    ///
    /// `progress` receives the number of kernels built, and of all kernels.
    /// Errors: `Budget`; the device is absent, too small, or refuses the kernels.
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
        let loras = Vec::new();
        Ok(Session { bundle, device, executor, tokenizer, residents, host, load_seconds, loras })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.bundle.plan()
    }

    /// The device.
    pub fn device(&self) -> &DeviceFacts {
        &self.device
    }

    /// Origin of the compiled programs.
    pub fn programs(&self) -> ProgramOrigin {
        self.executor.programs()
    }

    /// How weights are read. `None` after [`trim`](Self::trim) until the next load.
    pub fn weight_reads(&self) -> Option<WeightReads> {
        self.executor.weight_reads()
    }

    /// The device's allocations.
    pub fn allocations(&self) -> Allocations {
        self.executor.allocations()
    }

    /// A handle that stops this session's image or evaluation from any thread.
    pub fn canceller(&self) -> Canceller {
        self.executor.canceller().clone()
    }

    /// Sets the LoRAs of later images, with their strengths; without any, weights are the bundle's.
    ///
    /// Errors: `Lora` if one is for another bundle; `Input` if they need more memory than the plan
    /// has for them.
    pub fn set_loras(&mut self, loras: Vec<(Arc<Lora>, f32)>) -> Result<(), RuntimeError> {
        let named = |(lora, strength): &(Arc<Lora>, f32)| (lora.head.name.clone(), *strength);
        let names = loras.iter().map(named).collect();
        self.executor.set_loras(loras)?;
        self.loras = names;
        // They are loaded again, and changed.
        self.residents.forget();
        Ok(())
    }

    /// Releases the device's memory and the large host buffers. Kernels stay. The next image
    /// allocates the same again and reads its weights from the bundle.
    pub fn trim(&mut self) -> Result<(), RuntimeError> {
        self.residents.forget();
        (self.host.bytes, self.host.values) = (Vec::new(), Vec::new());
        self.executor.release_memory()
    }

    /// The times of all launches since the last call. Empty unless the session profiles.
    pub fn take_launch_times(&mut self) -> Result<Vec<LaunchTime>, RuntimeError> {
        self.executor.take_launch_times()
    }

    /// Number of a network's launches that the driver has recorded in command buffers.
    pub fn recorded_launches(&self, network: usize) -> usize {
        self.executor.recorded_launches(network)
    }

    /// Runs `body` with a stream for the sequence of networks. After an error all resident blocks
    /// are loaded again.
    fn with_stream<T>(
        &mut self,
        sequence: &[usize],
        body: impl FnOnce(&mut Session, &mut Stream) -> Result<T, RuntimeError>,
    ) -> Result<(T, StreamStats), RuntimeError> {
        self.executor.canceller().clear();
        let runs = self.residents.schedule(self.bundle.plan(), sequence);
        let run = |session: &mut Session| {
            let mut stream = session.executor.start_stream(runs)?;
            let answer = body(session, &mut stream)?;
            session.executor.finish()?;
            Ok((answer, stream.finish()?))
        };
        let answer = run(self);
        if answer.is_err() {
            self.residents.forget();
            // Enqueued work must not overlap with the next run's loads. The error is already known.
            let _ = self.executor.finish();
        }
        answer
    }

    /// Gives a network its inputs and enqueues it.
    fn run(
        &mut self,
        network: usize,
        values: HostInputs<'_>,
        stream: &mut Stream,
    ) -> Result<(), RuntimeError> {
        let bundle = Arc::clone(&self.bundle);
        let entry = &bundle.plan().networks[network];
        entry.inputs.iter().try_for_each(|input| self.provide(entry, input, values))?;
        self.executor.run(network, stream)
    }

    /// Writes an input, or copies it from its source.
    fn provide(
        &mut self,
        entry: &Network,
        input: &Input,
        values: HostInputs<'_>,
    ) -> Result<(), RuntimeError> {
        let port = &input.port;
        let (network, output, slice) = match input.source {
            Source::Host(feed) => return self.write_feed(entry, input, feed, values),
            Source::Output { network, output, slice } => (network, output, slice),
        };
        let (offset_bytes, len_bytes, copies) = match slice {
            Slice::InPlace => return Ok(()),
            Slice::Whole => (0, port_bytes(port), 1),
            Slice::GuidanceBranch => (values.branch * port_bytes(port), port_bytes(port), 1),
            Slice::TimestepRow { row_bytes, copies } => (values.row * row_bytes, row_bytes, copies),
        };
        let from = &self.bundle.plan().networks[network.index()].outputs[output as usize];
        (0..u64::from(copies)).try_for_each(|copy| {
            let to = (port.buffer, copy * len_bytes);
            self.executor.copy((from.buffer, offset_bytes), to, len_bytes)
        })
    }

    fn write_feed(
        &mut self,
        entry: &Network,
        input: &Input,
        feed: Feed,
        values: HostInputs<'_>,
    ) -> Result<(), RuntimeError> {
        let port = &input.port;
        let elems = port_elems(port);
        let channels = self.bundle.plan().manifest.latent_channels as usize;
        let bytes = &mut self.host.bytes;
        match feed {
            Feed::Tokens => tensor::encode_i32(port, values.tokens.iter().copied(), bytes)?,
            Feed::Latent => {
                let rows = tensor::to_channels_last(values.latent, channels).cycle();
                tensor::encode(port, rows.take(elems), bytes)?;
            }
            Feed::Image => tensor::encode(port, values.image.iter().copied(), bytes)?,
            Feed::Guidance => {
                let rows = values.guidance.iter().copied().cycle();
                tensor::encode(port, rows.take(elems), bytes)?;
            }
            Feed::Condition => {
                let rows = values.condition.iter().copied().cycle();
                let rows = rows.chain(std::iter::repeat(0.0));
                tensor::encode(port, rows.take(elems), bytes)?;
            }
            Feed::Timestep => {
                let given = values.timesteps;
                let missing = elems.saturating_sub(given.len());
                let repeated = given.last().into_iter().cycle().take(missing);
                tensor::encode(port, given.iter().chain(repeated).copied(), bytes)?;
            }
        }
        let (len_bytes, found_bytes) = (port_bytes(port), bytes.len());
        if found_bytes as u64 != len_bytes {
            let (name, network) = (&port.name, &entry.name);
            let message =
                format!("input {name:?} of {network} takes {len_bytes} bytes, not {found_bytes}");
            return Err(RuntimeError::Plan(message));
        }
        self.executor.write_port(port, &self.host.bytes)
    }

    /// Weighs the tokens of the text encoder's output, where the next networks read it.
    fn weigh_embedding(
        &mut self,
        network: usize,
        weights: &[Vec<f32>],
    ) -> Result<(), RuntimeError> {
        self.read_output(network, 0)?;
        let host = &mut self.host;
        let row_elems = host.values.len() / weights.len().max(1);
        for (prompt, weights) in host.values.chunks_exact_mut(row_elems.max(1)).zip(weights) {
            emphasis::apply(prompt, weights);
        }
        let port = &self.bundle.plan().networks[network].outputs[0];
        tensor::encode(port, host.values.iter().copied(), &mut host.bytes)?;
        self.executor.write_port(port, &host.bytes)
    }

    /// Reads an output's numbers into `self.host.values`, in the device's layout.
    fn read_output(&mut self, network: usize, output: usize) -> Result<(), RuntimeError> {
        let port = &self.bundle.plan().networks[network].outputs[output];
        self.host.bytes.clear();
        self.host.bytes.resize(port_bytes(port) as usize, 0);
        self.executor.read_port(port, &mut self.host.bytes)?;
        tensor::decode(port, &self.host.bytes, &mut self.host.values)
    }
}
