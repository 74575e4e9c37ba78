//! The noise schedule of a network's training.

use kiln_bundle::plan::{BetaCurve, Schedule};

use super::SamplerError;

/// The noise schedule of a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseSchedule {
    /// Variance added at the first timestep.
    pub beta_start: f64,
    /// Variance added at the last timestep.
    pub beta_end: f64,
    /// The values between.
    pub curve: BetaCurve,
    /// Number of timesteps.
    pub train_steps: usize,
}

impl NoiseSchedule {
    /// The schedule of Stable Diffusion 1 and 2.
    pub const STABLE_DIFFUSION: Self = Self {
        beta_start: 0.00085,
        beta_end: 0.0120,
        curve: BetaCurve::ScaledLinear,
        train_steps: 1000,
    };

    /// The schedule of a model's training.
    pub fn of(schedule: &Schedule) -> Self {
        let &Schedule { beta_start, beta_end, curve, train_steps, .. } = schedule;
        Self { beta_start, beta_end, curve, train_steps: train_steps as usize }
    }

    /// The signal's part of the variance at each timestep: the running product of `1 - beta`.
    ///
    /// Shapes: `[train_steps]`, falling.
    /// Numerics: f64.
    /// Errors: [`SamplerError::Schedule`] if there are no timesteps, more than a million, or betas
    /// outside `(0, 1)`.
    pub fn alphas_cumulative(&self) -> Result<Vec<f64>, SamplerError> {
        let is_beta = |beta: f64| beta > 0.0 && beta < 1.0;
        let possible = is_beta(self.beta_start) && is_beta(self.beta_end);
        if !possible || !(1..=1_000_000).contains(&self.train_steps) {
            return Err(SamplerError::Schedule(*self));
        }
        let last = (self.train_steps - 1).max(1) as f64;
        let between =
            |start: f64, end: f64, step: usize| start + (end - start) * step as f64 / last;
        let beta = |step| match self.curve {
            BetaCurve::Linear => between(self.beta_start, self.beta_end, step),
            BetaCurve::ScaledLinear => {
                between(self.beta_start.sqrt(), self.beta_end.sqrt(), step).powi(2)
            }
        };
        let mut alpha = 1.0;
        let alphas = (0..self.train_steps).map(|step| {
            alpha *= 1.0 - beta(step);
            alpha
        });
        Ok(alphas.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::NoiseSchedule;

    #[test]
    fn stable_diffusion_ends_in_noise() {
        let alphas = NoiseSchedule::STABLE_DIFFUSION.alphas_cumulative().unwrap();
        assert_eq!(alphas.len(), 1000);
        assert!((alphas[0] - 0.99915).abs() < 1e-9);
        assert!((alphas[999] - 0.004_660).abs() < 1e-6, "{}", alphas[999]);
        assert!(alphas.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn impossible_schedules_are_errors() {
        let sd = NoiseSchedule::STABLE_DIFFUSION;
        for schedule in [
            NoiseSchedule { beta_start: 0.0, ..sd },
            NoiseSchedule { beta_end: 1.0, ..sd },
            NoiseSchedule { beta_end: f64::NAN, ..sd },
            NoiseSchedule { train_steps: 0, ..sd },
        ] {
            assert!(schedule.alphas_cumulative().is_err());
        }
    }
}
