//! DDIM: a deterministic sampler, stochastic with `eta`.
//!
//! Source: Song et al. 2021 (arXiv:2010.02502), equations 12 and 16; timesteps as in Stability's
//! `ldm` ("uniform") and diffusers ("leading").

use super::super::rng::NormalRng;
use super::{
    Level, NoiseSchedule, Prediction, Sampler, SamplerEntry, SamplerError, SamplerOptions,
    check_lengths,
};

/// DDIM's entry in the registry.
pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "ddim",
    title: "DDIM",
    about: "deterministic at eta 0; what Stable Diffusion 2 was published with",
    build: |options| Ok(Box::new(Ddim::new(&DdimConfig::from(options))?)),
};

/// Settings of DDIM.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DdimConfig {
    /// Number of U-Net evaluations.
    pub steps: usize,
    /// Noise that each step adds, 0 to 1 of DDPM's.
    pub eta: f32,
    /// Meaning of the network's output.
    pub prediction: Prediction,
    /// Noise schedule of the training.
    pub schedule: NoiseSchedule,
    /// Whether the predicted image is clamped to `[-1, 1]`. For models of pixels, not of latents.
    pub clip_sample: bool,
    /// Whether the last step ends without noise instead of at the noise of timestep 0.
    pub set_alpha_to_one: bool,
    /// Offset of every timestep.
    pub steps_offset: usize,
}

impl From<&SamplerOptions> for DdimConfig {
    /// Stable Diffusion's settings: no clipping, last step to timestep 0, offset 1.
    fn from(options: &SamplerOptions) -> Self {
        Self {
            steps: options.steps,
            eta: options.eta,
            prediction: options.prediction,
            schedule: options.schedule,
            clip_sample: false,
            set_alpha_to_one: false,
            steps_offset: 1,
        }
    }
}

/// The DDIM sampler.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<f32>,
    coefficients: Vec<Coefficients>,
    prediction: Prediction,
    clip_sample: bool,
}

/// Factors of one step. `a` is the signal's part of the variance of the latents.
#[derive(Debug, Clone, Copy)]
struct Coefficients {
    /// `sqrt(a)` before the step.
    picture: f32,
    /// `sqrt(1 - a)` before the step.
    noise: f32,
    /// `sqrt(a)` after the step.
    next_picture: f32,
    /// Factor of the predicted noise after the step: `sqrt(1 - a - sigma^2)`.
    next_noise: f32,
    /// Standard deviation of the fresh noise.
    sigma: f32,
}

impl Ddim {
    /// Prepares the sampler: timesteps `offset + i * (train_steps / steps)`, largest first.
    ///
    /// The division is an integer one. If the steps do not divide the timesteps, the noisiest
    /// timesteps are left out, as in diffusers (`ldm` would run more steps than requested). If the
    /// offset leads past the last timestep (with as many steps as timesteps only), it is reduced.
    ///
    /// Errors: [`SamplerError::Steps`], [`SamplerError::Eta`], [`SamplerError::Schedule`].
    pub fn new(config: &DdimConfig) -> Result<Self, SamplerError> {
        let alphas = config.schedule.alphas_cumulative()?;
        let (steps, max_steps) = (config.steps, alphas.len());
        if !(1..=max_steps).contains(&steps) {
            return Err(SamplerError::Steps { steps, max_steps });
        }
        if !(0.0..=1.0).contains(&config.eta) {
            return Err(SamplerError::Eta { eta: config.eta });
        }
        let stride = max_steps / steps;
        let offset = config.steps_offset.min(max_steps - 1 - (steps - 1) * stride);
        let timesteps = || (0..steps).rev().map(|index| offset + index * stride);
        let last_alpha = if config.set_alpha_to_one { 1.0 } else { alphas[0] };
        let coefficients = timesteps().map(|timestep| {
            let next = timestep.checked_sub(stride).map_or(last_alpha, |next| alphas[next]);
            Coefficients::new(alphas[timestep], next, f64::from(config.eta))
        });
        Ok(Self {
            coefficients: coefficients.collect(),
            timesteps: timesteps().map(|timestep| timestep as f32).collect(),
            prediction: config.prediction,
            clip_sample: config.clip_sample,
        })
    }
}

