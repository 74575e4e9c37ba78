//! Euler's method: one linear step for each sigma, without fresh noise.
//!
//! Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn; as diffusers'
//! `EulerDiscreteScheduler`.

use super::super::rng::NormalRng;
use super::sigma::{SigmaConfig, Sigmas, Spacing};
use super::{Level, Prediction, Sampler, SamplerEntry, SamplerError, check_lengths};

/// Euler's entry in the registry.
pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "euler",
    title: "Euler",
    about: "deterministic, one straight step for each noise level",
    build: |options| Ok(Box::new(Euler::new(&SigmaConfig::from(options))?)),
};

/// The Euler sampler, with and without fresh noise.
#[derive(Debug, Clone)]
pub struct Euler {
    schedule: Sigmas,
    spacing: Spacing,
    prediction: Prediction,
    ancestral: bool,
}

impl Euler {
    /// Prepares the deterministic sampler.
    ///
    /// Errors: [`SamplerError::Steps`], [`SamplerError::Schedule`].
    pub fn new(config: &SigmaConfig) -> Result<Self, SamplerError> {
        let schedule = Sigmas::of_euler(config)?;
        let (spacing, prediction) = (config.spacing, config.prediction);
        Ok(Self { schedule, spacing, prediction, ancestral: false })
    }

    /// Prepares the sampler that replaces noise by fresh noise at each step.
    ///
    /// Errors: as [`new`](Self::new).
    pub fn ancestral(config: &SigmaConfig) -> Result<Self, SamplerError> {
        Ok(Self { ancestral: true, ..Self::new(config)? })
    }
}

/// Splits the noise after a step into the rest of the old noise and the fresh noise.
fn split_noise(sigma: f64, next: f64) -> (f64, f64) {
    let fresh = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).sqrt();
    ((next * next - fresh * fresh).max(0.0).sqrt(), fresh)
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f32] {
        &self.schedule.timesteps
    }

    fn init_noise_sigma(&self) -> f32 {
        self.schedule.init_noise_sigma(self.spacing)
    }

    fn level(&self, step: usize) -> Result<Level, SamplerError> {
        let (noise, _) = self.schedule.interval(step)?;
        Ok(Level { picture: 1.0, noise })
    }

    fn model_input_scale(&self, step: usize) -> f32 {
        self.schedule.sigmas.get(step).map_or(1.0, |sigma| sigma.hypot(1.0).recip() as f32)
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &[f32],
        latents: &mut [f32],
        noise: &mut NormalRng,
    ) -> Result<(), SamplerError> {
        check_lengths(latents, model_output)?;
        let (sigma, next) = self.schedule.interval(step)?;
        let (kept, fresh) = if self.ancestral { split_noise(sigma, next) } else { (next, 0.0) };
        let (of_latent, of_output) =
            Level { picture: 1.0, noise: sigma }.picture_factors(self.prediction);
        // The latent moves towards the image that it predicts until its sigma is `kept`.
        let picture = 1.0 - kept / sigma;
        let of_latent = (kept / sigma + picture * of_latent) as f32;
        let of_output = (picture * of_output) as f32;
        for (latent, &output) in latents.iter_mut().zip(model_output) {
            *latent = of_latent * *latent + of_output * output;
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

#[cfg(test)]
mod tests {
    use super::super::sigma::tests::{diffusers_test_config, full_loop};
    use super::*;

    /// `tests/schedulers/test_scheduler_euler.py` and `test_scheduler_euler_ancestral.py`.
    #[test]
    fn full_loops_equal_diffusers() {
        for (ancestral, prediction, sum) in [
            (false, Prediction::Epsilon, 10.0807),
            (false, Prediction::V, 0.0002),
            (true, Prediction::Epsilon, 152.3192),
            (true, Prediction::V, 108.4439),
        ] {
            let config = diffusers_test_config(1100, prediction);
            let build = if ancestral { Euler::ancestral } else { Euler::new };
            let found = full_loop(&mut build(&config).unwrap());
            assert!((found - sum).abs() < 1e-2, "{ancestral} {prediction:?}: {found} is not {sum}");
        }
    }

    #[test]
    fn the_last_step_leaves_no_noise() {
        let options = super::super::SamplerOptions::stable_diffusion(7, 1);
        for build in [Euler::new, Euler::ancestral] {
            let mut euler = build(&SigmaConfig::from(&options)).unwrap();
            let sigma = euler.schedule.sigmas[6] as f32;
            let mut latents = [3.0 + sigma * 0.5];
            euler.step(6, &[0.5], &mut latents, &mut NormalRng::from_seed(0)).unwrap();
            assert!((latents[0] - 3.0).abs() < 1e-6, "{}", latents[0]);
            let error = euler.step(7, &[0.5], &mut latents, &mut NormalRng::from_seed(0));
            assert_eq!(error, Err(SamplerError::StepIndex { step: 7, steps: 7 }));
        }
    }
}
