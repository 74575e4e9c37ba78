//! How a model was trained to denoise, and how it runs by default.

use serde::{Deserialize, Serialize};

/// The noise schedule of a training, the meaning of the U-Net's output, and the defaults of the
/// sampler. A model's bundle carries all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Variance that the training adds at the first timestep.
    pub beta_start: f64,
    /// Variance that the training adds at the last timestep.
    pub beta_end: f64,
    /// The values between.
    pub curve: BetaCurve,
    /// Timesteps of the training.
    pub train_steps: usize,
    /// Whether the betas are rescaled so that the last timestep is noise alone.
    pub zero_snr: bool,
    /// Meaning of the U-Net's output.
    pub prediction: Prediction,
    /// Default sampler, by its name on the command line.
    pub sampler: String,
    /// Default steps of the sampler.
    pub steps: usize,
    /// Default scale of classifier-free guidance; 1 is none.
    pub guidance: f32,
    /// Default spacing of the sampler's timesteps.
    pub spacing: Spacing,
}

/// Growth of beta over the training's timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaCurve {
    /// Beta grows linearly: diffusers' `linear`.
    Linear,
    /// The square root of beta grows linearly: diffusers' `scaled_linear`.
    ScaledLinear,
}

/// Meaning of the U-Net's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise: diffusers' `epsilon`.
    Epsilon,
    /// The velocity, a mix of noise and image: diffusers' `v_prediction`.
    V,
    /// The image: diffusers' `sample`.
    Sample,
}

/// Spacing of a run's timesteps over those of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of a whole stride, plus 1: diffusers' `leading` with `steps_offset` 1.
    Leading,
    /// Back from the last timestep by an even stride: diffusers' `trailing`.
    Trailing,
    /// Evenly from the first timestep to the last: diffusers' `linspace`.
    Linspace,
    /// By noise level: diffusers' `use_karras_sigmas`.
    Karras,
}

impl Schedule {
    /// The same training with another schedule's defaults of the sampler.
    pub fn with_defaults_of(&self, other: &Schedule) -> Schedule {
        let Schedule { sampler, steps, guidance, spacing, .. } = other.clone();
        Schedule { sampler, steps, guidance, spacing, ..self.clone() }
    }
}
