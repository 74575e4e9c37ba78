//! Which of all combinations a test runs.

use std::collections::BTreeSet;

use crate::values::every;

/// Combinations of a variant with a case and a target that a test runs: all if `KILN_EVERY` is 1,
/// otherwise enough for each variant to meet every case on some target, and every target on some
/// case. Drivers compile kernels anew for nearly every combination.
#[derive(Default)]
pub struct Pairs {
    cases: BTreeSet<(String, usize)>,
    targets: BTreeSet<(String, usize)>,
}

impl Pairs {
    /// Nothing met yet.
    pub const fn new() -> Self {
        Self { cases: BTreeSet::new(), targets: BTreeSet::new() }
    }

    /// Whether the test runs this combination, which then counts as met.
    pub fn adds(&mut self, variant: &str, case: usize, target: usize) -> bool {
        let case = self.cases.insert((variant.to_string(), case));
        let target = self.targets.insert((variant.to_string(), target));
        case || target || every(2) == 1
    }
}
