//! The full-size plans of every model, profile and precision at 1 GiB, and the smallest budget that
//! has one, against a file for each model: what a change does to memory and streaming shows in its
//! commit. A sample is made, most of it of sd21-base; `make test-full` makes all.
//!
//! `KILN_WRITE_GOLDEN=1 cargo test --release -p kiln --test plans` writes the files anew.

mod harness;

use harness::{kiln_ok, root};
use kiln_compiler::device::DeviceProfile;
use kiln_graphs::config;
use kiln_testkit::sampled;

/// One of how many sections of sd21-base's file is held by default.
const SAMPLE: usize = 7;
/// One of how many sections of all other files is held by default. With no factor of the 21 sections
/// of a file, so that it meets all profiles and precisions.
const OTHERS: usize = 95;

/// The lines of a model, a profile and a precision.
fn section(model: &str, profile: &str, precision: &str) -> String {
    let plan = |budgets: &str| {
        let fixed = ["compile", "--model", model, "--device", profile];
        kiln_ok(&[&fixed[..], &["--precision", precision, "--budget-sweep", budgets]].concat())
    };
    // A budget that is too small is answered with the smallest that is not.
    let smallest = plan("1MiB..1MiB");
    let last = smallest.lines().last().unwrap_or_default();
    format!("{}{last}\n", plan("1GiB..1GiB"))
}

/// Profile and precision of each section of a file.
fn kinds() -> Vec<(&'static str, &'static str)> {
    let of_profile = |p: &'static str| ["fp32", "fp16", "int8"].map(|precision| (p, precision));
    DeviceProfile::names().flat_map(of_profile).collect()
}

/// The sections of a model's file, with what each is of.
fn sections(model: &'static str) -> Vec<(&'static str, &'static str, &'static str, String)> {
    let path = root().join(format!("tools/kiln/tests/golden/plans/{model}.txt"));
    let kinds = kinds();
    if std::env::var_os("KILN_WRITE_GOLDEN").is_some() {
        let sections: Vec<_> = kinds.iter().map(|(p, s)| section(model, p, s)).collect();
        std::fs::write(&path, sections.join("\n")).expect("the repository can be written");
    }
    let file = std::fs::read_to_string(&path).expect("KILN_WRITE_GOLDEN=1 writes it");
    assert_eq!(file.split("\n\n").count(), kinds.len(), "sections of {}", path.display());
    let texts = file.split("\n\n").map(|text| text.trim_end().to_string());
    kinds.iter().zip(texts).map(|((p, s), text)| (model, *p, *s, text)).collect()
}

#[test]
fn full_size_plans_are_those_of_the_files() {
    let names = config::models().iter().map(|model| model.name.as_str());
    let (base, others): (Vec<_>, Vec<_>) = names.partition(|name| *name == "sd21-base");
    let base: Vec<_> = base.into_iter().flat_map(sections).collect();
    let others: Vec<_> = others.into_iter().flat_map(sections).collect();
    for (model, profile, precision, expected) in
        sampled(&base, SAMPLE).chain(sampled(&others, OTHERS))
    {
        let found = section(model, profile, precision);
        assert_eq!(found.trim_end(), *expected, "{model}, {profile}, {precision}");
    }
}