impl Ddim {
    fn coefficients(&self, step: usize) -> Result<Coefficients, SamplerError> {
        let steps = self.coefficients.len();
        self.coefficients.get(step).copied().ok_or(SamplerError::StepIndex { step, steps })
    }
}

impl Coefficients {
    /// The factors from the signal's part of the variance before and after the step.
    fn new(alpha: f64, next_alpha: f64, eta: f64) -> Self {
        let variance = eta * eta * variance(alpha, next_alpha);
        Self {
            picture: alpha.sqrt() as f32,
            noise: (1.0 - alpha).sqrt() as f32,
            next_picture: next_alpha.sqrt() as f32,
            next_noise: (1.0 - next_alpha - variance).max(0.0).sqrt() as f32,
            sigma: variance.sqrt() as f32,
        }
    }
}

/// Variance of the fresh noise with which a step of DDIM equals one of DDPM.
fn variance(alpha: f64, next_alpha: f64) -> f64 {
    (1.0 - next_alpha) / (1.0 - alpha) * (1.0 - alpha / next_alpha)
}

impl Sampler for Ddim {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn level(&self, step: usize) -> Result<Level, SamplerError> {
        let c = self.coefficients(step)?;
        Ok(Level { picture: c.picture.into(), noise: c.noise.into() })
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: &mut NormalRng,
    ) -> Result<(), SamplerError> {
        check_lengths(latents, model_output)?;
        let c = self.coefficients(step)?;
        for (latent, &output) in latents.iter_mut().zip(model_output) {
            let (picture, epsilon) = match self.prediction {
                Prediction::Sample => (output, (*latent - c.picture * output) / c.noise),
                Prediction::Epsilon => ((*latent - c.noise * output) / c.picture, output),
                Prediction::V => {
                    (c.picture * *latent - c.noise * output, c.picture * output + c.noise * *latent)
                }
            };
            let picture = if self.clip_sample { picture.clamp(-1.0, 1.0) } else { picture };
            *latent = c.next_picture * picture + c.next_noise * epsilon;
        }
        if c.sigma > 0.0 {
            noise.for_each(latents.len(), |index, fresh| {
                if let Some(latent) = latents.get_mut(index) {
                    *latent += c.sigma * fresh;
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::BetaCurve;
    use super::*;

    /// The settings of diffusers' `tests/schedulers/test_scheduler_ddim.py`.
    fn diffusers_test_config() -> DdimConfig {
        DdimConfig {
            steps: 10,
            eta: 0.0,
            prediction: Prediction::Epsilon,
            schedule: NoiseSchedule {
                beta_start: 0.0001,
                beta_end: 0.02,
                curve: BetaCurve::Linear,
                train_steps: 1000,
            },
            clip_sample: true,
            set_alpha_to_one: true,
            steps_offset: 0,
        }
    }

    /// The full loop of diffusers' test: a ramp as sample, `sample * t / (t + 1)` as network.
    /// Returns sum and mean of the result's magnitudes.
    fn full_loop(config: &DdimConfig) -> (f64, f64) {
        const ELEMS: usize = 4 * 3 * 8 * 8;
        let mut ddim = Ddim::new(config).unwrap();
        let mut sample: Vec<f32> = (0..ELEMS).map(|n| n as f32 / ELEMS as f32).collect();
        let mut rng = NormalRng::from_seed(0);
        for (step, t) in ddim.timesteps().to_vec().into_iter().enumerate() {
            let output: Vec<f32> = sample.iter().map(|x| x * t / (t + 1.0)).collect();
            ddim.step(step, &output, &mut sample, &mut rng).unwrap();
        }
        let sum: f64 = sample.iter().map(|x| f64::from(x.abs())).sum();
        (sum, sum / ELEMS as f64)
    }

    #[test]
    fn full_loops_equal_diffusers() {
        let base = diffusers_test_config();
        let first_alpha = NoiseSchedule { beta_start: 0.01, ..base.schedule };
        for (config, sum, mean) in [
            (base, 172.0067, 0.223967),
            (DdimConfig { prediction: Prediction::V, ..base }, 52.5302, 0.0684),
            (DdimConfig { schedule: first_alpha, ..base }, 149.8295, 0.1951),
            (
                DdimConfig { schedule: first_alpha, set_alpha_to_one: false, ..base },
                149.0784,
                0.1941,
            ),
        ] {
            let (found_sum, found_mean) = full_loop(&config);
            assert!((found_sum - sum).abs() < 1e-2, "{found_sum} is not {sum}");
            assert!((found_mean - mean).abs() < 1e-3, "{found_mean} is not {mean}");
        }
    }

    #[test]
    fn timesteps_equal_diffusers_and_ldm() {
        let timesteps = |steps| {
            let options = SamplerOptions::stable_diffusion(steps, 0);
            Ddim::new(&DdimConfig::from(&options)).unwrap().timesteps
        };
        assert_eq!(timesteps(5), [801.0, 601.0, 401.0, 201.0, 1.0]);
        assert_eq!(timesteps(1), [1.0]);
        assert_eq!(timesteps(20)[..2], [951.0, 901.0]);
        // 1000 / 30 is 33.
        assert_eq!((timesteps(30)[0], timesteps(30)[29]), (958.0, 1.0));
        assert_eq!((timesteps(999)[0], timesteps(999)[998]), (999.0, 1.0));
        assert_eq!((timesteps(1000)[0], timesteps(1000)[999]), (999.0, 0.0));
        for steps in 1..=1000 {
            let timesteps = timesteps(steps);
            assert_eq!(timesteps.len(), steps);
            assert!(timesteps.is_sorted_by(|a, b| a > b) && timesteps[0] < 1000.0);
        }
    }

    #[test]
    fn variances_equal_diffusers() {
        let alphas = diffusers_test_config().schedule.alphas_cumulative().unwrap();
        for (timestep, next, expected) in [
            (0, 0, 0.0),
            (420, 400, 0.14771),
            (980, 960, 0.32460),
            (487, 486, 0.00979),
            (999, 998, 0.02),
        ] {
            let found = variance(alphas[timestep], alphas[next]);
            assert!((found - expected).abs() < 1e-5, "{timestep}: {found} is not {expected}");
        }
    }

    #[test]
    fn eta_adds_noise_of_the_stated_variance() {
        const ELEMS: usize = 100_000;
        let options = SamplerOptions { eta: 1.0, ..SamplerOptions::stable_diffusion(20, ELEMS) };
        let config = DdimConfig::from(&options);
        let mut stochastic = Ddim::new(&config).unwrap();
        let expected = stochastic.coefficients[3].sigma;
        let mut latents = vec![0.0; ELEMS];
        let mut rng = NormalRng::from_seed(1);
        stochastic.step(3, &vec![0.0; ELEMS], &mut latents, &mut rng).unwrap();
        let square: f64 = latents.iter().map(|x| f64::from(x * x)).sum();
        let found = (square / ELEMS as f64).sqrt();
        assert!(expected > 0.1 && (found / f64::from(expected) - 1.0).abs() < 0.01, "{found}");
    }

    #[test]
    fn wrong_use_is_an_error() {
        let options = SamplerOptions::stable_diffusion(20, 16);
        for eta in [-0.1, 1.1, f32::NAN] {
            let config = DdimConfig::from(&SamplerOptions { eta, ..options });
            assert!(matches!(Ddim::new(&config), Err(SamplerError::Eta { .. })));
        }
        let mut ddim = Ddim::new(&DdimConfig::from(&options)).unwrap();
        let mut rng = NormalRng::from_seed(0);
        let error = ddim.step(20, &[0.0; 16], &mut [0.0; 16], &mut rng);
        assert_eq!(error, Err(SamplerError::StepIndex { step: 20, steps: 20 }));
        let error = ddim.step(0, &[0.0; 15], &mut [0.0; 16], &mut rng);
        assert_eq!(error, Err(SamplerError::Length { latents_elems: 16, other_elems: 15 }));
    }
}
