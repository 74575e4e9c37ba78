//! Solves problems given as text, and reports the result for the command line.

use std::fmt;
use std::time::Duration;

use anyhow::Context;

use super::{Limits, check, conflict, parse_csv, solve, write_csv};

/// Number of buffers that are named in a conflict.
const NAMED_BUFFERS: usize = 12;

/// The solution of a problem given as text. Displayed as one line, with more lines for a conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvReport {
    /// The input lines, each with its offset.
    pub csv: String,
    /// Height of the lowest placement found, in bytes.
    pub height_bytes: u64,
    /// Lower bound of the height, in bytes.
    pub lower_bound_bytes: u64,
    /// The requested capacity, in bytes.
    pub capacity_bytes: Option<u64>,
    /// The conflict, if the live sizes alone exceed the capacity.
    pub conflict: Option<CsvConflict>,
}

/// Buffers that are live together and exceed the capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsvConflict {
    /// The instant.
    pub time: u32,
    /// Sum of the live sizes in bytes.
    pub live_bytes: u64,
    /// Ids and sizes in bytes, largest first.
    pub buffers: Vec<(String, u64)>,
}

impl CsvReport {
    /// Whether the placement fits the capacity. True if there is no capacity.
    pub fn fits(&self) -> bool {
        self.capacity_bytes.is_none_or(|capacity_bytes| self.height_bytes <= capacity_bytes)
    }
}

impl fmt::Display for CsvReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "height {} bytes, lower bound {}", self.height_bytes, self.lower_bound_bytes)?;
        if let Some(capacity_bytes) = self.capacity_bytes {
            let verdict = match (self.fits(), self.conflict.is_some()) {
                (true, _) => "fits",
                (false, true) => "cannot fit",
                (false, false) => "no placement found that fits",
            };
            write!(f, ", capacity {capacity_bytes}: {verdict}")?;
        }
        let Some(conflict) = &self.conflict else {
            return Ok(());
        };
        let (count, live_bytes) = (conflict.buffers.len(), conflict.live_bytes);
        write!(f, "\nat time {} the {count} live buffers need {live_bytes} bytes:", conflict.time)?;
        for (id, size_bytes) in conflict.buffers.iter().take(NAMED_BUFFERS) {
            write!(f, "\n  {size_bytes:>12}  {id}")?;
        }
        match count.saturating_sub(NAMED_BUFFERS) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} smaller ones"),
        }
    }
}

/// Reads a problem, solves it for `capacity_bytes`, and checks the solution.
///
/// A time limit replaces all other limits. Without it, the default [`Limits`] apply, and the answer
/// is the same on every machine.
///
/// Errors: the faults of the text, by line. A problem that does not fit is no error:
/// [`fits`](CsvReport::fits) of its report is false.
pub fn run_csv(
    text: &str,
    capacity_bytes: Option<u64>,
    time_limit: Option<Duration>,
) -> anyhow::Result<CsvReport> {
    let mut table = parse_csv(text)?;
    table.problem.capacity_bytes = capacity_bytes;
    let limits = match time_limit {
        Some(_) => Limits { search_steps: u64::MAX, time: time_limit },
        None => Limits::default(),
    };
    let solution = solve(&table.problem, &limits)?;
    let named = capacity_bytes.and_then(|capacity| conflict(&table.problem, capacity));
    let named = named.map(|conflict| {
        let name = |(index, size_bytes): (usize, u64)| (table.ids[index].clone(), size_bytes);
        CsvConflict {
            time: conflict.time,
            live_bytes: conflict.live_bytes,
            buffers: conflict.buffers.into_iter().map(name).collect(),
        }
    });
    let report = CsvReport {
        csv: write_csv(&table, &solution),
        height_bytes: solution.height_bytes,
        lower_bound_bytes: table.problem.lower_bound_bytes(),
        capacity_bytes,
        conflict: named,
    };
    // The report compares the height with the capacity. The check is for all other rules.
    table.problem.capacity_bytes = None;
    check(&table.problem, &solution).context("the placement found is wrong")?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "id,lower,upper,size\na,0,3,4\nb,3,9,4\nc,0,9,4\nd,9,21,4\ne,0,21,4\n";

    #[test]
    fn what_fits_is_written_with_offsets() {
        let report = run_csv(TEXT, Some(12), None).unwrap();
        assert!(report.fits());
        assert_eq!(report.to_string(), "height 12 bytes, lower bound 12, capacity 12: fits");
        assert_eq!(report.csv.lines().next(), Some("id,lower,upper,size,offset"));
        assert_eq!(report.csv.lines().count(), 6);
        let report = run_csv(TEXT, None, Some(Duration::from_secs(1))).unwrap();
        assert_eq!(report.to_string(), "height 12 bytes, lower bound 12");
    }

    #[test]
    fn what_cannot_fit_names_the_live_buffers() {
        let report = run_csv(TEXT, Some(11), None).unwrap();
        assert!(!report.fits());
        let expected = "height 12 bytes, lower bound 12, capacity 11: cannot fit\n\
                        at time 0 the 3 live buffers need 12 bytes:\
                        \n             4  a\n             4  c\n             4  e";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn a_long_conflict_is_cut_short() {
        let rows: String = (0..15).map(|i| format!("b{i},0,1,{}\n", 100 + i)).collect();
        let report = run_csv(&format!("id,lower,upper,size\n{rows}"), Some(1), None).unwrap();
        let text = report.to_string();
        assert_eq!(text.lines().nth(2), Some("           114  b14"));
        assert_eq!(text.lines().last(), Some("  and 3 smaller ones"));
    }

    #[test]
    fn a_malformed_text_is_an_error_with_its_line() {
        let error = run_csv("id,lower,upper,size\na,0,0,1\n", None, None).unwrap_err();
        assert_eq!(format!("{error:#}"), "line 2: lower is not below upper");
    }
}
