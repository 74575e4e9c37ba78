//! The noise schedule of a model's training, and its sampler's defaults.

use serde::{Deserialize, Serialize};

/// How a model was trained to denoise, and how it runs unless the user says otherwise.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Schedule {
    /// Variance that the training adds at the first timestep.
    pub beta_start: f64,
    /// Variance that the training adds at the last timestep.
    pub beta_end: f64,
    /// The values between.
    pub curve: BetaCurve,
    /// Timesteps of the training.
    pub train_steps: u32,
    /// The betas are rescaled so that the last timestep is noise alone (zero terminal
    /// signal-to-noise ratio, Lin et al. 2023, arXiv:2305.08891).
    pub zero_snr: bool,
    /// Meaning of the denoiser's output.
    pub prediction: Prediction,
    /// Default sampler.
    pub sampler: String,
    /// Default steps of the sampler.
    pub steps: u32,
    /// Default scale of classifier-free guidance; 1 is none.
    pub guidance: f32,
    /// Default spacing of the sampler's timesteps.
    pub spacing: Spacing,
}

impl Default for Schedule {
    /// Stable Diffusion 2.1-base.
    fn default() -> Schedule {
        Schedule {
            beta_start: 0.00085,
            beta_end: 0.0120,
            curve: BetaCurve::ScaledLinear,
            train_steps: 1000,
            zero_snr: false,
            prediction: Prediction::Epsilon,
            sampler: "ddim".into(),
            steps: 20,
            guidance: 7.5,
            spacing: Spacing::Leading,
        }
    }
}

/// Growth of beta, the variance added at each training timestep, from first to last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaCurve {
    /// Beta grows linearly.
    Linear,
    /// The square root of beta grows linearly.
    ScaledLinear,
}

/// Meaning of the denoiser's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise in the latents (SD 2.1-base).
    Epsilon,
    /// The velocity `sqrt(a) noise - sqrt(1 - a) image` (SD 2.1 at 768).
    V,
    /// The image.
    Sample,
}

impl Prediction {
    /// Name in the configuration of a diffusers scheduler.
    pub fn diffusers_name(self) -> &'static str {
        match self {
            Prediction::Epsilon => "epsilon",
            Prediction::V => "v_prediction",
            Prediction::Sample => "sample",
        }
    }
}

/// Spacing of a run's timesteps over the timesteps of the training, in diffusers' terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of a whole stride, plus 1. The last timesteps of the training are left out.
    Leading,
    /// Back from the last timestep by an even stride. For models distilled to few steps.
    Trailing,
    /// Evenly from the first timestep to the last.
    Linspace,
    /// By noise level from the highest to the lowest, denser at the low end (Karras et al. 2022).
    Karras,
}

impl Spacing {
    /// All spacings.
    pub const ALL: [Spacing; 4] =
        [Spacing::Leading, Spacing::Trailing, Spacing::Linspace, Spacing::Karras];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Spacing::Leading => "leading",
            Spacing::Trailing => "trailing",
            Spacing::Linspace => "linspace",
            Spacing::Karras => "karras",
        }
    }
}
