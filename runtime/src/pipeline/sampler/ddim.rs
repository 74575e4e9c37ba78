//! DDIM: a deterministic sampler, stochastic with `eta`.
//!
//! Source: Song et al. 2021 (arXiv:2010.02502), equations 12 and 16; as diffusers'
//! `DDIMScheduler` with `set_alpha_to_one` false, which Stable Diffusion sets.

use super::level::{Level, Move};
use super::schedule::{alphas_cumulative, check_steps, timesteps};
use super::{SamplerError, SamplerOptions};

/// A step leads from its timestep to the one a whole stride before, which need not be the next
/// step's, and ends at the noise of timestep 0 at least.
pub(super) fn moves(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    let alphas = alphas_cumulative(&options.schedule)?;
    let SamplerOptions { steps, spacing, eta, .. } = *options;
    check_steps(steps, alphas.len())?;
    let stride = alphas.len() / steps;
    let moves = timesteps(spacing, alphas.len(), steps, steps).into_iter().map(|timestep| {
        let timestep = timestep.round_ties_even();
        let alpha = alphas[timestep as usize];
        let next = alphas[(timestep as usize).saturating_sub(stride)];
        // With this variance of the fresh noise, a step equals one of DDPM.
        let variance = (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        let variance = f64::from(eta).powi(2) * variance;
        let level = Level::of_alpha(alpha);
        let noise = (1.0 - next - variance).max(0.0).sqrt();
        let mix = level.towards(Level { picture: next.sqrt(), noise });
        Move::new(timestep, level, mix, variance.sqrt())
    });
    Ok(moves.collect())
}
