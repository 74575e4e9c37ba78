//! Noise levels by their standard deviation, the scale of the Euler and DPM-Solver samplers.
//!
//! Owns the timesteps of a run and the sigma at each. A latent of sigma `s` is
//! `picture + s * noise`. The network's input is this latent divided by `sqrt(s^2 + 1)`.
//!
//! Source: Karras et al. 2022 (arXiv:2206.00364); timesteps as in diffusers.

use super::{NoiseSchedule, Prediction, SamplerError, SamplerOptions};

/// Spacing of a run's timesteps over the timesteps of the training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spacing {
    /// `offset + i * (train_steps / intervals)`, an integer division: Stable Diffusion's.
    Leading {
        /// Offset of every timestep; reduced if it leads past the last timestep.
        offset: usize,
    },
    /// Evenly from the first to the last.
    Linspace,
}

/// Settings of a sampler over sigmas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SigmaConfig {
    /// Number of U-Net evaluations.
    pub steps: usize,
    /// Meaning of the network's output.
    pub prediction: Prediction,
    /// Noise schedule of the training.
    pub schedule: NoiseSchedule,
    /// Spacing of the timesteps.
    pub spacing: Spacing,
    /// Whether the last step ends without noise instead of at the noise of timestep 0.
    pub ends_clean: bool,
    /// Elements of the latents, for samplers that remember earlier steps.
    pub latent_elems: usize,
}

impl From<&SamplerOptions> for SigmaConfig {
    /// Stable Diffusion's settings: leading timesteps with offset 1.
    fn from(options: &SamplerOptions) -> Self {
        Self {
            steps: options.steps,
            prediction: options.prediction,
            schedule: options.schedule,
            spacing: Spacing::Leading { offset: 1 },
            ends_clean: true,
            latent_elems: options.latent_elems,
        }
    }
}

/// The timesteps of a run, largest first, and their sigmas.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sigmas {
    pub timesteps: Vec<f32>,
    /// One more than the timesteps: the last sigma is the end of the last step.
    pub sigmas: Vec<f64>,
}

impl Sigmas {
    /// One timestep for each step. With linear spacing, timesteps may be fractions.
    pub fn of_euler(config: &SigmaConfig) -> Result<Self, SamplerError> {
        let train = training_sigmas(&config.schedule)?;
        let (steps, last) = (check_steps(config.steps, train.len())?, train.len() - 1);
        let timesteps: Vec<f64> = match config.spacing {
            Spacing::Leading { offset } => leading(train.len(), steps, steps, offset),
            Spacing::Linspace => linspace(last, steps).map(|t| f64::from(t as f32)).collect(),
        };
        Ok(Self::at(&train, timesteps, config.ends_clean))
    }

    /// One interval more than steps; its end, timestep 0, is not visited.
    pub fn of_dpm_solver(config: &SigmaConfig) -> Result<Self, SamplerError> {
        let train = training_sigmas(&config.schedule)?;
        let (steps, last) = (check_steps(config.steps, train.len() - 1)?, train.len() - 1);
        let timesteps: Vec<f64> = match config.spacing {
            Spacing::Leading { offset } => leading(train.len(), steps + 1, steps, offset),
            Spacing::Linspace => {
                linspace(last, steps + 1).take(steps).map(f64::round_ties_even).collect()
            }
        };
        Ok(Self::at(&train, timesteps, config.ends_clean))
    }

    fn at(train: &[f64], timesteps: Vec<f64>, ends_clean: bool) -> Self {
        let sigma = |&timestep: &f64| {
            let (low, share) = (timestep.floor() as usize, timestep.fract());
            let high = (low + 1).min(train.len() - 1);
            train[low] * (1.0 - share) + train[high] * share
        };
        let last = if ends_clean { 0.0 } else { train[0] };
        let sigmas = timesteps.iter().map(sigma).chain([last]).collect();
        Self { sigmas, timesteps: timesteps.into_iter().map(|t| t as f32).collect() }
    }

    /// Sigma before and after a step.
    ///
    /// Errors: [`SamplerError::StepIndex`].
    pub fn interval(&self, step: usize) -> Result<(f64, f64), SamplerError> {
        match self.sigmas.get(step..).unwrap_or_default() {
            [sigma, next, ..] => Ok((*sigma, *next)),
            _ => Err(SamplerError::StepIndex { step, steps: self.timesteps.len() }),
        }
    }

