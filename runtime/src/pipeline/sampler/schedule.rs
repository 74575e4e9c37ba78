//! Noise levels of the training, and the timesteps of a run.

use kiln_bundle::plan::{BetaCurve, Prediction, Schedule, Spacing};

use super::{SamplerError, SamplerOptions};

/// The image's part of the variance at the last timestep of a training with zero terminal
/// signal-to-noise ratio, for samplers that divide by it. Source: diffusers.
const LEAST_ALPHA: f64 = 1.0 / (1u64 << 24) as f64;

/// The image's part of the variance at each timestep: the running product of `1 - beta`.
///
/// Shapes: `[train_steps]`, falling.
/// Numerics: f64.
/// Errors: [`SamplerError::Schedule`] if there are no timesteps, more than a million, or betas
/// outside `(0, 1)`.
/// Source of zero terminal SNR: Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
pub fn alphas_cumulative(schedule: &Schedule) -> Result<Vec<f64>, SamplerError> {
    let &Schedule { beta_start, beta_end, curve, train_steps, .. } = schedule;
    let is_beta = |beta: f64| beta > 0.0 && beta < 1.0;
    if !is_beta(beta_start) || !is_beta(beta_end) || !(1..=1_000_000).contains(&train_steps) {
        return Err(SamplerError::Schedule { beta_start, beta_end, train_steps });
    }
    let last = f64::from((train_steps - 1).max(1));
    let between = |start: f64, end: f64, step: u32| start + (end - start) * f64::from(step) / last;
    let mut alpha = 1.0;
    let mut alphas: Vec<f64> = (0..train_steps)
        .map(|step| {
            alpha *= 1.0
                - match curve {
                    BetaCurve::Linear => between(beta_start, beta_end, step),
                    BetaCurve::ScaledLinear => {
                        between(beta_start.sqrt(), beta_end.sqrt(), step).powi(2)
                    }
                };
            alpha
        })
        .collect();
    if schedule.zero_snr && alphas.len() > 1 {
        let (first, last) = (alphas[0].sqrt(), alpha.sqrt());
        for alpha in &mut alphas {
            *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
        }
        if schedule.prediction == Prediction::Epsilon {
            // The image is the difference of latents and noise over its own share.
            alphas[train_steps as usize - 1] = LEAST_ALPHA;
        }
    }
    Ok(alphas)
}

/// Standard deviation of the noise beside an image of variance 1 at each timestep, rising.
fn training_sigmas(schedule: &Schedule) -> Result<Vec<f64>, SamplerError> {
    let alphas = alphas_cumulative(schedule)?.into_iter().map(|alpha| alpha.max(LEAST_ALPHA));
    Ok(alphas.map(|alpha| ((1.0 - alpha) / alpha).sqrt()).collect())
}

/// Checks the number of steps.
pub(super) fn check_steps(steps: usize, max_steps: usize) -> Result<(), SamplerError> {
    match (1..=max_steps).contains(&steps) {
        true => Ok(()),
        false => Err(SamplerError::Steps { steps, max_steps }),
    }
}

/// Timesteps of `steps` steps, largest first, in the way of diffusers.
///
/// `intervals`: `steps`, or one more if timestep 0 ends the last step and is not visited.
/// Linear spacing gives fractions; Karras spacing needs the levels, see [`levels`].
pub(super) fn timesteps(
    spacing: Spacing,
    train_steps: usize,
    steps: usize,
    intervals: usize,
) -> Vec<f64> {
    let last = train_steps - 1;
    let stride = train_steps / intervals;
    // The offset is 1, or 0 where 1 leads past the last timestep.
    let offset = 1.min(last - (intervals - 1) * stride);
    let timestep = |index: usize| match spacing {
        Spacing::Leading => ((intervals - 1 - index) * stride + offset) as f64,
        Spacing::Trailing => {
            let back = index as f64 * (train_steps as f64 / steps as f64);
            (train_steps as f64 - back).round_ties_even() - 1.0
        }
        Spacing::Linspace | Spacing::Karras => {
            let count = (intervals - 1).max(1) as f64;
            last as f64 * ((intervals - 1 - index) as f64 / count)
        }
    };
    (0..steps).map(timestep).collect()
}

