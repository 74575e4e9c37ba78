//! Euler's and Heun's methods over noise levels.
//!
//! Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn; ancestral sampling
//! from k-diffusion (Crowson). As diffusers' `EulerDiscreteScheduler`,
//! `EulerAncestralDiscreteScheduler` and `HeunDiscreteScheduler`.

use super::level::{Level, Mix, Move};
use super::schedule::levels;
use super::{SamplerError, SamplerOptions};

/// How the noise of a level is replaced.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Euler,
    Ancestral,
    Heun,
}

/// One straight step for each level.
pub(super) fn euler(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, Kind::Euler)
}

/// A straight step that replaces some of the noise by fresh noise.
pub(super) fn ancestral(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, Kind::Ancestral)
}

/// A straight step, and a second evaluation at its end. The step is then repeated along the mean of
/// both directions. The last step is straight.
pub(super) fn heun(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, Kind::Heun)
}

fn moves(options: &SamplerOptions, kind: Kind) -> Result<Vec<Move>, SamplerError> {
    let levels = levels(options, false)?;
    let ends = levels.timesteps.iter().skip(1).map(Some).chain([None]);
    let mut moves = Vec::with_capacity(2 * options.steps);
    for ((&timestep, end), pair) in levels.timesteps.iter().zip(ends).zip(levels.sigmas.windows(2))
    {
        let (sigma, next) = (pair[0], pair[1]);
        let level = Level::exploding(sigma);
        let fresh = match kind {
            Kind::Ancestral => next * next * (sigma * sigma - next * next) / (sigma * sigma),
            Kind::Euler | Kind::Heun => 0.0,
        };
        let kept = (next * next - fresh).max(0.0).sqrt();
        moves.push(Move::new(timestep, level, level.towards(Level::exploding(kept)), fresh.sqrt()));
        if let (Kind::Heun, Some(&end)) = (kind, end) {
            let half = (next - sigma) / 2.0;
            let mix = Mix {
                latent: half / next,
                picture: -half / next,
                before: -half / sigma,
                kept: 1.0 + half / sigma,
                older: 0.0,
            };
            moves.push(Move::new(end, Level::exploding(next), mix, 0.0));
        }
    }
    Ok(moves)
}
