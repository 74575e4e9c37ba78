//! From a prompt to an image.

use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

#[cfg(doc)]
use kiln_bundle::plan::Feed;
use kiln_bundle::plan::{Plan, Size, Spacing};

use super::canvas::{Canvas, Ground};
use super::evaluations::{Evaluation, Pace, evaluations};
use super::prepare::TokenizedPrompts;
use super::roles::Roles;
use super::settings::Settings;
use super::{HostInputs, Session, latent_elems};
use crate::error::RuntimeError;
use crate::pipeline::fast::GuidanceInterval;
use crate::pipeline::png::{GenerationParameters, RgbImage};
use crate::pipeline::rng::NormalRng;
use crate::pipeline::sampler::{self, Level, Sampler, SamplerEntry};
use crate::pipeline::tokenizer::CONTEXT_LENGTH;
use crate::report::{MeasuredMemory, PlannedMemory, Report, Times};
use crate::stream::Stream;
use crate::tensor::{self, Tensor};

/// Receives each tensor on the way to an image: `tokens`, `embedding`, `latent_000` (the noise),
/// the latent after each step, `decoded`. Tensors are NCHW.
pub type DumpHook<'a> = dyn Fn(&str, &Tensor) -> Result<(), RuntimeError> + 'a;

/// A request for an image.
#[derive(Clone, Default)]
pub struct Request<'a> {
    /// What the image shows.
    pub prompt: String,
    /// What the image does not show.
    pub negative_prompt: String,
    /// Whether brackets in the prompts are text, not weights as [`emphasis`] reads them.
    ///
    /// [`emphasis`]: crate::pipeline::emphasis
    pub plain_prompt: bool,
    /// Seed of the noise; see [`NormalRng::from_seed`].
    pub seed: u64,
    /// Steps of the sampler; the model's default if none.
    pub steps: Option<usize>,
    /// Scale of classifier-free guidance. 1 uses the conditional branch alone. The model's default
    /// if none.
    pub guidance: Option<f32>,
    /// Name of the sampler, see [`sampler::SAMPLERS`]; the model's default if none.
    pub sampler: Option<String>,
    /// Spacing of the sampler's timesteps: `leading`, `trailing`, `linspace` or `karras`. The
    /// model's default if none.
    pub spacing: Option<String>,
    /// Share, 0 to 1, by which the standard deviation of the guided output becomes that of the
    /// conditional branch.
    pub guidance_rescale: f32,
    /// Noise that each step of `ddim` and `tcd` adds, 0 to 1; the sampler's default if none.
    pub eta: Option<f32>,
    /// Preset of steps that cost less, an index into [`fast::PRESETS`]. 0 has none.
    ///
    /// [`fast::PRESETS`]: crate::pipeline::fast::PRESETS
    pub fast: usize,
    /// The steps with guidance; the preset's if none.
    pub guidance_interval: Option<GuidanceInterval>,
    /// Evaluations from one whole pass of the denoiser to the next; the preset's if none.
    pub cache_interval: Option<usize>,
    /// Initial latents, NCHW, of variance 1, in place of the seed's noise.
    pub initial_latent: Option<Vec<f32>>,
    /// An initial image.
    pub init: Option<Init>,
    /// The decoder. By default, the full one if the bundle has it, else the tiny one.
    pub decoder: Option<Decoder>,
    /// Steps between previews by the tiny decoder, if the bundle has one; 0 is none.
    pub preview_every: usize,
    /// Receives each tensor on the way to the image.
    pub dump: Option<&'a DumpHook<'a>>,
}

/// A network that turns latents into images.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decoder {
    /// The decoder of the model's autoencoder.
    Full,
    /// The decoder of a tiny autoencoder.
    Tiny,
}

impl FromStr for Decoder {
    type Err = String;

    fn from_str(name: &str) -> Result<Decoder, String> {
        match name {
            "full" => Ok(Decoder::Full),
            "tiny" => Ok(Decoder::Tiny),
            _ => Err(format!("no decoder {name:?}; there are full and tiny")),
        }
    }
}