/// The timesteps of a run, and the noise's standard deviation at each, with 0 for its end.
pub(super) struct Levels {
    pub timesteps: Vec<f64>,
    /// One more than timesteps.
    pub sigmas: Vec<f64>,
}

/// The levels of a run. `multistep`: timesteps are whole, and timestep 0 is not visited.
///
/// Errors: [`SamplerError::Steps`], [`SamplerError::Schedule`].
pub(super) fn levels(options: &SamplerOptions, multistep: bool) -> Result<Levels, SamplerError> {
    let train = training_sigmas(&options.schedule)?;
    let SamplerOptions { steps, spacing, .. } = *options;
    check_steps(steps, train.len() - usize::from(multistep))?;
    let whole = |timestep: f64| match multistep {
        true => timestep.round_ties_even(),
        // diffusers keeps timesteps in f32.
        false => f64::from(timestep as f32),
    };
    let (timesteps, mut sigmas): (Vec<f64>, Vec<f64>) = if spacing == Spacing::Karras {
        let both = |sigma| (whole(timestep_of(&train, sigma)), sigma);
        karras(&train, steps).map(both).unzip()
    } else {
        let intervals = steps + usize::from(multistep);
        let timesteps = timesteps(spacing, train.len(), steps, intervals).into_iter();
        timesteps.map(whole).map(|timestep| (timestep, sigma_at(&train, timestep))).unzip()
    };
    sigmas.push(0.0);
    Ok(Levels { timesteps, sigmas })
}

/// Sigmas from the highest of the training to the lowest, evenly by their seventh roots.
///
/// Source: Karras et al. 2022 (arXiv:2206.00364), equation 5.
fn karras(train: &[f64], steps: usize) -> impl Iterator<Item = f64> {
    const RHO: f64 = 7.0;
    let root = |sigma: f64| sigma.powf(1.0 / RHO);
    let (low, high) = (root(train[0]), root(train[train.len() - 1]));
    let intervals = (steps - 1).max(1) as f64;
    (0..steps).map(move |index| (high + index as f64 / intervals * (low - high)).powf(RHO))
}

/// Sigma at a timestep, between whole timesteps by a straight line.
fn sigma_at(train: &[f64], timestep: f64) -> f64 {
    let (low, share) = (timestep as usize, timestep.fract());
    let high = (low + 1).min(train.len() - 1);
    train[low] * (1.0 - share) + train[high] * share
}

/// The timestep of a sigma, between whole timesteps by a straight line over logarithms.
fn timestep_of(train: &[f64], sigma: f64) -> f64 {
    let above = train.partition_point(|&known| known <= sigma).clamp(1, train.len() - 1);
    let (low, high) = (train[above - 1].ln(), train[above].ln());
    let share = (sigma.ln() - low) / (high - low);
    (above - 1) as f64 + share.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_diffusion_ends_in_noise() {
        let alphas = alphas_cumulative(&Schedule::default()).unwrap();
        assert_eq!(alphas.len(), 1000);
        assert!((alphas[0] - 0.99915).abs() < 1e-9);
        assert!((alphas[999] - 0.004_660).abs() < 1e-6, "{}", alphas[999]);
        assert!(alphas.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn zero_snr_ends_in_noise_alone() {
        let schedule =
            Schedule { zero_snr: true, prediction: Prediction::V, ..Schedule::default() };
        let alphas = alphas_cumulative(&schedule).unwrap();
        assert!((alphas[0] - 0.99915).abs() < 1e-9);
        assert_eq!(alphas[999], 0.0);
        assert!(alphas.is_sorted_by(|a, b| a > b));
        let schedule = Schedule { prediction: Prediction::Epsilon, ..schedule };
        assert_eq!(alphas_cumulative(&schedule).unwrap()[999], LEAST_ALPHA);
    }

    #[test]
    fn impossible_schedules_are_errors() {
        let sd = Schedule::default;
        for schedule in [
            Schedule { beta_start: 0.0, ..sd() },
            Schedule { beta_end: 1.0, ..sd() },
            Schedule { beta_end: f64::NAN, ..sd() },
            Schedule { train_steps: 0, ..sd() },
            Schedule { train_steps: u32::MAX, ..sd() },
        ] {
            assert!(alphas_cumulative(&schedule).is_err());
        }
    }
}
