//! Steps that cost less: which evaluations of the denoiser have no guidance, and which compute its
//! outer levels alone.
//!
//! Sources: Kynkäänniemi et al. 2024 (arXiv:2404.07724) for guidance in an interval, Ma et al. 2023
//! (DeepCache, arXiv:2312.00858) for the value of the inner levels that several steps share.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The part of a run that has guidance, in shares of its steps.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct GuidanceInterval {
    /// Share of the steps before it, 0 to 1.
    pub start: f32,
    /// Share of the steps up to its end, from `start` to 1.
    pub stop: f32,
}

impl GuidanceInterval {
    /// All steps.
    pub const ALL: GuidanceInterval = GuidanceInterval { start: 0.0, stop: 1.0 };

    /// Whether a step has guidance, of `steps` steps that count from 0. Both shares of the steps
    /// are rounded down, as diffusers' guiders do.
    pub fn contains(self, step: usize, steps: usize) -> bool {
        let share = |share: f32| (f64::from(share) * steps as f64) as usize;
        (share(self.start)..share(self.stop)).contains(&step)
    }
}

impl FromStr for GuidanceInterval {
    type Err = &'static str;

    /// Reads `0.1:0.6`.
    fn from_str(text: &str) -> Result<GuidanceInterval, Self::Err> {
        let share = |text: &str| text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        let shares = text.split_once(':').and_then(|(a, b)| Some((share(a)?, share(b)?)));
        match shares.filter(|(start, stop)| start <= stop) {
            Some((start, stop)) => Ok(GuidanceInterval { start, stop }),
            None => Err("write START:STOP, shares of the steps from 0 to 1, as in 0:0.5"),
        }
    }
}

impl fmt::Display for GuidanceInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.start, self.stop)
    }
}

/// How a run saves evaluations.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Fast {
    /// The steps with guidance.
    pub guidance_interval: GuidanceInterval,
    /// Evaluations from one whole pass of the denoiser to the next; 1: all are whole.
    pub cache_interval: usize,
}

/// The presets of `--fast`, from 0, which saves nothing.
pub const PRESETS: [Fast; 4] = [preset(1.0, 1), preset(1.0, 2), preset(1.0, 3), preset(0.5, 3)];

const fn preset(stop: f32, cache_interval: usize) -> Fast {
    Fast { guidance_interval: GuidanceInterval { start: 0.0, stop }, cache_interval }
}

/// What an evaluation computes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saving {
    /// Whether both branches of guidance are computed, not the conditional one alone.
    pub guided: bool,
    /// Whether the outer levels alone are computed.
    pub shallow: bool,
}

impl Fast {
    /// What costs less, as image files record it, key and value; nothing if all steps are whole.
    pub(super) fn named(self, preset: usize) -> impl Iterator<Item = (&'static str, String)> {
        let preset = Some(preset).filter(|preset| *preset > 0);
        let interval = Some(self.guidance_interval).filter(|all| *all != GuidanceInterval::ALL);
        let cache = Some(self.cache_interval).filter(|interval| *interval > 1);
        let named = [
            preset.map(|preset| ("fast", preset.to_string())),
            interval.map(|interval| ("guidance interval", interval.to_string())),
            cache.map(|cache| ("cache interval", cache.to_string())),
        ];
        named.into_iter().flatten()
    }

    /// What each evaluation of a run computes. `steps_of` has the step of each, from 0 to `steps`.
    ///
    /// The first evaluation is whole, as is the first one after guidance begins or ends: the inner
    /// levels' value of one is not the other's. A whole one is followed by `cache_interval - 1`
    /// shallow ones at most.
    pub fn savings(
        self,
        steps_of: impl Iterator<Item = usize>,
        steps: usize,
    ) -> impl Iterator<Item = Saving> {
        let (mut before, mut shallow_left) = (None, 0);
        steps_of.map(move |step| {
            let guided = self.guidance_interval.contains(step, steps);
            let shallow = before == Some(guided) && shallow_left > 0;
            shallow_left = if shallow { shallow_left - 1 } else { self.cache_interval.max(1) - 1 };
            before = Some(guided);
            Saving { guided, shallow }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter an evaluation: g and c whole with both branches or one, . and - shallow.
    fn drawn(fast: Fast, steps_of: &[usize], steps: usize) -> String {
        let savings = fast.savings(steps_of.iter().copied(), steps);
        let letter = |saving: Saving| match (saving.guided, saving.shallow) {
            (true, false) => 'g',
            (true, true) => '.',
            (false, false) => 'c',
            (false, true) => '-',
        };
        savings.map(letter).collect()
    }

    fn fast(interval: &str, cache_interval: usize) -> Fast {
        Fast { guidance_interval: interval.parse().unwrap(), cache_interval }
    }

    #[test]
    fn whole_evaluations_come_first_and_in_intervals() {
        let steps: Vec<usize> = (0..10).collect();
        for (interval, cache, expected) in [
            ("0:1", 1, "gggggggggg"),
            ("0:0.5", 1, "gggggccccc"),
            ("0.2:0.79", 1, "ccgggggccc"),
            ("0:0", 1, "cccccccccc"),
            ("0:1", 3, "g..g..g..g"),
            ("0:0.5", 3, "g..g.c--c-"),
            ("0:1", usize::MAX, "g........."),
        ] {
            assert_eq!(drawn(fast(interval, cache), &steps, 10), expected, "{interval} {cache}");
        }
        // Two evaluations a step, but for the last.
        assert_eq!(drawn(fast("0:0.5", 2), &[0, 0, 1, 1, 2], 3), "g.c-c");
        assert_eq!(drawn(PRESETS[0], &steps, 10), "gggggggggg");
    }

    #[test]
    fn intervals_are_shares_in_order() {
        assert_eq!("0.25:1".parse(), Ok(GuidanceInterval { start: 0.25, stop: 1.0 }));
        assert_eq!(GuidanceInterval::ALL.to_string(), "0:1");
        for wrong in ["", "0.5", "0.6:0.5", "0:1.1", "-1:1", "nan:1", "0:1:1"] {
            assert!(wrong.parse::<GuidanceInterval>().is_err(), "{wrong}");
        }
    }
}
