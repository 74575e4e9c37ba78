//! A sampler at work.

use kiln_bundle::plan::{Prediction, Spacing};

use super::super::rng::NormalRng;
use super::level::{Level, Move};
use super::{SamplerError, SamplerOptions, check_lengths};

/// A diffusion sampler, prepared for a number of steps.
///
/// To make an image: begin with noise times [`init_noise_sigma`](Self::init_noise_sigma). Then, for
/// each evaluation `i`, run the U-Net on the scaled latents at `timesteps()[i]` and call
/// [`step`](Self::step).
#[derive(Debug, Clone)]
pub struct Sampler {
    moves: Vec<Move>,
    timesteps: Vec<f32>,
    evaluations: usize,
    init_noise_sigma: f32,
    prediction: Prediction,
    /// The image that the last evaluation predicted.
    picture: Vec<f32>,
    /// The image before it, and the latents from which the last evaluation moved.
    history: Vec<[f32; 2]>,
}

impl Sampler {
    /// A sampler of moves that have this number of evaluations a step.
    pub(super) fn new(moves: Vec<Move>, evaluations: usize, options: &SamplerOptions) -> Sampler {
        let level = moves.first().map_or(Level::exploding(0.0), |first| first.level);
        let init_noise_sigma = match options.spacing {
            Spacing::Leading => level.picture.hypot(level.noise),
            _ if level.picture == 1.0 => level.noise,
            _ => 1.0,
        };
        Sampler {
            timesteps: moves.iter().map(|step| step.timestep as f32).collect(),
            moves,
            evaluations,
            init_noise_sigma: init_noise_sigma as f32,
            prediction: options.schedule.prediction,
            picture: vec![0.0; options.latent_elems],
            history: vec![[0.0; 2]; options.latent_elems],
        }
    }

    /// The timestep of each evaluation, from noise to image.
    ///
    /// Units: those of the training schedule, in `[0, 1000)` for Stable Diffusion. Some samplers
    /// use fractions.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.moves.len().div_ceil(self.evaluations)
    }

    /// Number of the step of an evaluation, from 1, and whether the evaluation ends it. A step of
    /// `heun` has two evaluations, but for the last one, which has one.
    pub fn step_of(&self, index: usize) -> (usize, bool) {
        let after = index + 1;
        let ends = after.is_multiple_of(self.evaluations) || after == self.moves.len();
        (after.div_ceil(self.evaluations), ends)
    }

    /// The standard deviation of the initial latents.
    pub fn init_noise_sigma(&self) -> f32 {
        self.init_noise_sigma
    }

    fn at(&self, index: usize) -> Result<&Move, SamplerError> {
        let count = self.moves.len();
        self.moves.get(index).ok_or(SamplerError::Index { index, count })
    }

    /// The composition of the latents before an evaluation. It serves to begin there from an image.
    ///
    /// Errors: [`SamplerError::Index`].
    pub fn level(&self, index: usize) -> Result<Level, SamplerError> {
        Ok(self.at(index)?.level)
    }

    /// The latent of the image that the last evaluation predicted. It has no noise.
    pub fn picture(&self) -> &[f32] {
        &self.picture
    }

    /// Writes the U-Net's input of an evaluation: the latents, scaled to variance 1.
    ///
    /// Shapes: `latents` and `input` have the same length and any layout.
    /// Errors: [`SamplerError::Length`] if their lengths differ, [`SamplerError::Index`].
    pub fn scale_model_input(
        &self,
        index: usize,
        latents: &[f32],
        input: &mut [f32],
    ) -> Result<(), SamplerError> {
        check_lengths(latents, input)?;
        let level = self.level(index)?;
        let scale = level.picture.hypot(level.noise).recip() as f32;
        for (input, latent) in input.iter_mut().zip(latents) {
            *input = latent * scale;
        }
        Ok(())
    }

    /// Moves the latents by the network's output, in place and without allocating.
    ///
    /// Shapes: `model_output` and `latents` have the length of the options. Fresh noise is drawn
    /// once an evaluation that adds some, in the order of the elements, so it equals the
    /// reference's only in the layout NCHW.
    /// Numerics: f64 arithmetic on f32 values.
    /// Errors: [`SamplerError::Index`] and [`SamplerError::Length`].
    pub fn step(
        &mut self,
        index: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: &mut NormalRng,
    ) -> Result<(), SamplerError> {
        check_lengths(latents, model_output)?;
        check_lengths(latents, &self.picture)?;
        let Move { level, correction, mix, fresh, .. } = *self.at(index)?;
        let (of_latent, of_output) = level.picture_factors(self.prediction);
        let history = self.picture.iter_mut().zip(&mut self.history);
        for ((latent, &output), (before, rest)) in latents.iter_mut().zip(model_output).zip(history)
        {
            let known = [*before, rest[0], rest[1]];
            let now = f64::from(*latent);
            let picture = of_latent * now + of_output * f64::from(output);
            let now = correction.of(now, picture, known);
            *latent = mix.of(now, picture, known) as f32;
            *rest = [*before, now as f32];
            *before = picture as f32;
        }
        if fresh > 0.0 {
            noise.for_each(latents.len(), |index, value| {
                if let Some(latent) = latents.get_mut(index) {
                    *latent += fresh as f32 * value;
                }
            });
        }
        Ok(())
    }
}
