//! Random programs through the whole compiler.
//!
//! A case is a random diffusion model ([`model`]) that is compiled for a random device, precision
//! and budget ([`compile`]). It holds that
//!
//! - the graphs compute after all passes what they computed before, by the reference of the ops;
//! - every plan is inside its budget and passes the independent checker, and a budget that is too
//!   small is answered with one that suffices;
//! - the device computes what the reference makes of the graphs before any pass, the same in an
//!   arena of one allocation and of several.
//!
//! Bounds follow from the arithmetic ([`evaluate`]).
//!
//! `KILN_CASES=5000 cargo test --release -p kiln --test programs -- --nocapture` tries that many
//! cases (`make fuzz CASES=5000`). A failure names its seed: `KILN_SEED=0x... cargo test ...`
//! repeats the case alone, with `KILN_MINIMIZE=1` looks for a smaller one.

mod blocks;
mod builder;
mod case;
mod compile;
mod coverage;
mod device;
mod entropy;
mod evaluate;
mod model;
mod mutations;
mod picture;
mod values;
mod wiring;

use arbtest::arbtest;
use case::Case;
use coverage::Coverage;
use std::time::{Duration, Instant};

/// Cases of `make test`, the same every time so that their kernels are in the driver's cache.
const QUICK_CASES: u64 = 8;
/// How many of them run on the device: a driver takes about a second for each kernel that it never
/// saw.
const QUICK_EVERY: u64 = 8;
/// Bytes that a case is made from.
const CASE_BYTES: [u64; 4] = [200, 700, 1400, 2800];

/// A number from the environment, decimal or hexadecimal.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The seed of a numbered case: how many bytes, and what they are made from.
fn seed(index: u64) -> u64 {
    let size = CASE_BYTES[(index % 4) as usize];
    fastrand::Rng::with_seed(index).u64(..) << 32 | size
}

/// Holds the case of a seed; false if it failed, which is then printed.
fn holds(seed: u64, execute: bool, coverage: &mut Coverage) -> bool {
    let body = || arbtest(|u| Case::any(u, execute).hold(coverage)).seed(seed).run();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok()
}

/// Repeats one case, or looks for a smaller one that fails.
fn repeat(seed: u64, execute: bool) {
    let mut coverage = Coverage::default();
    let test = arbtest(|u| Case::any(u, execute).hold(&mut coverage)).seed(seed);
    match setting("KILN_MINIMIZE") {
        Some(seconds) => test.budget(Duration::from_secs(seconds)).minimize().run(),
        None => test.run(),
    }
    println!("{coverage}");
}

#[test]
fn random_programs_survive_the_compiler() {
    let every = setting("KILN_EXECUTE_EVERY").unwrap_or(QUICK_EVERY);
    if let Some(seed) = setting("KILN_SEED") {
        return repeat(seed, every == 1);
    }
    let (started, mut coverage) = (Instant::now(), Coverage::default());
    let first = setting("KILN_FIRST").unwrap_or(0);
    let count = setting("KILN_CASES").unwrap_or(QUICK_CASES);
    let limit = setting("KILN_SECONDS").map_or(Duration::MAX, Duration::from_secs);
    let (mut failures, mut done) = (vec![], 0);
    for index in (first..first + count).take_while(|_| started.elapsed() < limit) {
        done += 1;
        let execute = every > 0 && index % every == every - 1;
        if !holds(seed(index), execute, &mut coverage) {
            let how = if execute { "KILN_EXECUTE_EVERY=1 " } else { "" };
            failures.push(format!("{how}KILN_SEED={:#x}", seed(index)));
        }
        if done % 100 == 0 {
            println!("{done} cases, {} failures, {:.0?}", failures.len(), started.elapsed());
        }
    }
    println!("{done} cases from number {first} in {:.0?}\n{coverage}", started.elapsed());
    assert!(failures.is_empty(), "{} cases fail:\n{}", failures.len(), failures.join("\n"));
}

/// The case is one that runs in the test above.
#[test]
fn an_arena_of_several_allocations_computes_the_same() {
    let index = QUICK_EVERY - 1;
    arbtest(|u| Case::any(u, true).hold_in_parts()).seed(seed(index)).run();
}

/// Cases of which each mutation that is possible is tried; a third of them where plans are made.
const BROKEN_CASES: u64 = 24;

/// Most mutations are noticed. Some change nothing: a bias before a normalization of single
/// channels, two steps that do not depend on each other.
fn assert_noticed(coverage: &Coverage) {
    println!("{coverage}");
    let (noticed, missed) = (coverage.all("noticed"), coverage.all("missed"));
    assert!(noticed > BROKEN_CASES as usize, "{noticed} mutations were noticed");
    assert!(noticed >= 6 * missed, "{missed} mutations were missed, {noticed} noticed");
}

#[test]
fn what_a_wrong_pass_leaves_is_noticed() {
    let mut coverage = Coverage::default();
    for index in 0..BROKEN_CASES {
        arbtest(|u| Case::any(u, false).break_graphs(&mut coverage)).seed(seed(index)).run();
    }
    assert_noticed(&coverage);
}

#[test]
fn what_a_wrong_planner_leaves_is_noticed() {
    let mut coverage = Coverage::default();
    for index in 0..BROKEN_CASES / 3 {
        arbtest(|u| Case::any(u, false).break_plans(&mut coverage)).seed(seed(index)).run();
    }
    assert_noticed(&coverage);
}
