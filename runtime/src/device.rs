//! Finds devices and reports their properties. Allocates no device memory.
//!
//! Listing opens every driver that the loader knows. Each driver takes tens to hundreds of
//! megabytes of the process and never releases them. Under a hard budget, let the loader know only
//! one driver: `OCL_ICD_VENDORS=/etc/OpenCL/vendors/pocl.icd`.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use kiln_bundle::plan::{AVX_VNNI, AVX512_VNNI};
use kiln_bundle::plan::{Plan, Requirements};
use opencl3::device::{
    CL_DEVICE_TYPE_ACCELERATOR, CL_DEVICE_TYPE_ALL, CL_DEVICE_TYPE_CPU, CL_DEVICE_TYPE_GPU, Device,
};
use opencl3::error_codes::{
    CL_DEVICE_NOT_FOUND, CL_PLATFORM_NOT_FOUND_KHR, ClError, DLOPEN_RUNTIME_LOAD_FAILED,
};
use opencl3::platform::{Platform, get_platforms};
use serde::Serialize;

use crate::error::{At, RuntimeError};
use crate::os::library::{self, Attempt};
use crate::program::pocl;

/// Name of PoCL's platform.
const POCL: &str = "Portable Computing Language";

/// Kind of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceType {
    /// A graphics processor.
    Gpu,
    /// The host's own processor.
    Cpu,
    /// A separate processor that is not for graphics.
    Accelerator,
    /// Anything else.
    Other,
}

/// Properties of a device. A figure that the driver does not report is 0.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceFacts {
    /// Position in [`list`]'s answer.
    pub index: usize,
    /// Name of the platform, which is the driver.
    pub platform: String,
    /// Version of the platform.
    pub platform_version: String,
    /// Name of the device.
    pub name: String,
    /// Maker of the device.
    pub vendor: String,
    /// Version of the driver.
    pub driver: String,
    /// OpenCL version.
    pub version: String,
    /// Kind of the device.
    pub device_type: DeviceType,
    /// Compute units.
    pub compute_units: u32,
    /// Highest clock in MHz.
    pub clock_mhz: u32,
    /// Device memory.
    pub global_mem_bytes: u64,
    /// Largest single allocation.
    pub max_alloc_bytes: u64,
    /// Local memory of a work-group.
    pub local_mem_bytes: u64,
    /// Alignment of sub-buffers, in bytes. OpenCL reports it in bits.
    pub base_align_bytes: u64,
    /// Largest work-group.
    pub max_work_group_size: u64,
    /// Host and device share memory.
    pub unified_memory: bool,
    /// Elements of the widest native `float` vector.
    pub native_vector_width_f32: u32,
    /// OpenCL extensions, and the instructions of the processor that PoCL's compiler takes from
    /// kernels, by their names in a plan.
    pub extensions: Vec<String>,
    /// `CL_DEVICE_SVM_CAPABILITIES`, a bit field; 0 without shared virtual memory.
    pub svm_capabilities: u64,
    /// The driver compiles kernels when they are launched, not in `clBuildProgram`.
    #[serde(skip)]
    pub lazy_compiler: bool,
    /// The driver's program binaries hold no machine code. It compiles each kernel at its first
    /// launch, in the process of the session, with memory that no plan counts.
    #[serde(skip)]
    pub compiles_in_session: bool,
    /// The driver crashes when two threads use it at once.
    #[serde(skip)]
    pub single_threaded: bool,
    #[serde(skip)]
    pub(crate) device: Device,
}

impl DeviceFacts {
    fn query(index: usize, platform: &Platform, device: Device) -> DeviceFacts {
        let text = |answer: Result<String, ClError>| answer.unwrap_or_default().trim().to_owned();
        let device_type = match device.dev_type().unwrap_or_default() {
            kind if kind & CL_DEVICE_TYPE_GPU != 0 => DeviceType::Gpu,
            kind if kind & CL_DEVICE_TYPE_CPU != 0 => DeviceType::Cpu,
            kind if kind & CL_DEVICE_TYPE_ACCELERATOR != 0 => DeviceType::Accelerator,
            _ => DeviceType::Other,
        };
        let platform_name = text(platform.name());
        let extensions = text(device.extensions());
        let own = device_type == DeviceType::Cpu && platform_name == POCL;
        let instructions = if own { instructions() } else { vec![] };
        DeviceFacts {
            index,
            // OpenCL has no query for the quirks of a driver, so the platform's name decides.
            // PoCL compiles a kernel anew for each work-group size, when a launch first has it.
            lazy_compiler: platform_name == POCL,
            // Rusticl compiles its intermediate form (NIR) for the device at the first launch.
            compiles_in_session: platform_name == "rusticl",
            // Oclgrind crashes when one thread launches while another one copies.
            single_threaded: platform_name == "Oclgrind",
            platform: platform_name,
            platform_version: text(platform.version()),
            name: text(device.name()),
            vendor: text(device.vendor()),
            driver: text(device.driver_version()),
            version: text(device.version()),
            device_type,
            compute_units: device.max_compute_units().unwrap_or_default(),
            clock_mhz: device.max_clock_frequency().unwrap_or_default(),
            global_mem_bytes: device.global_mem_size().unwrap_or_default(),
            max_alloc_bytes: device.max_mem_alloc_size().unwrap_or_default(),
            local_mem_bytes: device.local_mem_size().unwrap_or_default(),
            base_align_bytes: u64::from(device.mem_base_addr_align().unwrap_or_default()) / 8,
            max_work_group_size: device.max_work_group_size().unwrap_or_default() as u64,
            unified_memory: device.host_unified_memory().unwrap_or_default(),
            native_vector_width_f32: device.native_vector_width_float().unwrap_or_default(),
            extensions: (extensions.split_whitespace().chain(instructions))
                .map(str::to_owned)
                .collect(),
            svm_capabilities: device.svm_capabilities().unwrap_or_default(),
            device,
        }
    }

