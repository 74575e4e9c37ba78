//! DPM-Solver++ (2M): second order, from the predicted images of this step and of the step before.
//!
//! Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2; as diffusers'
//! `DPMSolverMultistepScheduler` with `dpmsolver++`, order 2, midpoint.

use super::super::rng::NormalRng;
use super::sigma::{SigmaConfig, Sigmas};
use super::{Level, Prediction, Sampler, SamplerEntry, SamplerError, check_lengths};

/// DPM-Solver++'s entry in the registry.
pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "dpm++2m",
    title: "DPM++ 2M",
    about: "deterministic, second order: good pictures in 15 to 25 steps",
    build: |options| Ok(Box::new(DpmSolver::new(&SigmaConfig::from(options))?)),
};

/// The DPM-Solver++ (2M) sampler.
#[derive(Debug, Clone)]
pub struct DpmSolver {
    schedule: Sigmas,
    prediction: Prediction,
    /// The image that the previous step predicted.
    picture: Vec<f32>,
    /// Index of the previous step.
    seen: Option<usize>,
}

/// The level of a sigma, scaled so that variances sum to 1.
fn level(sigma: f64) -> Level {
    let picture = sigma.hypot(1.0).recip();
    Level { picture, noise: sigma * picture }
}

/// Half the logarithm of the signal-to-noise ratio.
fn lambda(level: Level) -> f64 {
    (level.picture / level.noise).ln()
}

impl DpmSolver {
    /// Prepares the sampler.
    ///
    /// Errors: [`SamplerError::Steps`], [`SamplerError::Schedule`].
    pub fn new(config: &SigmaConfig) -> Result<Self, SamplerError> {
        Ok(Self {
            schedule: Sigmas::of_dpm_solver(config)?,
            prediction: config.prediction,
            picture: vec![0.0; config.latent_elems],
            seen: None,
        })
    }

    /// Factor of the difference between this prediction and the previous one. 0 at the first step,
    /// which has no previous prediction, and at the last, which ends at the prediction itself.
    fn extrapolation(&self, step: usize, now: Level, next: Level) -> f64 {
        let known = step > 0 && self.seen == Some(step - 1);
        if !known || next.noise == 0.0 {
            return 0.0;
        }
        let before = level(self.schedule.sigmas[step - 1]);
        let ahead = lambda(next) - lambda(now);
        0.5 * ahead / (lambda(now) - lambda(before))
    }
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[f32] {
        &self.schedule.timesteps
    }

    fn level(&self, step: usize) -> Result<Level, SamplerError> {
        Ok(level(self.schedule.interval(step)?.0))
    }

    fn step(
        &mut self,
        step: usize,
        model_output: &[f32],
        latents: &mut [f32],
        _noise: &mut NormalRng,
    ) -> Result<(), SamplerError> {
        check_lengths(latents, model_output)?;
        check_lengths(latents, &self.picture)?;
        let (sigma, next_sigma) = self.schedule.interval(step)?;
        let (now, next) = (level(sigma), level(next_sigma));
        let (of_latent, of_output) = now.picture_factors(self.prediction);
        let kept = next.noise / now.noise;
        let ahead = next.picture - kept * now.picture;
        let change = ahead * self.extrapolation(step, now, next);
        let [of_latent, of_output] = [of_latent as f32, of_output as f32];
        let [kept, ahead, change] = [kept as f32, ahead as f32, change as f32];
        let all = latents.iter_mut().zip(model_output).zip(&mut self.picture);
        for ((latent, &output), before) in all {
            let picture = of_latent * *latent + of_output * output;
            *latent = kept * *latent + ahead * picture + change * (picture - *before);
            *before = picture;
        }
        self.seen = Some(step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SamplerOptions;
    use super::super::sigma::tests::{diffusers_test_config, full_loop};
    use super::*;

    /// `tests/schedulers/test_scheduler_dpm_multi.py`, which states means of 768 elements.
    #[test]
    fn full_loops_equal_diffusers() {
        for (prediction, mean) in [(Prediction::Epsilon, 0.3301), (Prediction::V, 0.2251)] {
            let config = diffusers_test_config(1000, prediction);
            let mut solver = DpmSolver::new(&SigmaConfig { ends_clean: false, ..config }).unwrap();
            let found = full_loop(&mut solver) / 768.0;
            assert!((found - mean).abs() < 1e-4, "{prediction:?}: {found} is not {mean}");
        }
    }

    #[test]
    fn a_step_after_a_gap_is_of_first_order() {
        let config = SigmaConfig::from(&SamplerOptions::stable_diffusion(10, 1));
        let step = |solver: &mut DpmSolver, step, latent| {
            let mut latents = [latent];
            solver.step(step, &[0.3], &mut latents, &mut NormalRng::from_seed(0)).unwrap();
            latents[0]
        };
        let mut fresh = DpmSolver::new(&config).unwrap();
        let mut used = fresh.clone();
        step(&mut used, 2, 5.0);
        assert_eq!(step(&mut used, 4, 1.0), step(&mut fresh, 4, 1.0));
        assert_ne!(step(&mut used, 5, 1.0), step(&mut DpmSolver::new(&config).unwrap(), 5, 1.0));
    }
}