    /// Standard deviation of the initial latents.
    pub fn init_noise_sigma(&self, spacing: Spacing) -> f32 {
        let first = self.sigmas[0];
        match spacing {
            Spacing::Leading { .. } => first.hypot(1.0) as f32,
            Spacing::Linspace => first as f32,
        }
    }
}

/// Sigma at each timestep of training, rising.
fn training_sigmas(schedule: &NoiseSchedule) -> Result<Vec<f64>, SamplerError> {
    let alphas = schedule.alphas_cumulative()?;
    Ok(alphas.into_iter().map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect())
}

fn check_steps(steps: usize, max_steps: usize) -> Result<usize, SamplerError> {
    match (1..=max_steps).contains(&steps) {
        true => Ok(steps),
        false => Err(SamplerError::Steps { steps, max_steps }),
    }
}

/// The largest `steps` of the multiples of `train_steps / intervals`, largest first.
fn leading(train_steps: usize, intervals: usize, steps: usize, offset: usize) -> Vec<f64> {
    let stride = train_steps / intervals;
    let first = (intervals - 1) * stride;
    let offset = offset.min(train_steps - 1 - first);
    (0..steps).map(|index| (first - index * stride + offset) as f64).collect()
}

/// `count` numbers from `last` down to 0.
fn linspace(last: usize, count: usize) -> impl Iterator<Item = f64> {
    let intervals = (count - 1).max(1) as f64;
    (0..count).rev().map(move |index| last as f64 * index as f64 / intervals)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::super::rng::NormalRng;
    use super::super::{BetaCurve, Sampler};
    use super::*;

    /// The settings of diffusers' scheduler tests.
    pub fn diffusers_test_config(train_steps: usize, prediction: Prediction) -> SigmaConfig {
        SigmaConfig {
            steps: 10,
            prediction,
            schedule: NoiseSchedule {
                beta_start: 0.0001,
                beta_end: 0.02,
                curve: BetaCurve::Linear,
                train_steps,
            },
            spacing: Spacing::Linspace,
            ends_clean: true,
            latent_elems: ELEMS,
        }
    }

    const ELEMS: usize = 4 * 3 * 8 * 8;

    /// The full loop of diffusers' tests: a ramp as sample, `sample * t / (t + 1)` as network. A
    /// step starts from the network's input, as in these tests. Returns the sum of the result's
    /// magnitudes.
    pub fn full_loop(sampler: &mut dyn Sampler) -> f64 {
        let sigma = sampler.init_noise_sigma();
        // A ramp of shape [3, 8, 8, 4], permuted to [4, 3, 8, 8].
        let mut sample: Vec<f32> = (0..ELEMS)
            .map(|n| {
                let (picture, rest) = (n / 192, n % 192);
                (rest * 4 + picture) as f32 / ELEMS as f32 * sigma
            })
            .collect();
        let mut rng = NormalRng::from_seed(0);
        for (step, t) in sampler.timesteps().to_vec().into_iter().enumerate() {
            let latents = sample.clone();
            sampler.scale_model_input(step, &latents, &mut sample).unwrap();
            let output: Vec<f32> = sample.iter().map(|x| x * t / (t + 1.0)).collect();
            sampler.step(step, &output, &mut sample, &mut rng).unwrap();
        }
        sample.iter().map(|x| f64::from(x.abs())).sum()
    }

    #[test]
    fn timesteps_equal_diffusers() {
        let config = |steps| SigmaConfig::from(&SamplerOptions::stable_diffusion(steps, 0));
        let euler = |steps| Sigmas::of_euler(&config(steps)).unwrap().timesteps;
        assert_eq!(euler(5), [801.0, 601.0, 401.0, 201.0, 1.0]);
        assert_eq!(euler(20)[..2], [951.0, 901.0]);
        let dpm = |steps| Sigmas::of_dpm_solver(&config(steps)).unwrap().timesteps;
        assert_eq!((dpm(20)[0], dpm(20)[1], dpm(20)[19]), (941.0, 894.0, 48.0));
        assert_eq!(dpm(1), [501.0]);
        for steps in 1..1000 {
            for timesteps in [euler(steps), dpm(steps)] {
                assert_eq!(timesteps.len(), steps);
                assert!(timesteps.is_sorted_by(|a, b| a > b) && timesteps[0] < 1000.0);
            }
        }
        assert!(Sigmas::of_dpm_solver(&config(1000)).is_err());
    }
}