/// An initial image.
#[derive(Clone, PartialEq, Debug)]
pub struct Init {
    /// The image. It is scaled and cut to the model's size.
    pub image: RgbImage,
    /// Fraction of the steps that run, over 0 and at most 1. Near 0 the image stays as it is; at 1
    /// almost nothing of it is left.
    pub strength: f64,
    /// The part to repaint, scaled and cut like the image: white is repainted, black is kept, gray
    /// mixes the two. All is repainted if none.
    pub mask: Option<RgbImage>,
}

impl Request<'_> {
    /// The parameters that an image file records.
    pub fn parameters(&self, report: &Report) -> GenerationParameters {
        let settings = &report.settings;
        let entry = SamplerEntry::find(settings.sampler);
        GenerationParameters {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            plain_prompt: self.plain_prompt,
            seed: self.seed,
            steps: settings.steps,
            guidance: settings.guidance,
            guidance_rescale: settings.guidance_rescale,
            sampler: settings.sampler,
            sampler_title: entry.map_or(settings.sampler, |entry| entry.title),
            spacing: settings.spacing.map(Spacing::name),
            eta: settings.eta,
            model: report.model.clone(),
            strength: self.init.as_ref().map(|init| init.strength),
            repaint: report.repaint.clone(),
            fast: settings.fast,
            savings: settings.savings,
            loras: report.loras.clone(),
        }
    }
}

/// Progress of an image. The observer may stop it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress<'a> {
    /// The prompt is being encoded.
    Prompt,
    /// A step of the sampler is done.
    Step {
        /// Steps that are done.
        done: usize,
        /// Steps in all.
        steps: usize,
        /// Duration of this step.
        seconds: f64,
        /// Predicted seconds of the remaining steps.
        seconds_left: f64,
        /// Time that the device has waited for weights since the image was begun.
        waited_seconds: f64,
        /// Timestep of this step, that of its last evaluation.
        timestep: f32,
        /// The latent after the step, NCHW.
        latent: &'a [f32],
        /// The latent of the image that the step predicts, NCHW, for a preview. It has no noise
        /// from the first step on.
        picture: &'a [f32],
        /// This image from the tiny decoder, `[height, width, 3]`, -1 to 1; empty if there is no
        /// preview.
        decoded: &'a [f32],
    },
    /// Other processes still compile kernels of the decoder.
    Kernels {
        /// Programs that are compiled.
        done: usize,
        /// Programs in all.
        count: usize,
    },
    /// The latent is being decoded.
    Decode,
}

/// An image, its warnings and its report.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// 8 bits a channel.
    pub rgb: RgbImage,
    /// Output of the decoder: `[height, width, 3]`, -1 to 1.
    pub decoded: Vec<f32>,
    /// Warnings for the user, for example that a prompt was cut.
    pub warnings: Vec<String>,
    /// Memory and time.
    pub report: Report,
}

/// The state of an image that is being made.
struct Generation<'a> {
    request: &'a Request<'a>,
    settings: Settings,
    roles: Roles,
    evaluations: Vec<Evaluation>,
    sampler: Sampler,
    rng: NormalRng,
    /// [`Feed::Guidance`].
    guidance: Vec<f32>,
    ground: Ground,
    prompts: TokenizedPrompts,
    times: Times,
}

/// Checks the values that a network leads to.
///
/// Errors: `NotFinite`.
pub(super) fn check_finite(
    plan: &Plan,
    network: usize,
    step: Option<usize>,
    values: &[f32],
) -> Result<(), RuntimeError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    let network = plan.networks[network].name.clone();
    Err(RuntimeError::NotFinite { network, step })
}

/// Name of the dumped latent after `step` steps.
pub(crate) fn latent_name(step: usize) -> String {
    format!("latent_{step:03}")
}

/// Receives progress. Its answer may stop the image.
type Observer<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

