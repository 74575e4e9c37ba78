//! The progress line of a run.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Number of steps over which the time of a step is averaged.
const RECENT_STEPS: usize = 8;
/// Width of the bar in characters.
const WIDTH: usize = 30;
/// A shorter bar is left out.
const MIN_WIDTH: usize = 5;

/// Time between two lines if standard error is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A line that is redrawn on a terminal. In a log, a new line every few seconds.
pub(super) struct Bar {
    terminal: bool,
    state: RefCell<State>,
}

struct State {
    /// The line on the terminal; empty if there is none.
    line: String,
    /// The current activity.
    activity: Option<Activity>,
    /// Time of the last line in a log.
    logged: Instant,
    /// Number of the image, and of all images.
    place: (usize, usize),
    /// Times of this image's steps.
    seconds: Vec<f64>,
    /// Predicted time of its remaining steps.
    seconds_left: f64,
}

struct Activity {
    name: String,
    began: Instant,
    /// Progress at the start of the activity.
    first: usize,
}

impl Bar {
    pub(super) fn new() -> Bar {
        let state = State {
            line: String::new(),
            activity: None,
            logged: Instant::now(),
            place: (0, 0),
            seconds: Vec::new(),
            seconds_left: 0.0,
        };
        Bar { terminal: io::stderr().is_terminal(), state: RefCell::new(state) }
    }

    /// Begins image `number` of `count`.
    pub(super) fn begin(&self, number: usize, count: usize) {
        let mut state = self.state.borrow_mut();
        (state.place, state.activity) = ((number, count), None);
        state.seconds.clear();
    }

    pub(super) fn show(&self, activity: &str, done: usize, count: usize) {
        let state = &mut *self.state.borrow_mut();
        let current = state.activity.take().filter(|shown| shown.name == activity);
        let is_new = current.is_none();
        let Activity { began, first, .. } = state.activity.insert(current.unwrap_or_else(|| {
            Activity { name: activity.to_owned(), began: Instant::now(), first: done }
        }));
        let seconds = began.elapsed().as_secs_f64();
        let place = match state.place {
            (_, 0 | 1) => String::new(),
            (number, pictures) => format!("picture {number} of {pictures}: "),
        };
        let pace = match activity == SAMPLING {
            true => pace(&state.seconds, state.seconds_left),
            false => time_left(seconds, done.saturating_sub(*first), count.saturating_sub(done)),
        };
        let columns = if self.terminal { columns() } else { None };
        let rest = format!("{done}/{count} {}{pace}", duration(seconds));
        let mut line = format!("{place}{activity} ");
        if self.terminal {
            line += &drawn(
                columns.map(|columns| columns.saturating_sub(line.len() + rest.len())),
                done,
                count,
            );
        }
        line += &rest;
        // A longer line would wrap, and its first part would stay when it is drawn again.
        line.truncate(columns.map_or(line.len(), |columns| columns.saturating_sub(1)));
        state.line = line;
        self.draw(&state.line);
        // The first run of a bundle compiles for minutes and says so at once.
        let is_long = is_new && activity == COMPILING && done < count;
        if !self.terminal && (is_long || state.logged.elapsed() >= LOG_INTERVAL) {
            state.logged = Instant::now();
            let _ = writeln!(io::stderr(), "{}", state.line);
        }
    }

    /// Records a step, the seconds that it took, and those that the remaining ones will take.
    pub(super) fn step(&self, (done, steps): (usize, usize), seconds: f64, seconds_left: f64) {
        let mut state = self.state.borrow_mut();
        state.seconds.push(seconds);
        state.seconds_left = seconds_left;
        drop(state);
        self.show(SAMPLING, done, steps);
    }

    /// Clears the line, so that something else can write to the terminal.
    pub(super) fn suspend<T>(&self, body: impl FnOnce() -> T) -> T {
        self.draw("");
        let answer = body();
        self.draw(&self.state.borrow().line);
        answer
    }

    pub(super) fn clear(&self) {
        self.state.borrow_mut().line.clear();
        self.draw("");
    }

    /// Replaces the last line. A closed terminal is no failure.
    fn draw(&self, line: &str) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K{line}").and_then(|()| io::stderr().flush());
        }
    }
}

/// The bar, as long as the free characters of a line allow.
fn drawn(free: Option<usize>, done: usize, count: usize) -> String {
    // Its ends, the space after it, and the last column.
    let width = free.map_or(WIDTH, |free| free.saturating_sub(4).min(WIDTH));
    if width < MIN_WIDTH {
        return String::new();
    }
    let full = (width * done.min(count)).checked_div(count).unwrap_or(0);
    format!("[{}{}] ", "=".repeat(full), " ".repeat(width - full))
}

#[cfg(unix)]
use crate::os::terminal::columns;

#[cfg(not(unix))]
fn columns() -> Option<usize> {
    None
}

/// The activity of a run whose kernels are missing.
pub(super) const COMPILING: &str = "compiling kernels";

/// The activity for which time per step is shown.
const SAMPLING: &str = "sampling";

/// Time of a step and remaining time of the sampling. The first step also waits for weights, so it
/// counts only until the second.
fn pace(seconds: &[f64], left: f64) -> String {
    let later = if seconds.len() > 1 { &seconds[1..] } else { seconds };
    let recent = &later[later.len().saturating_sub(RECENT_STEPS)..];
    if recent.is_empty() {
        return String::new();
    }
    let mean = recent.iter().sum::<f64>() / recent.len() as f64;
    format!(" {mean:.2} s/step, {} left", duration(left))
}

/// Remaining time of an activity at its pace so far; nothing before its first progress.
fn time_left(seconds: f64, done: usize, left: usize) -> String {
    match done {
        0 => String::new(),
        done => format!(", {} left", duration(seconds / done as f64 * left as f64)),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_terminal_has_a_shorter_bar_or_none() {
        assert_eq!(drawn(None, 1, 2), format!("[{}{}] ", "=".repeat(15), " ".repeat(15)));
        assert_eq!(drawn(Some(80), 2, 2), format!("[{}] ", "=".repeat(30)));
        assert_eq!(drawn(Some(14), 1, 2), "[=====     ] ");
        assert_eq!(drawn(Some(8), 1, 2), "");
        assert_eq!(drawn(Some(0), 0, 0), "");
    }

    #[test]
    fn pace_forgets_the_first_step() {
        assert_eq!(pace(&[], 3.0), "");
        assert_eq!(pace(&[9.0], 27.0), " 9.00 s/step, 27 s left");
        assert_eq!(pace(&[9.0, 0.5, 1.5], 30.0), " 1.00 s/step, 30 s left");
        let slowing = [&[1.0; 20][..], &[2.0; RECENT_STEPS]].concat();
        assert_eq!(pace(&slowing, 200.0), " 2.00 s/step, 3 min 20 s left");
        assert_eq!(time_left(8.0, 0, 9), "");
        assert_eq!(time_left(8.0, 4, 9), ", 18 s left");
        assert_eq!(duration(7384.0), "2 h 03 min");
    }
}
