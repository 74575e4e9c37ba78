//! DPM-Solver++ (2M) and UniPC: second order, from the images that this step and the step before
//! predict.
//!
//! Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2 and its stochastic form; Zhao et al. 2023
//! (arXiv:2302.04867) with `B(h) = exp(h) - 1`. As diffusers' `DPMSolverMultistepScheduler`
//! (`dpmsolver++` and `sde-dpmsolver++`, order 2, midpoint) and `UniPCMultistepScheduler` (order 2,
//! `bh2`).

use super::level::{Level, Mix, Move};
use super::schedule::levels;
use super::{SamplerError, SamplerOptions};

/// DPM-Solver++ (2M).
pub(super) fn multistep(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, false, false)
}

/// DPM-Solver++ (2M) of the stochastic equation: each step adds fresh noise.
pub(super) fn stochastic(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, true, false)
}

/// UniPC: the steps of DPM-Solver++ (2M). Each evaluation also corrects the step before it.
pub(super) fn unipc(options: &SamplerOptions) -> Result<Vec<Move>, SamplerError> {
    moves(options, false, true)
}

fn moves(
    options: &SamplerOptions,
    stochastic: bool,
    corrected: bool,
) -> Result<Vec<Move>, SamplerError> {
    let levels = levels(options, true)?;
    let at: Vec<Level> = levels.sigmas.iter().map(|&sigma| Level::preserving(sigma)).collect();
    let moves = levels.timesteps.iter().enumerate().map(|(index, &timestep)| {
        // Levels before the first step are unknown.
        let known = |back: usize| (index >= options.first + back).then(|| at[index - back]);
        let (now, next) = (at[index], at[index + 1]);
        let (mut mix, mut fresh) = (now.towards(next), 0.0);
        if stochastic {
            let kept = (now.lambda() - next.lambda()).exp();
            mix.latent *= kept;
            mix.picture = next.picture * (1.0 - kept * kept);
            fresh = next.noise * (1.0 - kept * kept).sqrt();
        }
        // The last step ends at the prediction itself.
        if let Some(before) = known(1).filter(|_| next.noise > 0.0) {
            let change = mix.picture * 0.5 / ratio(before, now, next);
            mix.picture += change;
            mix.before = -change;
        }
        let mut step = Move::new(timestep, now, mix, fresh);
        if let Some(before) = known(1).filter(|_| corrected) {
            step.correction = correction(known(2), before, now);
        }
        step
    });
    Ok(moves.collect())
}

/// Length of the step before `now` over that of the step after it, by the logarithm of the
/// signal-to-noise ratio.
fn ratio(before: Level, now: Level, next: Level) -> f64 {
    (now.lambda() - before.lambda()) / (next.lambda() - now.lambda())
}

/// The step from `before` to `now` once more, with the image that is predicted at `now`.
fn correction(older: Option<Level>, before: Level, now: Level) -> Mix {
    let straight = before.towards(now);
    let ahead = straight.picture;
    let (of_older, of_now) = match older {
        None => (0.0, 0.5),
        Some(older) => {
            let ratio = -ratio(older, before, now);
            let h = before.lambda() - now.lambda();
            let (first, scale) = (h.exp_m1() / h - 1.0, h.exp_m1());
            let second = (first / h - 0.5) * 2.0;
            let share = (first - second) / scale / (1.0 - ratio);
            (share / ratio, first / scale - share)
        }
    };
    Mix {
        latent: 0.0,
        picture: ahead * of_now,
        before: ahead * (1.0 - of_older - of_now),
        older: ahead * of_older,
        kept: straight.latent,
    }
}