fn tell(observe: &mut Observer, progress: Progress<'_>) -> Result<(), RuntimeError> {
    match observe(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(RuntimeError::Cancelled),
    }
}

impl Session {
    /// Makes an image. `observe` receives progress and may stop it.
    ///
    /// Errors: `Input` or `Sampler` if the request is invalid; `Cancelled`; otherwise the errors of
    /// a run.
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        observe: &mut Observer,
    ) -> Result<Picture, RuntimeError> {
        let started = Instant::now();
        let settings = request.settings(&self.plan().manifest)?;
        let canvas = Canvas::of(self.plan(), request.init.as_ref())?;
        let roles = Roles::of(self.plan(), request)?;
        let (prompts, warnings) = self.tokenize(request)?;
        let channels = self.plan().manifest.guidance_channels as usize;
        let guidance = sampler::guidance_embedding(settings.guidance, channels).collect();
        let (sampler, rng) = self.prepare(request, &settings, canvas.as_ref())?;
        let times = Times { load_seconds: self.load_seconds, ..Times::default() };
        let evaluations = evaluations(self.plan(), settings.savings, &sampler)?;
        let encodings = canvas.as_ref().map_or(0, Canvas::encodings);
        let sequence = roles.sequence(&sampler, &evaluations, encodings);
        let mut generation = Generation {
            request,
            settings,
            roles,
            evaluations,
            sampler,
            rng,
            guidance,
            ground: Ground::default(),
            prompts,
            times,
        };
        let (decoded, stream) = self.with_stream(&sequence, |session, stream| {
            tell(observe, Progress::Prompt)?;
            let (encoder, sampler) = (generation.roles.image_encoder, &generation.sampler);
            generation.ground = session.begin(canvas.as_ref(), encoder, sampler, stream)?;
            generation.encode_prompt(session, stream)?;
            let encoded = Instant::now();
            generation.times.prompt_seconds = (encoded - started).as_secs_f64();
            generation.sample(session, stream, observe)?;
            let sampled = Instant::now();
            generation.times.sample_seconds = (sampled - encoded).as_secs_f64();
            let decoded = generation.decode(session, stream, observe)?;
            generation.times.decode_seconds = sampled.elapsed().as_secs_f64();
            Ok(decoded)
        })?;
        let Size { width_px: width, height_px: height } = self.plan().manifest.image;
        let mut rgb = RgbImage::from_decoder(width, height, &decoded)?;
        canvas.iter().for_each(|canvas| canvas.keep(&mut rgb));
        let report = Report {
            device: self.device.name.clone(),
            programs: self.executor.programs(),
            model: self.plan().manifest.model.clone(),
            planned: PlannedMemory::of(self.plan()),
            measured: MeasuredMemory::now(self.allocations()),
            stream,
            weight_reads: self.weight_reads(),
            settings: generation.settings,
            loras: self.loras.clone(),
            repaint: canvas.and_then(|canvas| Some(canvas.mask?.record())),
            times: generation.times,
        };
        Ok(Picture { width, height, rgb, decoded, warnings, report })
    }
}