    /// Refuses a plan that needs more than this device has. The error names the requirement.
    ///
    /// Errors: `Requirement`, `Extension`.
    pub fn meets(&self, plan: &Plan) -> Result<(), RuntimeError> {
        let refuse = |what, needed: String, found: String| {
            Err(RuntimeError::Requirement { device: self.name.clone(), what, needed, found })
        };
        let Requirements { max_alloc_bytes, local_mem_bytes, work_group_size, .. } =
            plan.requirements;
        for (what, needed, found) in [
            ("bytes in one allocation", max_alloc_bytes, self.max_alloc_bytes),
            ("bytes of local memory", local_mem_bytes, self.local_mem_bytes),
            ("work-items in a work-group", work_group_size, self.max_work_group_size),
        ] {
            if needed > found {
                return refuse(what, needed.to_string(), found.to_string());
            }
        }
        let (planned, own) = (plan.requirements.base_align_bytes, self.base_align_bytes.max(1));
        if planned == 0 || !planned.is_multiple_of(own) {
            return refuse("bytes of base alignment", planned.to_string(), own.to_string());
        }
        for extension in &plan.requirements.extensions {
            if !self.extensions.contains(extension) {
                let (device, extension) = (self.name.clone(), extension.clone());
                return Err(match extension.as_str() {
                    AVX512_VNNI | AVX_VNNI => {
                        RuntimeError::Instructions { device, instructions: extension }
                    }
                    _ => RuntimeError::Extension { device, extension },
                });
            }
        }
        // 0 if the driver does not report it.
        let (taken, memory) = (plan.memory.device_bytes(), self.global_mem_bytes);
        if taken > memory && memory > 0 {
            return refuse("bytes of memory", taken.to_string(), memory.to_string());
        }
        Ok(())
    }
}

/// The instructions of this machine's processor that a plan may need.
fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let has = [is_x86_feature_detected!("avx512vnni"), is_x86_feature_detected!("avxvnni")];
    #[cfg(not(target_arch = "x86_64"))]
    let has = [false; 2];
    has.into_iter()
        .zip([AVX512_VNNI, AVX_VNNI])
        .filter_map(|(has, name)| has.then_some(name))
        .collect()
}

/// Held while a driver starts or compiles. PoCL 3.1 does neither safely on two threads.
static DRIVER: Mutex<()> = Mutex::new(());

pub(crate) fn lock_driver() -> MutexGuard<'static, ()> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A platform (a driver) and its devices.
#[derive(Debug)]
pub struct PlatformFacts {
    /// Name of the platform.
    pub name: String,
    /// Maker of the platform.
    pub vendor: String,
    /// OpenCL version.
    pub version: String,
    /// The devices, or the reason why the platform lists none.
    pub devices: Result<Vec<DeviceFacts>, RuntimeError>,
}

