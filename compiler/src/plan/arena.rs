//! Offset assignment: buffers with half-open lifespans, put in one arena of the least height.
//!
//! Pure data in, pure data out: a [`Problem`] becomes a [`Solution`], and [`check`] says whether
//! it is right without knowing how it was found. Nothing here knows what a buffer is for.
//!
//! ```text
//! offset
//!   3 |      | b1 b1 b1 |           lifespans are [lower, upper); two buffers may share bytes
//!   2 | b0 b0| b1 b1 b1 |           only when they are not live together
//!   1 | b2 b2  b2 b2 b2 | b3 b3
//!     +------------------------ time
//! ```

mod check;
mod csv;
mod greedy;
mod improve;
mod partial;
mod problem;
mod report;
mod search;
mod sections;

pub use check::{CheckError, check};
pub use csv::{CsvError, CsvErrorKind, Table, parse_csv, write_csv};
pub use problem::{Buffer, Conflict, Problem, ProblemError, Solution, conflict};
pub use report::{CsvConflict, CsvReport, run_csv};

use std::time::Duration;

/// How much work [`solve`] may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of search, a few nanoseconds each, after which the best solution so far is returned.
    /// Counted, not timed, so that a problem has the same solution on every machine. 0 leaves
    /// greedy placement only.
    pub search_steps: u64,
    /// When to stop the search in any case; makes the solution depend on the machine.
    pub time: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { search_steps: 500_000_000, time: None }
    }
}

/// Finds offsets of the least height it can, and stops early at the problem's capacity or at its
/// lower bound, whichever is higher.
///
/// The solution always passes [`check`] except for its capacity: where none was found that fits,
/// the lowest one is returned, for the caller to compare.
///
/// Errors: [`ProblemError`] if the problem is malformed.
pub fn solve(problem: &Problem, limits: &Limits) -> Result<Solution, ProblemError> {
    problem.validate()?;
    let target_bytes = problem.capacity_bytes.unwrap_or(0).max(problem.lower_bound_bytes());
    let solution = greedy::greedy(problem, target_bytes);
    if solution.height_bytes <= target_bytes || limits.search_steps == 0 {
        return Ok(solution);
    }
    Ok(improve::improve(problem, solution, target_bytes, limits))
}
