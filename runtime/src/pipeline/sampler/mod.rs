//! Diffusion samplers: the timesteps of the U-Net, and the effect of its output on the latents.
//!
//! Owns the [`Sampler`] trait, the noise schedule, and the registry of samplers by name. The
//! U-Net's output comes in as a slice. A new sampler is one file and one line in [`SAMPLERS`].

pub mod ddim;
pub mod dpmpp_2m;
pub mod euler;
mod euler_a;
mod schedule;
mod sigma;

use super::rng::NormalRng;
use kiln_bundle::plan::Schedule;

pub use kiln_bundle::plan::{BetaCurve, Prediction};
pub use schedule::NoiseSchedule;
pub use sigma::{SigmaConfig, Spacing};

/// Reason why a sampler cannot be made or cannot step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("no sampler is named {name:?}; there are: {known}")]
    UnknownSampler {
        /// The requested name.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// The number of steps is zero or exceeds the timesteps of the training.
    #[error("{steps} sampling steps requested; 1 to {max_steps} are possible")]
    Steps {
        /// Requested steps.
        steps: usize,
        /// Largest number of steps.
        max_steps: usize,
    },
    /// Eta is not in `[0, 1]`.
    #[error("eta is {eta}, it must be from 0 to 1")]
    Eta {
        /// Requested eta.
        eta: f32,
    },
    /// The noise schedule's betas are not in `(0, 1)`, or it has no timesteps.
    #[error("the noise schedule is not possible: {0:?}")]
    Schedule(NoiseSchedule),
    /// The sampler has no step of this index.
    #[error("step {step} requested; the sampler has {steps}")]
    StepIndex {
        /// Index of the step, from 0.
        step: usize,
        /// Number of steps.
        steps: usize,
    },
    /// Latents and another tensor differ in length.
    #[error("{latents_elems} latents but {other_elems} elements of network output or input")]
    Length {
        /// Elements of the latents.
        latents_elems: usize,
        /// Elements of the other tensor.
        other_elems: usize,
    },
}

/// Options of any sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Number of U-Net evaluations, from 1 to the schedule's timesteps.
    pub steps: usize,
    /// Noise that each step adds, from 0 (none) to 1 (as much as DDPM). Samplers other than DDIM
    /// ignore it.
    pub eta: f32,
    /// Meaning of the network's output.
    pub prediction: Prediction,
    /// Noise schedule of the training.
    pub schedule: NoiseSchedule,
    /// Elements of the latents, for samplers that remember earlier steps.
    pub latent_elems: usize,
}

impl SamplerOptions {
    /// The options for a model, with eta 0.
    pub fn of(schedule: &Schedule, steps: usize, latent_elems: usize) -> Self {
        let prediction = schedule.prediction;
        let schedule = NoiseSchedule::of(schedule);
        Self { steps, eta: 0.0, prediction, schedule, latent_elems }
    }

    /// The options for Stable Diffusion 2.1-base: epsilon prediction, eta 0.
    pub fn stable_diffusion(steps: usize, latent_elems: usize) -> Self {
        Self::of(&Schedule::default(), steps, latent_elems)
    }
}

/// Composition of the latents at a step: `picture * p + noise * n`. `p` is the latent of an image
/// and `n` is standard normal noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the image.
    pub picture: f64,
    /// Factor of the noise.
    pub noise: f64,
}

impl Level {
    /// Factors of the latents and of the network's output in the image that the network predicts at
    /// this level.
    pub fn picture_factors(self, prediction: Prediction) -> (f64, f64) {
        let Level { picture, noise } = self;
        match prediction {
            Prediction::Epsilon => (picture.recip(), -noise / picture),
            Prediction::V => {
                let variance = picture * picture + noise * noise;
                (picture / variance, -noise / variance.sqrt())
            }
            Prediction::Sample => (0.0, 1.0),
        }
    }
}

/// A diffusion sampler, prepared for a number of steps.
///
/// To make an image: begin with noise times [`init_noise_sigma`](Self::init_noise_sigma). Then, for
/// each step `i`, run the U-Net on the scaled latents at `timesteps()[i]` and call
/// [`step`](Self::step).
pub trait Sampler {
    /// The timestep of each step, from noise to image.
    ///
    /// Units: those of the training schedule, in `[0, 1000)` for Stable Diffusion. Some samplers
    /// use fractions.
    fn timesteps(&self) -> &[f32];

    /// The standard deviation of the initial latents.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// The composition of the latents before a step. It serves to begin there from an image, and to
    /// show the predicted image.
    ///
    /// Errors: [`SamplerError::StepIndex`].
    fn level(&self, step: usize) -> Result<Level, SamplerError>;

    /// Factor of the latents in the U-Net's input at a step.
    fn model_input_scale(&self, _step: usize) -> f32 {
        1.0
    }

    /// Writes the U-Net's input of a step.
    ///
    /// Shapes: `latents` and `input` have the same length and any layout.
    /// Errors: [`SamplerError::Length`] if their lengths differ.
    fn scale_model_input(
        &self,
        step: usize,
        latents: &[f32],
        input: &mut [f32],
    ) -> Result<(), SamplerError> {
        check_lengths(latents, input)?;
        let scale = self.model_input_scale(step);
        for (input, latent) in input.iter_mut().zip(latents) {
            *input = latent * scale;
        }
        Ok(())
    }

