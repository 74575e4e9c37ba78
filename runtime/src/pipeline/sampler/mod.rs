//! Diffusion samplers: which timesteps the U-Net sees, and how its output moves the latents.
//!
//! Owns the [`Sampler`] trait, the noise schedule, and the registry of samplers by name. Knows
//! nothing of the U-Net: its output comes in as a slice. A new sampler is one file and one line in
//! [`SAMPLERS`].

pub mod ddim;
pub mod dpmpp_2m;
pub mod euler;
mod euler_a;
mod schedule;
mod sigma;

use super::rng::NormalRng;

pub use schedule::{BetaCurve, NoiseSchedule};
pub use sigma::{SigmaConfig, Spacing};

/// Why a sampler could not be made or could not step.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// No sampler has this name.
    #[error("no sampler is named {name:?}; there are: {known}")]
    UnknownSampler {
        /// The name asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// The number of steps is zero or beyond the timesteps the model was trained with.
    #[error("{steps} sampling steps asked for, 1 to {max_steps} are possible")]
    Steps {
        /// Steps asked for.
        steps: usize,
        /// Most steps possible.
        max_steps: usize,
    },
    /// Eta is not in `[0, 1]`.
    #[error("eta is {eta}, it must be from 0 to 1")]
    Eta {
        /// Eta asked for.
        eta: f32,
    },
    /// The noise schedule's betas are not in `(0, 1)`, or it has no timesteps.
    #[error("the noise schedule is not possible: {0:?}")]
    Schedule(NoiseSchedule),
    /// A step was asked for that the sampler does not have.
    #[error("step {step} asked for, there are {steps}")]
    StepIndex {
        /// Index of the step, from 0.
        step: usize,
        /// Steps there are.
        steps: usize,
    },
    /// Latents and network output differ in length.
    #[error("{latents_elems} latents but {other_elems} elements of network output or input")]
    Length {
        /// Elements of the latents.
        latents_elems: usize,
        /// Elements of the other tensor.
        other_elems: usize,
    },
}

/// What the network's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prediction {
    /// The noise in the latents (SD 2.1-base).
    #[default]
    Epsilon,
    /// The velocity `sqrt(a) noise - sqrt(1 - a) image` (SD 2.1 at 768).
    V,
}

/// What any sampler can be asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// How many times the U-Net runs, 1 to the schedule's timesteps.
    pub steps: usize,
    /// How much noise each step adds, from 0 (none) to 1 (as much as DDPM). Samplers without such a
    /// choice ignore it.
    pub eta: f32,
    /// What the network's output means.
    pub prediction: Prediction,
    /// The noise schedule the network was trained with.
    pub schedule: NoiseSchedule,
    /// Elements of the latents, for samplers that remember earlier steps.
    pub latent_elems: usize,
}

impl SamplerOptions {
    /// The options for Stable Diffusion 2.1-base: epsilon prediction, eta 0.
    pub fn stable_diffusion(steps: usize, latent_elems: usize) -> Self {
        Self {
            steps,
            eta: 0.0,
            prediction: Prediction::Epsilon,
            schedule: NoiseSchedule::STABLE_DIFFUSION,
            latent_elems,
        }
    }
}

/// What the latents at a step are: `picture * p + noise * n`, where `p` is the latent of a picture
/// and `n` standard normal noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Factor of the picture.
    pub picture: f64,
    /// Factor of the noise.
    pub noise: f64,
}

impl Level {
    /// The picture that the network sees in latents of this level, as factors of the latents and
    /// of the network's output.
    pub fn picture_factors(self, prediction: Prediction) -> (f64, f64) {
        let Level { picture, noise } = self;
        match prediction {
            Prediction::Epsilon => (picture.recip(), -noise / picture),
            Prediction::V => {
                let variance = picture * picture + noise * noise;
                (picture / variance, -noise / variance.sqrt())
            }
        }
    }
}

/// A diffusion sampler, prepared for a number of steps.
///
/// One picture is: latents of noise times [`init_noise_sigma`](Self::init_noise_sigma); then for
/// each step `i`, run the U-Net on the scaled latents at `timesteps()[i]`, and [`step`](Self::step).
pub trait Sampler {
    /// The timestep of each step, from noise to picture.
    ///
    /// Units: the training schedule's, in `[0, 1000)` for Stable Diffusion. Some samplers use
    /// fractions.
    fn timesteps(&self) -> &[f32];

    /// The standard deviation of the initial latents.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// What the latents are at the beginning of a step: to begin there from a picture, or to show
    /// the picture so far.
    ///
    /// Errors: [`SamplerError::StepIndex`].
    fn level(&self, step: usize) -> Result<Level, SamplerError>;

    /// What the latents are multiplied by before the U-Net reads them at a step.
    fn model_input_scale(&self, _step: usize) -> f32 {
        1.0
    }

    /// Writes what the U-Net reads at a step.
    ///
    /// Shapes: `latents` and `input` have the same length and any layout.
    /// Errors: [`SamplerError::Length`] if they have not.
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

    /// Moves the latents one step towards the picture, in place and without allocating.
    ///
    /// Shapes: `model_output` and `latents` have the same length. Noise is drawn in the order of
    /// the elements, so it equals the reference's only in its layout, NCHW.
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
    /// One line about it, for help texts.
    pub about: &'static str,
    /// Makes one.
    pub build: fn(&SamplerOptions) -> Result<Box<dyn Sampler>, SamplerError>,
}

/// All samplers. The first is the default.
pub static SAMPLERS: &[SamplerEntry] =
    &[ddim::ENTRY, euler::ENTRY, euler_a::ENTRY, dpmpp_2m::ENTRY];

/// Makes the sampler of a name.
///
/// Errors: [`SamplerError::UnknownSampler`], or what the sampler finds wrong with the options.
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
/// Errors: [`SamplerError::Length`] if they are not.
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
            // What the network reads has variance 1 at every level.
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
