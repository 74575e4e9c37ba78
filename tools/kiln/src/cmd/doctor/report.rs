//! What doctor finds, as `--json` prints it and as its processes tell each other.

use serde::{Deserialize, Serialize};

/// Everything.
#[derive(Serialize)]
pub struct Report {
    /// At least one device is fit.
    pub fit: bool,
    /// What is wrong, and what to do about it.
    pub problems: Vec<Finding>,
    /// What OpenCL offers.
    pub survey: Survey,
    /// The files that name drivers.
    pub icd_files: Vec<IcdFile>,
    /// One for each device that was tested.
    pub devices: Vec<DeviceReport>,
}

/// Something wrong.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What to do, one step each.
    pub advice: Vec<String>,
}

/// What the OpenCL library says.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Survey {
    /// The library could be loaded.
    pub loaded: bool,
    /// Its file, where the system tells.
    pub library: Option<String>,
    /// Why the search ended early: an error, or the end of the process that searched.
    pub error: Option<String>,
    /// The drivers.
    pub platforms: Vec<Platform>,
}

/// A driver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// Its name.
    pub name: String,
    /// Who makes it.
    pub vendor: String,
    /// OpenCL version.
    pub version: String,
    /// Why it does not list devices.
    pub error: Option<String>,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Device {
    /// As `--device` takes it.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Name of its platform.
    pub platform: String,
    /// Version of the driver.
    pub driver: String,
    /// OpenCL version.
    pub version: String,
    /// The profile that the planner would use.
    pub profile: String,
}

/// A file that names a driver's library.
#[derive(Clone, Debug, Serialize)]
pub struct IcdFile {
    /// The file.
    pub path: String,
    /// What it names.
    pub library: String,
    /// Where that library is; none if it was not found.
    pub found: Option<String>,
    /// What the library does alone, if it was asked: none if it offers a platform.
    pub fault: Option<String>,
}

/// The self-test of a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Which.
    pub device: Device,
    /// Every family passed.
    pub fit: bool,
    /// How the process that tested it ended, if not well.
    pub crash: Option<String>,
    /// From start to end.
    pub seconds: f64,
    /// What was tested, in order.
    pub tests: Vec<Outcome>,
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
    /// Why it failed.
    pub fault: Option<String>,
    /// Largest difference to the reference.
    pub worst_error: f32,
    /// That difference as a part of what is allowed; above 1 is a failure.
    pub of_allowed: f32,
    /// Seconds to compile and run.
    pub seconds: f64,
}

/// A line that the process under test prints.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// What is tested next.
    Begin(String),
    /// How it went.
    Outcome(Outcome),
    /// The answer of a survey.
    Survey(Survey),
    /// The end; whatever stops before it has crashed.
    End,
}

impl DeviceReport {
    /// How many families passed with every storage type, and how many were tested.
    pub fn passed(&self) -> (usize, usize) {
        let mut families: Vec<(&str, bool)> = vec![];
        for test in &self.tests {
            match families.last_mut() {
                Some((name, ok)) if *name == test.family => *ok &= test.fault.is_none(),
                _ => families.push((&test.family, test.fault.is_none())),
            }
        }
        (families.iter().filter(|(_, ok)| *ok).count(), families.len())
    }

    /// The test with that storage type that is closest to its limit.
    pub fn worst(&self, storage: &str) -> Option<&Outcome> {
        let tests = self.tests.iter().filter(|test| test.storage == storage);
        tests.max_by(|a, b| a.of_allowed.total_cmp(&b.of_allowed))
    }
}