    /// Moves the latents one step towards the image, in place and without allocating.
    ///
    /// Shapes: `model_output` and `latents` have the same length. Noise is drawn in the order of
    /// the elements, so it equals the reference's only in the layout NCHW.
    /// Numerics: f32 arithmetic with coefficients computed in f64.
    /// Errors: [`SamplerError::StepIndex`] and [`SamplerError::Length`].
    fn step(
        &mut self,
        step: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: &mut NormalRng,
    ) -> Result<(), SamplerError>;
}

/// A sampler that can be chosen by name.
pub struct SamplerEntry {
    /// The name, in small letters.
    pub name: &'static str,
    /// Name of the sampler in AUTOMATIC1111's web UI and in viewers of its images.
    pub title: &'static str,
    /// One line for help texts.
    pub about: &'static str,
    /// Makes the sampler.
    pub build: fn(&SamplerOptions) -> Result<Box<dyn Sampler>, SamplerError>,
}

/// All samplers. The first is the default.
pub static SAMPLERS: &[SamplerEntry] =
    &[ddim::ENTRY, euler::ENTRY, euler_a::ENTRY, dpmpp_2m::ENTRY];

/// Makes the sampler with a name.
///
/// Errors: [`SamplerError::UnknownSampler`], or an option that the sampler refuses.
pub fn by_name(name: &str, options: &SamplerOptions) -> Result<Box<dyn Sampler>, SamplerError> {
    let entry = SAMPLERS.iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
    let entry = entry.ok_or_else(|| SamplerError::UnknownSampler {
        name: name.to_owned(),
        known: SAMPLERS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", "),
    })?;
    (entry.build)(options)
}

/// Classifier-free guidance: `unconditional += guidance * (conditional - unconditional)`.
///
/// Shapes: both are network outputs of the same length.
/// Errors: [`SamplerError::Length`] if the lengths differ.
/// Source: Ho & Salimans 2022 (arXiv:2207.12598).
pub fn guide(
    unconditional: &mut [f32],
    conditional: &[f32],
    guidance: f32,
) -> Result<(), SamplerError> {
    check_lengths(unconditional, conditional)?;
    for (output, conditional) in unconditional.iter_mut().zip(conditional) {
        *output += guidance * (conditional - *output);
    }
    Ok(())
}

fn check_lengths(latents: &[f32], other: &[f32]) -> Result<(), SamplerError> {
    if latents.len() != other.len() {
        let (latents_elems, other_elems) = (latents.len(), other.len());
        return Err(SamplerError::Length { latents_elems, other_elems });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Level, Prediction, SAMPLERS, SamplerError, SamplerOptions, by_name};

    #[test]
    fn every_sampler_is_found_and_refuses_nonsense() {
        for entry in SAMPLERS {
            let options = SamplerOptions::stable_diffusion(20, 16);
            let sampler = by_name(&entry.name.to_uppercase(), &options).unwrap();
            assert_eq!(sampler.timesteps().len(), 20, "{}", entry.name);
            // The network's input has variance 1 at every level.
            for step in 0..20 {
                let (level, scale) =
                    (sampler.level(step).unwrap(), sampler.model_input_scale(step));
                let deviation = level.picture.hypot(level.noise) * f64::from(scale);
                assert!((deviation - 1.0).abs() < 1e-6, "{} {step}: {deviation}", entry.name);
            }
            assert!(sampler.level(20).is_err());
            for steps in [0, 1001, usize::MAX] {
                let options = SamplerOptions { steps, ..options };
                assert!(matches!(by_name(entry.name, &options), Err(SamplerError::Steps { .. })));
            }
        }
        let options = SamplerOptions::stable_diffusion(20, 16);
        let error = by_name("ddmi", &options).err().unwrap();
        assert!(error.to_string().contains("ddim"), "{error}");
    }

    #[test]
    fn a_level_shows_the_picture_in_what_the_network_says() {
        // Picture 3, noise 0.5.
        for (picture, noise) in [(1.0, 14.6), (0.6, 0.8)] {
            let latent = picture * 3.0 + noise * 0.5;
            let norm = f64::hypot(picture, noise);
            let velocity = (picture * 0.5 - noise * 3.0) / norm;
            for (prediction, output) in [(Prediction::Epsilon, 0.5), (Prediction::V, velocity)] {
                let (of_latent, of_output) = Level { picture, noise }.picture_factors(prediction);
                let found = of_latent * latent + of_output * output;
                assert!((found - 3.0).abs() < 1e-12, "{prediction:?}: {found}");
            }
        }
    }

    #[test]
    fn guidance_extrapolates() {
        let mut output = [1.0, 2.0];
        super::guide(&mut output, &[2.0, 0.0], 7.5).unwrap();
        assert_eq!(output, [8.5, -13.0]);
        assert!(super::guide(&mut output, &[0.0], 1.0).is_err());
    }
}
