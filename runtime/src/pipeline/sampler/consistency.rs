//! Samplers of models that are distilled to predict the image from any timestep: LCM and TCD.
//!
//! Source: Luo et al. 2023 (arXiv:2310.04378) and Zheng et al. 2024 (arXiv:2402.19159), as
//! diffusers' `LCMScheduler` and `TCDScheduler`.

use kiln_bundle::plan::Spacing;

use super::level::{Level, Mix, Move};
use super::schedule::{alphas_cumulative, check_steps, timesteps};
use super::{SamplerError, SamplerOptions};

/// Timesteps of the distillation, evenly from the last one of the training.
const DISTILLED_STEPS: usize = 50;

/// The predicted image, with fresh noise for the next timestep.
pub(super) fn lcm(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    /// Standard deviation of the data, and timesteps for each of the training's, in the weights of
    /// latents and predicted image.
    const DATA: f64 = 0.5;
    const SCALE: f64 = 10.0;
    moves(options, |_, timestep, level, next| {
        let scaled = timestep as f64 * SCALE;
        let weight = scaled.hypot(DATA);
        let next =
            next.map_or(Level { picture: 1.0, noise: 0.0 }, |(_, alpha)| Level::of_alpha(alpha));
        let mix = Mix {
            latent: next.picture * (DATA / weight).powi(2),
            picture: next.picture * scaled / weight,
            ..Mix::default()
        };
        Move::new(timestep as f64, level, mix, next.noise)
    })
}

/// A step of DDIM to an earlier timestep than the next one, by `eta`, and fresh noise from there.
pub(super) fn tcd(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, |alphas, timestep, level, next| {
        let Some((next, alpha)) = next else {
            let mix = level.towards(Level::of_alpha(alphas[0]));
            return Move::new(timestep as f64, level, mix, 0.0);
        };
        let between = alphas[((1.0 - options.eta) * next as f32) as usize];
        let mut mix = level.towards(Level::of_alpha(between));
        let kept = alpha / between;
        mix.latent *= kept.sqrt();
        mix.picture *= kept.sqrt();
        Move::new(timestep as f64, level, mix, (1.0 - kept).max(0.0).sqrt())
    })
}

/// A move for each timestep. `step` gets the image's part of the variance at all timesteps, the
/// timestep, the level there, and the next timestep with its part.
fn moves(
    options: &SamplerOptions,
    step: impl Fn(&[f64], usize, Level, Option<(usize, f64)>) -> Move,
) -> Result<Vec<Move>, SamplerError> {
    let alphas = alphas_cumulative(&options.schedule)?;
    let steps = options.steps;
    check_steps(steps, DISTILLED_STEPS.min(alphas.len()))?;
    let stride = (alphas.len() / DISTILLED_STEPS).max(1);
    let distilled = DISTILLED_STEPS.min(alphas.len());
    let trailing = timesteps(Spacing::Trailing, alphas.len(), steps, steps);
    let timestep = |index: usize| match options.spacing {
        Spacing::Trailing => trailing[index] as usize,
        _ => (distilled - index * distilled / steps) * stride - 1,
    };
    let moves = (0..steps).map(|index| {
        let now = timestep(index);
        let next = (index + 1 < steps).then(|| timestep(index + 1));
        let next = next.map(|next| (next, alphas[next]));
        step(&alphas, now, Level::of_alpha(alphas[now]), next)
    });
    Ok(moves.collect())
}