impl Generation<'_> {
    fn dump(&self, name: &str, tensor: impl FnOnce() -> Tensor) -> Result<(), RuntimeError> {
        match self.request.dump {
            Some(dump) => dump(name, &tensor()),
            None => Ok(()),
        }
    }

    fn dump_latent(&self, session: &Session, step: usize) -> Result<(), RuntimeError> {
        let manifest = &session.plan().manifest;
        let (channels, [height, width]) =
            (manifest.latent_channels as usize, manifest.latent.axes());
        match self.request.dump {
            None => Ok(()),
            Some(_) => self.dump(&latent_name(step), || {
                Tensor::f32(&[1, channels, height, width], session.host.latent.clone())
            }),
        }
    }

    fn encode_prompt(
        &self,
        session: &mut Session,
        stream: &mut Stream,
    ) -> Result<(), RuntimeError> {
        self.dump("tokens", || {
            let tokens = &self.prompts.tokens;
            Tensor::i32(&[tokens.len() / CONTEXT_LENGTH, CONTEXT_LENGTH], tokens.clone())
        })?;
        for network in self.roles.prompt() {
            let values = HostInputs { tokens: &self.prompts.tokens, ..HostInputs::default() };
            session.run(network, values, stream)?;
            if network != self.roles.text_encoder {
                continue;
            }
            if self.prompts.are_weighted() {
                session.weigh_embedding(network, &self.prompts.weights)?;
            }
            if self.request.dump.is_some() {
                session.read_output(network, 0)?;
                let shape = &session.plan().networks[network].outputs[0].shape;
                let shape: Vec<usize> = shape.iter().map(|&axis| axis as usize).collect();
                self.dump("embedding", || Tensor::f32(&shape, session.host.values.clone()))?;
            }
        }
        session.executor.finish()
    }

    fn sample(
        &mut self,
        session: &mut Session,
        stream: &mut Stream,
        observe: &mut Observer,
    ) -> Result<(), RuntimeError> {
        self.dump_latent(session, 0)?;
        let (steps, evaluations) = (self.sampler.steps(), self.sampler.timesteps().len());
        self.times.step_seconds.reserve_exact(steps);
        let pace = Pace::new(session.plan(), &self.evaluations, &self.sampler);
        let mut started = Instant::now();
        for index in 0..evaluations {
            let rows = self.roles.timestep_rows;
            if let Some(network) = self.roles.timestep_projection
                && index.is_multiple_of(rows)
            {
                let end = evaluations.min(index.saturating_add(rows));
                let timesteps = &self.sampler.timesteps()[index..end];
                let guidance = &self.guidance;
                let values = HostInputs { timesteps, guidance, ..HostInputs::default() };
                session.run(network, values, stream)?;
            }
            let Some(evaluation) = self.evaluations.get(index).cloned() else { break };
            self.predict(session, stream, (index, &evaluation))?;
            self.advance(session, (index, &evaluation))?;
            let (done, ends) = self.sampler.step_of(index);
            check_finite(session.plan(), evaluation.network, Some(done), &session.host.latent)?;
            if !ends {
                continue;
            }
            let seconds = started.elapsed().as_secs_f64();
            started = Instant::now();
            if self.times.step_seconds.is_empty() {
                let times = &mut self.times;
                times.first_step_seconds = times.load_seconds + times.prompt_seconds + seconds;
            }
            self.times.step_seconds.push(seconds);
            self.dump_latent(session, done)?;
            let has_preview = self.preview(session, stream, done)?;
            let (latent, picture) = (&*session.host.latent, self.sampler.picture());
            let decoded = if has_preview { &session.host.values } else { &[][..] };
            let seconds_left = pace.seconds_left(&self.times.step_seconds);
            let waited_seconds = stream.waited_seconds();
            let timestep = self.sampler.timesteps()[index];
            let news = Progress::Step {
                done,
                steps,
                seconds,
                seconds_left,
                timestep,
                waited_seconds,
                latent,
                picture,
                decoded,
            };
            tell(observe, news)?;
        }
        Ok(())
    }

    /// Leaves the predicted image in `session.host.values` if there is to be a preview after `done`
    /// steps, and the bundle has a tiny decoder.
    fn preview(
        &self,
        session: &mut Session,
        stream: &mut Stream,
        done: usize,
    ) -> Result<bool, RuntimeError> {
        let Some(network) = self.roles.preview(done) else { return Ok(false) };
        let values = HostInputs { latent: self.sampler.picture(), ..HostInputs::default() };
        session.run(network, values, stream)?;
        session.read_output(network, 0)?;
        Ok(true)
    }

    /// Moves the latent by the denoiser's output.
    fn advance(
        &mut self,
        session: &mut Session,
        (index, evaluation): (usize, &Evaluation),
    ) -> Result<(), RuntimeError> {
        let host = &mut session.host;
        let Some((conditional, others)) = host.branches.split_last_mut() else {
            return Err(RuntimeError::Plan("the bundle has no branch of guidance".into()));
        };
        let Settings { guidance, guidance_rescale, .. } = self.settings;
        let output = match others {
            [unconditional] if evaluation.guided => {
                sampler::guide(unconditional, conditional, guidance, guidance_rescale)?;
                unconditional
            }
            _ => conditional,
        };
        self.sampler.step(index, output, &mut host.latent, &mut self.rng)?;
        if let Some(kept) = &self.ground.kept {
            let level = self.sampler.level(index + 1).unwrap_or(Level::IMAGE);
            kept.blend(level, &mut host.latent);
        }
        Ok(())
    }

    /// Leaves the denoiser's output for each branch in `session.host.branches`.
    fn predict(
        &self,
        session: &mut Session,
        stream: &mut Stream,
        (index, evaluation): (usize, &Evaluation),
    ) -> Result<(), RuntimeError> {
        let mut scaled_latent = std::mem::take(&mut session.host.scaled_latent);
        let latent = &session.host.latent;
        let scaled = self.sampler.scale_model_input(index, latent, &mut scaled_latent);
        let timestep = [self.sampler.timesteps()[index]];
        let run = |session: &mut Session| {
            scaled?;
            for branch in evaluation.branches.clone() {
                let values = HostInputs {
                    latent: &scaled_latent,
                    timesteps: &timestep,
                    guidance: &self.guidance,
                    condition: &self.ground.condition,
                    row: (index % self.roles.timestep_rows) as u64,
                    branch: branch as u64,
                    ..HostInputs::default()
                };
                session.run(evaluation.network, values, stream)?;
                session.read_output(evaluation.network, 0)?;
                session.split_branches(evaluation.network, branch)?;
            }
            Ok(())
        };
        let answer = run(session);
        session.host.scaled_latent = scaled_latent;
        answer
    }

    fn decode(
        &self,
        session: &mut Session,
        stream: &mut Stream,
        observe: &mut Observer,
    ) -> Result<Vec<f32>, RuntimeError> {
        let mut waited = Ok(());
        session.executor.await_kernels(self.roles.decoder, &mut |done, count| {
            waited = tell(observe, Progress::Kernels { done, count });
        })?;
        waited?;
        tell(observe, Progress::Decode)?;
        let latent = std::mem::take(&mut session.host.latent);
        let values = HostInputs { latent: &latent, ..HostInputs::default() };
        let ran = session.run(self.roles.decoder, values, stream);
        session.host.latent = latent;
        ran?;
        session.read_output(self.roles.decoder, 0)?;
        check_finite(session.plan(), self.roles.decoder, None, &session.host.values)?;
        let [height, width] = session.plan().manifest.image.axes();
        let decoded = session.host.values.clone();
        self.dump("decoded", || {
            let first = tensor::to_channels_first(&decoded, 3).collect();
            Tensor::f32(&[1, 3, height, width], first)
        })?;
        Ok(decoded)
    }
}

impl Session {
    /// Moves a denoiser's output from `host.values` into `host.branches`, NCHW, from branch `first`
    /// on.
    fn split_branches(&mut self, network: usize, first: usize) -> Result<(), RuntimeError> {
        let bundle = Arc::clone(&self.bundle);
        let (elems, host) = (latent_elems(bundle.plan()), &mut self.host);
        let channels = bundle.plan().manifest.latent_channels as usize;
        let batch = bundle.plan().manifest.batch_of(bundle.plan().networks[network].role) as usize;
        let branches = host.branches.iter_mut().skip(first).take(batch);
        let found = host.values.len();
        if found != elems * branches.len() {
            let message = format!("the denoiser gives {found} values for latents of {elems}");
            return Err(RuntimeError::Plan(message));
        }
        for (branch, values) in branches.zip(host.values.chunks(elems)) {
            branch.clear();
            branch.extend(tensor::to_channels_first(values, channels));
        }
        Ok(())
    }
}
