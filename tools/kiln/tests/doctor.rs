//! What `kiln doctor` says of this machine, and of machines with something missing or broken.
//!
//! Broken drivers are made from `doctor/driver.c` with the C compiler that linking needs anyway.

mod harness;

use harness::{arg, root, scratch};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs doctor with drivers from `vendors` and more environment.
fn doctor(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kiln"))
        .arg("doctor")
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .output()
        .expect("kiln starts")
}

/// Standard output of a doctor that finds no fit device: exit code 3, one line on stderr.
fn unfit(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let output = doctor(arguments, environment);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "one line: {stderr}");
    assert!(stderr.starts_with("error: no OpenCL device here is fit"), "{stderr}");
    String::from_utf8(output.stdout).expect("kiln prints UTF-8")
}

/// A folder with a driver that fails as the macro says, and its .icd file.
fn broken_driver(fault: &str) -> PathBuf {
    let folder = scratch("doctor").join(fault);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let library = folder.join("libfaulty.so");
    let source = root().join("tools/kiln/tests/doctor/driver.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", arg(&library), arg(&source)])
        .arg(format!("-D{fault}"))
        .status()
        .expect("a C compiler, which linking Rust programs needs too");
    assert!(status.success(), "driver.c compiles");
    name_driver(&folder, "faulty.icd", arg(&library));
    folder
}

fn name_driver(folder: &Path, file: &str, library: &str) {
    std::fs::write(folder.join(file), format!("{library}\n")).expect("it can be written");
}

fn empty_folder(name: &str) -> PathBuf {
    let folder = scratch("doctor").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}

#[test]
fn this_machine_is_fit() {
    let output = doctor(&["--json", "--device", "0"], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["fit"], true);
    let library = report["survey"]["library"].as_str().expect("a path");
    assert!(Path::new(library).exists(), "{library}");
    let device = &report["devices"][0];
    assert_eq!(device["stop"], Value::Null);
    assert_eq!(device["device"]["keeps_budget"], true);
    assert_eq!(device["families"], kiln_kernels::families().count());
    let profile = device["device"]["profile"].as_str().expect("a name");
    let profiles: Vec<&str> = kiln_compiler::device::DeviceProfile::names().collect();
    assert!(profiles.contains(&profile), "{profile}");
    let tests = device["tests"].as_array().expect("a list");
    assert_eq!(tests.len(), 2 * kiln_kernels::families().count());
    for test in tests {
        assert_eq!(test["fault"], Value::Null, "{test}");
        assert!(test["of_allowed"].as_f64().expect("a number") <= 1.0, "{test}");
    }
}

#[test]
fn an_unknown_device_is_said_to_be_missing() {
    let text = unfit(&["--device", "99"], &[]);
    assert!(text.contains("there is no device 99"), "{text}");
}

#[test]
fn without_a_library_it_says_what_to_install() {
    // A file that is no library stands before the real one on the search path.
    let folder = empty_folder("no_library");
    std::fs::write(folder.join("libOpenCL.so.1"), "no library").expect("it can be written");
    let environment = [("LD_LIBRARY_PATH", arg(&folder)), ("OPENCL_DYLIB_PATH", "/no/such.so")];
    let text = unfit(&[], &environment);
    for part in
        ["OpenCL library: none", "apt install ocl-icd-libopencl1", "pocl-opencl-icd", "/no/such.so"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn without_a_driver_it_says_what_to_install() {
    let folder = empty_folder("no_driver");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    assert!(text.contains("finds no driver") && text.contains(arg(&folder)), "{text}");
    assert!(text.contains("apt install pocl-opencl-icd"), "{text}");
    assert!(text.contains("unset OCL_ICD_VENDORS"), "{text}");
    let json = unfit(&["--json"], &[("OCL_ICD_VENDORS", arg(&folder))]);
    let report: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(report["fit"], false);
    assert_eq!(report["devices"], Value::Array(vec![]));
}

#[test]
fn a_driver_whose_library_is_gone_is_named() {
    let folder = empty_folder("gone");
    name_driver(&folder, "gone.icd", "libgone.so.7");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    assert!(text.contains("its library libgone.so.7 is not there"), "{text}");
}

#[test]
fn a_platform_without_devices_is_named() {
    let folder = broken_driver("NO_DEVICES");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    assert!(text.contains("platform Faulty has no device"), "{text}");
}

#[test]
fn a_driver_that_fails_is_named() {
    let folder = broken_driver("DEVICES_FAIL");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    assert!(text.contains("platform Faulty fails"), "{text}");
    assert!(text.contains("CL_OUT_OF_HOST_MEMORY"), "{text}");
}

#[test]
fn a_driver_that_crashes_when_it_is_loaded_is_named() {
    let folder = broken_driver("ABORT_ON_LOAD");
    name_driver(&folder, "gone.icd", "libgone.so.7");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    let file = folder.join("faulty.icd");
    assert!(text.contains(&format!("{} is no use", file.display())), "{text}");
    assert!(text.contains("SIGABRT"), "{text}");
}

#[test]
fn a_device_that_crashes_is_unfit_and_the_signal_is_named() {
    let folder = broken_driver("CRASH_ON_USE");
    let text = unfit(&[], &[("OCL_ICD_VENDORS", arg(&folder))]);
    assert!(text.contains("CRASHED") && text.contains("SIGSEGV"), "{text}");
    assert!(text.contains("opening the device"), "{text}");
    let families = kiln_kernels::families().count();
    assert!(text.contains(&format!("0 of {families} kernel families pass")), "{text}");
    assert!(text.contains("platform: Faulty"), "{text}");
}