/// All platforms with their devices, in the loader's order.
///
/// Errors: `NoLoader`, `NoPlatform`, `OpenCl`. A platform that fails has its own error in the list.
pub fn platforms() -> Result<Vec<PlatformFacts>, RuntimeError> {
    let _driver = lock_driver();
    let library = library::load().map_err(|tried| RuntimeError::NoLoader { tried })?;
    let platforms = match get_platforms() {
        Err(ClError(DLOPEN_RUNTIME_LOAD_FAILED)) => {
            let reason = "the bindings cannot open it".to_owned();
            return Err(RuntimeError::NoLoader { tried: vec![Attempt { library, reason }] });
        }
        Err(ClError(CL_PLATFORM_NOT_FOUND_KHR)) => return Err(RuntimeError::NoPlatform),
        answer => answer.at("clGetPlatformIDs", || "the search for devices")?,
    };
    if platforms.is_empty() {
        return Err(RuntimeError::NoPlatform);
    }
    let mut found = Vec::with_capacity(platforms.len());
    let mut index = 0;
    for platform in platforms {
        let name = platform.name().unwrap_or_default();
        let ids = match platform.get_devices(CL_DEVICE_TYPE_ALL) {
            Err(ClError(CL_DEVICE_NOT_FOUND)) => Ok(Vec::new()),
            answer => answer.at("clGetDeviceIDs", || name.clone()),
        };
        let ids = match ids {
            Ok(ids) if ids.is_empty() && name == POCL => pocl::check_folder().map(|()| ids),
            other => other,
        };
        let devices = ids.map(|ids| {
            let next = index..;
            index += ids.len();
            next.zip(ids).map(|(i, id)| DeviceFacts::query(i, &platform, Device::new(id))).collect()
        });
        let vendor = platform.vendor().unwrap_or_default();
        let version = platform.version().unwrap_or_default();
        found.push(PlatformFacts { name, vendor, version, devices });
    }
    Ok(found)
}

/// All devices of all drivers, in the loader's order. A driver that fails is skipped if another one
/// has a device.
///
/// Errors: those of [`platforms`]; that of a platform, or `NoDevices`, if no platform has a device.
pub fn list() -> Result<Vec<DeviceFacts>, RuntimeError> {
    let mut devices = Vec::new();
    let mut failure = None;
    let mut names = Vec::new();
    for platform in platforms()? {
        names.push(platform.name);
        match platform.devices {
            Ok(found) => devices.extend(found),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(error) if devices.is_empty() => Err(error),
        None if devices.is_empty() => Err(RuntimeError::NoDevices { platforms: names }),
        _ => Ok(devices),
    }
}

/// Selects a device by its index, or the first one whose name or platform contains the text,
/// ignoring case. `auto` selects the first GPU, else the first CPU, else the first device.
///
/// Errors: those of [`list`]; `NoDevice`.
pub fn select(wanted: &str) -> Result<DeviceFacts, RuntimeError> {
    let mut devices = list()?;
    let position = match (wanted, wanted.parse::<usize>()) {
        ("auto", _) => {
            let first = |wanted| devices.iter().position(|d| d.device_type == wanted);
            first(DeviceType::Gpu).or_else(|| first(DeviceType::Cpu)).or(Some(0))
        }
        (_, Ok(index)) => Some(index),
        (name, Err(_)) => {
            let name = name.to_lowercase();
            devices.iter().position(|device| {
                [&device.name, &device.platform].iter().any(|n| n.to_lowercase().contains(&name))
            })
        }
    };
    match position.filter(|&position| position < devices.len()) {
        Some(position) => Ok(devices.swap_remove(position)),
        None => Err(RuntimeError::NoDevice {
            asked: wanted.to_owned(),
            available: devices.iter().map(|d| format!("{} {}", d.index, d.name)).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pocl_is_found_by_every_name() {
        let auto = select("auto").unwrap();
        assert_eq!(select("0").unwrap().name, list().unwrap()[0].name);
        assert_eq!(select(&auto.name.to_uppercase()).unwrap().name, auto.name);
        assert!(auto.base_align_bytes >= 4 && auto.base_align_bytes <= 4096);
        assert!(auto.max_alloc_bytes > 1 << 20 && auto.compute_units > 0);
    }

    #[test]
    fn an_unknown_device_is_refused_with_those_there_are() {
        let message = select("no such thing").unwrap_err().to_string();
        assert!(message.contains("no such thing") && message.contains("0 "), "{message}");
        assert!(matches!(select("999"), Err(RuntimeError::NoDevice { .. })));
    }

    #[test]
    fn a_plan_that_needs_more_is_refused_by_name() {
        let device = select("auto").unwrap();
        let mut plan = kiln_bundle::testing::plan();
        assert!(device.meets(&plan).is_ok());
        plan.requirements.extensions = vec!["cl_kiln_unheard_of".into()];
        assert!(device.meets(&plan).unwrap_err().to_string().contains("cl_kiln_unheard_of"));
        plan.requirements.extensions = vec![AVX512_VNNI.into()];
        let mut lacking = device.clone();
        lacking.extensions.clear();
        let error = lacking.meets(&plan).unwrap_err();
        assert!(matches!(error, RuntimeError::Instructions { .. }), "{error}");
        plan.requirements.extensions.clear();
        plan.requirements.local_mem_bytes = 1 << 40;
        assert!(device.meets(&plan).unwrap_err().to_string().contains("local memory"));
        plan.requirements.local_mem_bytes = 0;
        plan.requirements.base_align_bytes = 1;
        assert!(device.meets(&plan).unwrap_err().to_string().contains("base alignment"));
    }
}
