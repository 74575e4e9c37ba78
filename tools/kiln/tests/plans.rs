//! The full-size plan of every profile and precision at 1 GiB, and the smallest budget that has
//! one, against a file: what a change does to memory and streaming shows in its commit. One plan in
//! `SAMPLE` is made; `make test-full` makes all.
//!
//! `KILN_WRITE_GOLDEN=1 cargo test --release -p kiln --test plans` writes the file anew.

mod harness;

use harness::{kiln_ok, root};
use kiln_compiler::device::DeviceProfile;
use kiln_testkit::sampled;

/// One of how many sections of the file is held by default.
const SAMPLE: usize = 4;

/// The lines of a profile and a precision.
fn section(profile: &str, precision: &str) -> String {
    let plan = |budgets: &str| {
        let fixed = ["compile", "--model", "sd21-base", "--device", profile];
        kiln_ok(&[&fixed[..], &["--precision", precision, "--budget-sweep", budgets]].concat())
    };
    // A budget that is too small is answered with the smallest that is not.
    let smallest = plan("1MiB..1MiB");
    let last = smallest.lines().last().unwrap_or_default();
    format!("{}{last}\n", plan("1GiB..1GiB"))
}

#[test]
fn full_size_plans_are_those_of_the_file() {
    let path = root().join("tools/kiln/tests/golden/sd21-base.plans.txt");
    let of_profile = |p: &'static str| ["fp32", "fp16", "int8"].map(|precision| (p, precision));
    let all: Vec<_> = DeviceProfile::names().flat_map(of_profile).collect();
    if std::env::var_os("KILN_WRITE_GOLDEN").is_some() {
        let sections: Vec<_> = all.iter().map(|(p, precision)| section(p, precision)).collect();
        std::fs::write(&path, sections.join("\n")).expect("the repository can be written");
    }
    let file = std::fs::read_to_string(&path).expect("it is in the repository");
    let expected: Vec<_> = file.split("\n\n").map(str::trim_end).zip(&all).collect();
    assert_eq!(file.split("\n\n").count(), all.len(), "sections of {}", path.display());
    for (expected, (profile, precision)) in sampled(&expected, SAMPLE) {
        let found = section(profile, precision);
        assert_eq!(found.trim_end(), *expected, "{profile}, {precision} in {}", path.display());
    }
}
