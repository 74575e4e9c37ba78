//! The full-size plan of every profile and precision at 1 GiB, and the smallest budget that has one,
//! against a file: what a change does to memory and streaming shows in its commit.
//!
//! `KILN_WRITE_GOLDEN=1 cargo test --release -p kiln --test plans` writes the file anew.

mod harness;

use harness::{kiln_ok, root};
use kiln_compiler::device::DeviceProfile;

fn plans() -> String {
    let plan = |profile: &str, precision: &str, budgets: &str| {
        kiln_ok(&[
            "compile",
            "--model",
            "sd21-base",
            "--device",
            profile,
            "--precision",
            precision,
            "--budget-sweep",
            budgets,
        ])
    };
    // A budget that is too small is answered with the smallest that is not.
    let both = |profile: &str, precision: &str| {
        let smallest = plan(profile, precision, "1MiB..1MiB");
        let last = smallest.lines().last().unwrap_or_default();
        format!("{}{last}\n", plan(profile, precision, "1GiB..1GiB"))
    };
    let of_profile = |p| ["fp32", "fp16", "int8"].map(|precision| both(p, precision)).join("\n");
    DeviceProfile::names().map(of_profile).collect::<Vec<_>>().join("\n")
}

#[test]
fn full_size_plans_are_those_of_the_file() {
    let path = root().join("tools/kiln/tests/golden/sd21-base.plans.txt");
    let found = plans();
    if std::env::var_os("KILN_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &found).expect("the repository can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("it is in the repository");
    for (line, (found, expected)) in (1..).zip(found.lines().zip(expected.lines())) {
        assert_eq!(found, expected, "line {line} of {}", path.display());
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "lines of {}", path.display());
}
