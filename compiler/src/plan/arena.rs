//! Offset assignment: buffers with half-open live ranges, placed in one arena of the least height.
//!
//! Input and output are plain data: a [`ArenaProblem`] becomes a [`Solution`]. [`check`] verifies a
//! solution without knowledge of the solver. This module does not know the contents of buffers.
//!
//! ```text
//! offset
//!   3 |      | b1 b1 b1 |           live ranges are [lower, upper); two buffers may share bytes
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
pub use problem::{ArenaProblem, Buffer, Conflict, ProblemError, Solution, conflict};
pub use report::{CsvConflict, CsvReport, run_csv};

use std::time::Duration;

/// Limits of the work of [`solve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps of search, a few nanoseconds each, after which the best solution so far is returned.
    /// Steps are counted, not timed, so that a problem has the same solution on every machine. 0
    /// leaves greedy placement only.
    pub search_steps: u64,
    /// Longest duration of the search. With it, the solution depends on the machine.
    pub time: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { search_steps: 500_000_000, time: None }
    }
}

/// Finds offsets with a low height. Stops early at the problem's capacity or at its lower bound,
/// whichever is higher.
///
/// The solution passes [`check`] except for its capacity: if no placement within the capacity is
/// found, the lowest one is returned. The caller compares its height with the capacity.
///
/// Errors: [`ProblemError`] if the problem is malformed.
pub fn solve(problem: &ArenaProblem, limits: &Limits) -> Result<Solution, ProblemError> {
    problem.validate()?;
    let target_bytes = problem.capacity_bytes.unwrap_or(0).max(problem.lower_bound_bytes());
    let solution = greedy::greedy(problem, target_bytes);
    if solution.height_bytes <= target_bytes || limits.search_steps == 0 {
        return Ok(solution);
    }
    Ok(improve::improve(problem, solution, target_bytes, limits))
}
