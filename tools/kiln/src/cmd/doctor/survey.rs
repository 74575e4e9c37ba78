//! A survey of the machine: the OpenCL library, the files that name drivers, platforms and devices.

use anyhow::Result;
use kiln_runtime::RuntimeError;
use kiln_runtime::device::{self, DeviceFacts, PlatformFacts};
use std::path::{Path, PathBuf};

use super::child;
use super::report::{Device, IcdFile, Line, Platform, Survey};

/// Default place in which loaders look for drivers.
const VENDORS: &str = "/etc/OpenCL/vendors";

/// Folders in which the loader looks for libraries without a path, in addition to
/// `LD_LIBRARY_PATH`.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/arm-linux-gnueabihf",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/lib64",
    "/lib",
    "/vendor/lib64",
];

/// Surveys OpenCL in this process.
pub fn here() -> Survey {
    let answer = device::platforms();
    let mut survey = Survey { loaded: true, library: library(), ..Survey::default() };
    match answer {
        Ok(platforms) => survey.platforms = platforms.into_iter().map(platform).collect(),
        Err(RuntimeError::NoLoader { .. }) => survey.loaded = false,
        Err(RuntimeError::NoPlatform) => {}
        Err(error) => survey.error = Some(error.to_string()),
    }
    survey
}

/// Surveys OpenCL in a separate process with additional environment variables.
pub fn elsewhere(environment: &[(&str, &str)]) -> Result<Survey> {
    let mut survey = None;
    let stop = child::run(&[], environment, &mut |line| {
        if let Line::Survey(found) = line {
            survey = Some(found);
        }
    })?;
    Ok(match (survey, stop) {
        (Some(survey), _) => survey,
        (None, stop) => {
            let error = stop.map_or("ended without an answer".into(), |stop| stop.what);
            Survey { loaded: true, error: Some(format!("the search {error}")), ..Survey::default() }
        }
    })
}

fn platform(facts: PlatformFacts) -> Platform {
    let (devices, error) = match facts.devices {
        Ok(devices) => (devices.iter().map(about).collect(), None),
        Err(error) => (vec![], Some(error.to_string())),
    };
    Platform { name: facts.name, vendor: facts.vendor, version: facts.version, error, devices }
}

fn about(facts: &DeviceFacts) -> Device {
    Device {
        index: facts.index,
        name: if facts.name.is_empty() { "(no name)".into() } else { facts.name.clone() },
        platform: facts.platform.clone(),
        driver: facts.driver.clone(),
        version: facts.version.clone(),
        profile: crate::cmd::devices::profile(facts).to_string(),
        keeps_budget: !facts.compiles_in_session,
    }
}

/// The OpenCL library that this process has loaded, if the system reports it.
fn library() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let named = std::env::var("OPENCL_DYLIB_PATH").unwrap_or_default();
    let named: Vec<PathBuf> =
        named.split(';').filter_map(|path| Path::new(path).canonicalize().ok()).collect();
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let is_opencl = |path: &&str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        name.starts_with("libOpenCL") || named.iter().any(|n| n == Path::new(path))
    };
    paths.find(is_opencl).map(str::to_string)
}

/// The folder, or single file, in which the loader looks for drivers.
pub fn vendors() -> PathBuf {
    let named = ["OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"].map(std::env::var_os);
    named.into_iter().flatten().next().map_or_else(|| VENDORS.into(), PathBuf::from)
}

/// The files that name drivers, sorted by name.
pub fn icd_files() -> Vec<IcdFile> {
    let vendors = vendors();
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(&vendors) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![vendors],
    };
    paths.retain(|path| path.extension().is_some_and(|e| e == "icd") && path.is_file());
    paths.sort();
    paths.iter().map(|path| icd_file(path)).collect()
}

fn icd_file(path: &Path) -> IcdFile {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let library = text.lines().next().unwrap_or_default().trim().to_string();
    let found = find_library(&library).map(|path| path.display().to_string());
    IcdFile { path: path.display().to_string(), library, found, fault: None }
}

fn find_library(library: &str) -> Option<PathBuf> {
    if library.is_empty() {
        return None;
    }
    if library.contains('/') {
        return Some(PathBuf::from(library)).filter(|path| path.exists());
    }
    let extra = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let extra: Vec<PathBuf> = std::env::split_paths(&extra).collect();
    let usual = LIBRARY_FOLDERS.iter().map(PathBuf::from);
    extra.into_iter().chain(usual).map(|folder| folder.join(library)).find(|path| path.exists())
}

/// Loads each driver alone, to find the one that fails.
pub fn ask_each(files: &mut [IcdFile]) -> Result<()> {
    for file in files {
        let alone = elsewhere(&[("OCL_ICD_VENDORS", &file.path)])?;
        file.fault = match alone.error {
            Some(error) => Some(error),
            None if alone.platforms.is_empty() => Some("it offers no platform".into()),
            None => None,
        };
    }
    Ok(())
}
