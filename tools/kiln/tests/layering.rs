//! Who may import whom: the table of ARCHITECTURE.md, held against `cargo tree`.

use std::collections::BTreeSet;
use std::process::Command;

/// What `cargo tree` prints of a package's dependencies, without those for building and testing.
fn tree(package: &str, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "-e", "normal", "-f", "{p}", "-p", package])
        .args(args)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("names are ASCII")
}

/// Dependencies of a package down to a depth.
fn dependencies(package: &str, depth: u32) -> BTreeSet<String> {
    let text = tree(package, &["--prefix", "none", "--depth", &depth.to_string()]);
    let names = text.lines().filter_map(|l| l.split_whitespace().next().map(str::to_string));
    names.filter(|name| name != package).collect()
}

#[test]
fn our_crates_import_only_what_they_may() {
    let table: [(&str, &[&str]); 7] = [
        ("kiln-bundle", &[]),
        ("kiln-ir", &[]),
        ("kiln-graphs", &["kiln-ir"]),
        ("kiln-kernels", &["kiln-ir"]),
        ("kiln-compiler", &["kiln-ir", "kiln-kernels", "kiln-bundle"]),
        ("kiln-runtime", &["kiln-bundle"]),
        (
            "kiln",
            &[
                "kiln-ir",
                "kiln-graphs",
                "kiln-kernels",
                "kiln-compiler",
                "kiln-bundle",
                "kiln-runtime",
            ],
        ),
    ];
    for (package, allowed) in table {
        let ours = dependencies(package, 1).into_iter().filter(|n| n.starts_with("kiln"));
        for name in ours {
            assert!(allowed.contains(&name.as_str()), "{package} must not import {name}");
        }
    }
}

#[test]
fn the_runtime_carries_nothing_of_the_compiler() {
    let all = dependencies("kiln-runtime", 99);
    for name in ["petgraph", "tera", "safetensors", "npyz", "toml", "ruzstd", "kiln-ir"] {
        assert!(!all.contains(name), "kiln-runtime must not link {name}");
    }
}

/// What a device gets: the crates of others that `kiln-run` links, where it is built for one.
/// Procedural macros run in the compiler, and so does what they are made of.
#[test]
fn a_device_gets_twelve_crates_of_others() {
    let device = ["--no-default-features", "--features", "cli", "--prefix", "depth"];
    let text = tree("kiln-runtime", &[&device[..], &["--no-dedupe"]].concat());
    let mut linked = BTreeSet::new();
    let mut macro_depth = None;
    for line in text.lines() {
        let name = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let depth: u32 = line[..line.len() - name.len()].parse().expect("a depth");
        if macro_depth.is_some_and(|above| depth > above) {
            continue;
        }
        macro_depth = name.contains("(proc-macro)").then_some(depth);
        let name = name.split_whitespace().next().expect("a name");
        if macro_depth.is_none() && !name.starts_with("kiln") {
            linked.insert(name);
        }
    }
    let expected = [
        "bincode",
        "cl3",
        "dlopen2",
        "libc",
        "opencl-sys",
        "opencl3",
        "serde",
        "serde_core",
        "thiserror",
        "unty",
        "xxhash-rust",
        "yazi",
    ];
    assert_eq!(linked, BTreeSet::from(expected));
}

#[test]
fn opencl_is_known_to_the_runtime_alone() {
    for package in ["kiln-bundle", "kiln-ir", "kiln-graphs", "kiln-kernels", "kiln-compiler"] {
        let all = dependencies(package, 99);
        assert!(!all.contains("opencl3"), "{package} must not link opencl3");
    }
    for package in ["kiln-graphs", "kiln-ir", "kiln-bundle"] {
        let all = dependencies(package, 99);
        assert!(!all.contains("tera") && !all.contains("clap"), "{package} is too heavy");
    }
}
