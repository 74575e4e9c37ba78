//! Who may import whom, and what a device's program is built from: ARCHITECTURE.md's rules, held
//! against `cargo tree`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The crates that `cargo tree` lists for a package, the package itself left out.
fn tree(package: &str, args: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "-f", "{p}", "-p", package])
        .args(args)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names are ASCII");
    let names = text.lines().filter_map(|l| l.split_whitespace().next().map(str::to_string));
    names.filter(|name| name != package).collect()
}

/// Dependencies of a package down to a depth, without those for building and testing.
fn dependencies(package: &str, depth: u32) -> BTreeSet<String> {
    tree(package, &["-e", "normal", "--depth", &depth.to_string()])
}

#[test]
fn our_crates_import_only_what_they_may() {
    let table: [(&str, &[&str]); 10] = [
        ("kiln-bundle", &[]),
        ("kiln-ir", &[]),
        ("kiln-graphs", &["kiln-ir"]),
        ("kiln-kernels", &["kiln-ir"]),
        ("kiln-compiler", &["kiln-ir", "kiln-kernels", "kiln-bundle"]),
        ("kiln-runtime", &["kiln-bundle"]),
        ("kiln-fuzz", &["kiln-graphs", "kiln-compiler", "kiln-bundle", "kiln-runtime"]),
        ("kiln-serve", &["kiln-bundle", "kiln-runtime"]),
        ("kiln-testkit", &["kiln-ir", "kiln-kernels", "kiln-runtime"]),
        (
            "kiln",
            &[
                "kiln-ir",
                "kiln-graphs",
                "kiln-kernels",
                "kiln-compiler",
                "kiln-bundle",
                "kiln-runtime",
                "kiln-serve",
                "kiln-testkit",
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
    for name in ["petgraph", "tera", "safetensors", "npyz", "toml", "ruzstd", "kiln-ir", "tokio"] {
        assert!(!all.contains(name), "kiln-runtime must not link {name}");
    }
}

/// A cross-compiler for Rust alone is enough to build `kiln-run` for a device.
#[test]
fn kiln_run_needs_no_c_compiler() {
    let device = ["-e", "normal,build", "--no-default-features", "--features", "cli"];
    let all = tree("kiln-runtime", &device);
    for name in ["cc", "cmake", "bindgen", "autotools", "nasm-rs", "pkg-config", "vcpkg"] {
        assert!(!all.contains(name), "kiln-run is built with {name}");
    }
}

/// The modules of the runtime that may be unsafe. `kiln-testkit` may, to launch kernels; every
/// other library forbids it.
#[test]
fn unsafe_is_confined() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut allowed = BTreeSet::new();
    let mut folders = vec![root.join("runtime/src")];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("the runtime's sources are there") {
            let path = entry.expect("the folder is listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read_to_string(&path).unwrap().contains("allow(unsafe_code)") {
                let name = path.strip_prefix(root.join("runtime/src")).unwrap();
                allowed.insert(name.to_str().unwrap().to_owned());
            }
        }
    }
    let opencl =
        ["executor.rs", "launch.rs", "memory.rs", "probe.rs", "program.rs", "recording.rs"];
    let modules = opencl.into_iter().chain(["ffi/mod.rs", "os/mod.rs", "program/warm.rs"]);
    assert_eq!(allowed, modules.map(str::to_owned).collect());
    for library in [
        "compiler/src",
        "graphs/ir/src",
        "graphs/src",
        "kernels-templates",
        "runtime/bundle/src",
        "tools/serve/src",
        "tools/synth/src",
    ] {
        let text = fs::read_to_string(root.join(library).join("lib.rs")).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{library} may be unsafe");
    }
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
