//! Lowers a solution: searches at the target height, then at heights between.

use std::time::Instant;

use super::search::{Outcome, Preference, Search, Setting};
use super::sections::Sections;
use super::{ArenaProblem, Limits, Solution};

/// Steps of the first search for each buffer of the problem. A good preference needs few steps, and
/// a bad one may never end, so preferences change early.
const FIRST_STEPS_PER_BUFFER: u64 = 400;

const PREFERENCES: [Preference; 3] =
    [Preference::ContentionLiveRange, Preference::LiveRange, Preference::ContentionArea];

/// The lowest solution found within `limits`, at most as high as `solution`. Stops at the first
/// solution not above `target_bytes`.
///
/// Requires a problem that `validate` accepts, and no solution below `target_bytes`.
pub(super) fn improve(
    problem: &ArenaProblem,
    solution: Solution,
    target_bytes: u64,
    limits: &Limits,
) -> Solution {
    let sections = Sections::new(problem);
    let mut steps_left = limits.search_steps;
    let deadline = limits.time.and_then(|time| Instant::now().checked_add(time));
    let mut best = solution;
    // Half of the limits goes to the target height. The heights above it are bisected.
    let mut share = 2;
    let mut failed_bytes = target_bytes;
    let mut height_bytes = target_bytes;
    while best.height_bytes > target_bytes && steps_left > 0 && !is_past(deadline) {
        let mut allowance = Allowance::new(steps_left, deadline, share);
        steps_left -= allowance.steps;
        match search(problem, &sections, height_bytes, &mut allowance) {
            Some(lower) => best = lower,
            None => failed_bytes = height_bytes,
        }
        steps_left += allowance.steps;
        share = 4;
        height_bytes = failed_bytes + best.height_bytes.saturating_sub(failed_bytes) / 2;
        if height_bytes == failed_bytes {
            break;
        }
    }
    best
}

/// The limits of one search.
struct Allowance {
    steps: u64,
    deadline: Option<Instant>,
}

impl Allowance {
    /// `1 / share` of the remaining limits.
    fn new(steps_left: u64, deadline: Option<Instant>, share: u32) -> Self {
        let now = Instant::now();
        let part = |deadline: Instant| now + deadline.saturating_duration_since(now) / share;
        Self { steps: steps_left.div_ceil(u64::from(share)), deadline: deadline.map(part) }
    }

    fn is_spent(&self) -> bool {
        self.steps == 0 || is_past(self.deadline)
    }
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// Searches with every preference in turn and increasing steps, within the allowance.
fn search(
    problem: &ArenaProblem,
    sections: &Sections,
    height_bytes: u64,
    allowance: &mut Allowance,
) -> Option<Solution> {
    let mut step_limit = FIRST_STEPS_PER_BUFFER * problem.buffers.len() as u64;
    loop {
        for preference in PREFERENCES {
            let step_limit = step_limit.min(allowance.steps);
            let setting = Setting { preference, step_limit, deadline: allowance.deadline };
            let mut search = Search::new(problem, sections, height_bytes, setting);
            let outcome = search.run();
            allowance.steps -= search.steps().min(step_limit);
            match outcome {
                Outcome::Found => return Some(solution(problem, search.into_offsets())),
                Outcome::Exhausted => return None,
                Outcome::Aborted if allowance.is_spent() => return None,
                Outcome::Aborted => {}
            }
        }
        step_limit = step_limit.saturating_mul(2);
    }
}

fn solution(problem: &ArenaProblem, offsets: Vec<u64>) -> Solution {
    let ends = problem.buffers.iter().zip(&offsets);
    let height_bytes = ends.map(|(b, offset)| offset + b.size_bytes).max().unwrap_or(0);
    Solution { offsets, height_bytes }
}
