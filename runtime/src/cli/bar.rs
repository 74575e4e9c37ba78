//! The line on the terminal that says how far a run is.

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Steps over which the time of one is averaged.
const RECENT_STEPS: usize = 8;

/// A line that moves on a terminal, and nothing elsewhere.
pub(super) struct Bar {
    bar: ProgressBar,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    message: String,
    /// Which picture of how many.
    place: (usize, usize),
    /// Times of this picture's steps.
    seconds: Vec<f64>,
}

impl Bar {
    pub(super) fn new() -> Bar {
        let bar = match io::stderr().is_terminal() {
            true => ProgressBar::new(1),
            false => ProgressBar::hidden(),
        };
        let template = "{msg:20} [{bar:30}] {pos}/{len} {elapsed} {prefix}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Bar { bar, state: RefCell::default() }
    }

    /// The next picture, of so many.
    pub(super) fn begin(&self, number: usize, count: usize) {
        *self.state.borrow_mut() = State { place: (number, count), ..State::default() };
        self.bar.set_prefix("");
    }

    pub(super) fn show(&self, activity: &str, done: usize, count: usize) {
        let mut state = self.state.borrow_mut();
        let message = match state.place {
            (_, 0 | 1) => activity.to_owned(),
            (number, pictures) => format!("picture {number} of {pictures}: {activity}"),
        };
        if state.message != message {
            self.bar.set_message(message.clone());
            state.message = message;
        }
        self.bar.set_length(count as u64);
        self.bar.set_position(done as u64);
    }

    /// A step is done that took so long.
    pub(super) fn step(&self, done: usize, steps: usize, seconds: f64) {
        self.show("sampling", done, steps);
        let mut state = self.state.borrow_mut();
        state.seconds.push(seconds);
        self.bar.set_prefix(pace(&state.seconds, steps.saturating_sub(done)));
    }

    /// Lets something else write to the terminal.
    pub(super) fn suspend<T>(&self, body: impl FnOnce() -> T) -> T {
        self.bar.suspend(body)
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
        self.bar.reset();
    }
}

/// Time of a step, and what is left of the sampling. The first step also waits for weights, so it
/// counts only while it is alone.
fn pace(seconds: &[f64], left: usize) -> String {
    let later = if seconds.len() > 1 { &seconds[1..] } else { seconds };
    let recent = &later[later.len().saturating_sub(RECENT_STEPS)..];
    if recent.is_empty() {
        return String::new();
    }
    let mean = recent.iter().sum::<f64>() / recent.len() as f64;
    format!("{mean:.2} s/step, {} left", duration(mean * left as f64))
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
    fn pace_forgets_the_first_step() {
        assert_eq!(pace(&[], 3), "");
        assert_eq!(pace(&[9.0], 3), "9.00 s/step, 27 s left");
        assert_eq!(pace(&[9.0, 0.5, 1.5], 30), "1.00 s/step, 30 s left");
        let slowing = [&[1.0; 20][..], &[2.0; RECENT_STEPS]].concat();
        assert_eq!(pace(&slowing, 100), "2.00 s/step, 3 min 20 s left");
        assert_eq!(duration(7384.0), "2 h 03 min");
    }
}
