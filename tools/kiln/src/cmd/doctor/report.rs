//! The report of doctor, as `--json` prints it and as its processes exchange it.

use serde::{Deserialize, Serialize};

use super::cases::STORAGES;

/// The whole report.
#[derive(Serialize)]
pub struct Report {
    /// Whether at least one device is fit.
    pub fit: bool,
    /// Faults, and advice for each.
    pub problems: Vec<Finding>,
    /// The answer of OpenCL.
    pub survey: Survey,
    /// The files that name drivers.
    pub icd_files: Vec<IcdFile>,
    /// Reports of the tested devices.
    pub devices: Vec<DeviceReport>,
}

/// A fault.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finding {
    /// Description of the fault.
    pub what: String,
    /// Advice, one step an entry.
    pub advice: Vec<String>,
}

/// The answer of the OpenCL library.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Survey {
    /// Whether the library could be loaded.
    pub loaded: bool,
    /// File of the library, if the system reports it.
    pub library: Option<String>,
    /// Reason why the survey ended early: an error, or the end of its process.
    pub error: Option<String>,
    /// The platforms; each is a driver.
    pub platforms: Vec<Platform>,
}

/// A driver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// Name of the driver.
    pub name: String,
    /// Vendor of the driver.
    pub vendor: String,
    /// OpenCL version.
    pub version: String,
    /// Error of listing its devices.
    pub error: Option<String>,
    /// Devices of the driver.
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// Index, as `--device` takes it.
    pub index: usize,
    /// Name of the device.
    pub name: String,
    /// Name of the platform.
    pub platform: String,
    /// Version of the driver.
    pub driver: String,
    /// OpenCL version.
    pub version: String,
    /// The profile that the planner would use.
    pub profile: String,
    /// Whether pictures stay inside a memory budget: the driver does not compile kernels in the
    /// process that runs them.
    pub keeps_budget: bool,
}

/// A file that names a driver's library.
#[derive(Clone, Debug, Serialize)]
pub struct IcdFile {
    /// Path of the file.
    pub path: String,
    /// The library that the file names.
    pub library: String,
    /// Path of the library; none if it was not found.
    pub found: Option<String>,
    /// Fault of the library loaded alone, if it was tested; none if it offers a platform.
    pub fault: Option<String>,
}

/// The self-test of a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// The device.
    pub device: Device,
    /// Whether every family passed.
    pub fit: bool,
    /// The premature end of the testing process; none if it tested everything.
    pub stop: Option<Stop>,
    /// Number of kernel families to test.
    pub families: usize,
    /// Duration of the test in seconds.
    pub seconds: f64,
    /// Results, in the order of testing.
    pub tests: Vec<Outcome>,
}

/// The premature end of a process.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Stop {
    /// Kind of the end.
    pub kind: StopKind,
    /// Description of the end and of the activity before it.
    pub what: String,
}

/// Kind of the premature end of a process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopKind {
    /// A signal ended the process.
    Crash,
    /// The process was silent for too long and was ended.
    Timeout,
    /// The process ended with an error.
    Error,
}

/// The test of one kernel family with one storage type.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The op.
    pub family: String,
    /// The variant that was tested.
    pub variant: String,
    /// How tensors are stored.
    pub storage: String,
    /// Reason of the failure; none if the test passed.
    pub fault: Option<String>,
    /// Largest difference from the reference.
    pub worst_error: f32,
    /// Largest difference over the allowed difference. Above 1 the test fails.
    pub of_allowed: f32,
    /// Seconds to compile and run.
    pub seconds: f64,
}

/// A line that the process under test prints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Name of the test that begins.
    Begin(String),
    /// Result of a test.
    Outcome(Outcome),
    /// Result of a survey.
    Survey(Survey),
    /// The end of the tests.
    End,
}

impl DeviceReport {
    /// Number of families that passed with every storage type.
    pub fn passed(&self) -> usize {
        let families = self.tests.chunk_by(|a, b| a.family == b.family);
        let passes = |tests: &&[Outcome]| {
            tests.len() == STORAGES.len() && tests.iter().all(|test| test.fault.is_none())
        };
        families.filter(passes).count()
    }

    /// The test with a storage type that is closest to its limit.
    pub fn worst(&self, storage: &str) -> Option<&Outcome> {
        let tests = self.tests.iter().filter(|test| test.storage == storage);
        tests.max_by(|a, b| a.of_allowed.total_cmp(&b.of_allowed))
    }
}
