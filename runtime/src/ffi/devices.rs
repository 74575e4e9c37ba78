//! Devices for C.

use std::ffi::{CString, c_char};

use super::{Failure, KilnStatus, c_text, create, free, give, given, guard};
use crate::device::{self, DeviceFacts, DeviceType};

/// A list of devices, as of the time of the call.
pub struct KilnDevices(Vec<Listed>);

struct Listed {
    name: CString,
    platform: CString,
    driver: CString,
    facts: DeviceFacts,
}

/// Kind of a device.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KilnDeviceType {
    /// A graphics processor.
    Gpu = 0,
    /// The host's own processor.
    Cpu = 1,
    /// Anything else.
    Other = 2,
}

/// A device. The texts belong to the list and are valid until the list is freed.
#[repr(C)]
pub struct KilnDevice {
    /// Name of the device. A session takes this name, a part of it, or the index in the list.
    pub name: *const c_char,
    /// Name of the platform, which is the driver.
    pub platform: *const c_char,
    /// Version of the driver.
    pub driver: *const c_char,
    /// Kind of the device.
    pub device_type: KilnDeviceType,
    /// Number of compute units.
    pub compute_units: u32,
    /// Device memory.
    pub global_mem_bytes: u64,
    /// Largest single allocation.
    pub max_alloc_bytes: u64,
    /// Local memory of a work-group.
    pub local_mem_bytes: u64,
    /// Largest work-group.
    pub max_work_group_size: u64,
}

/// Lists the devices of all drivers.
///
/// The call opens all drivers. Each takes memory of the process that it never releases.
/// On success the caller owns `*out` and frees it with `kiln_devices_free`; else it is NULL.
/// Any thread. Fails with `KILN_STATUS_DEVICE`; the error names the libraries that were tried.
///
/// # Safety
///
/// `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_list(out: *mut *mut KilnDevices) -> KilnStatus {
    let list = || {
        let listed = device::list()?.into_iter().map(|facts| Listed {
            name: c_text(&facts.name),
            platform: c_text(&facts.platform),
            driver: c_text(&facts.driver),
            facts,
        });
        Ok(KilnDevices(listed.collect()))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { create(out, list) })
}

/// Number of devices in a list; 0 if it is NULL. Any thread.
///
/// # Safety
///
/// `devices` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_count(devices: *const KilnDevices) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { devices.as_ref() }.map_or(0, |devices| devices.0.len() as u32)
}

/// Describes the device with an index. Any thread. Fails with `KILN_STATUS_INPUT` if there is none.
///
/// # Safety
///
/// `devices` is a list that has not been freed; `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_get(
    devices: *const KilnDevices,
    index: u32,
    out: *mut KilnDevice,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let devices = unsafe { given(devices, "the list of devices")? };
        let Some(Listed { name, platform, driver, facts }) = devices.0.get(index as usize) else {
            let count = devices.0.len();
            return Err(Failure::input(format!("no device {index}; there are {count}")));
        };
        let device = KilnDevice {
            name: name.as_ptr(),
            platform: platform.as_ptr(),
            driver: driver.as_ptr(),
            device_type: match facts.device_type {
                DeviceType::Gpu => KilnDeviceType::Gpu,
                DeviceType::Cpu => KilnDeviceType::Cpu,
                DeviceType::Accelerator | DeviceType::Other => KilnDeviceType::Other,
            },
            compute_units: facts.compute_units,
            global_mem_bytes: facts.global_mem_bytes,
            max_alloc_bytes: facts.max_alloc_bytes,
            local_mem_bytes: facts.local_mem_bytes,
            max_work_group_size: facts.max_work_group_size,
        };
        // SAFETY: by this function's contract.
        unsafe { give(out, "the place for the answer", device) }
    })
}

/// Frees a list; NULL is allowed. No thread may use it, or its texts, during or after the call.
///
/// # Safety
///
/// `devices` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_free(devices: *mut KilnDevices) {
    // SAFETY: by this function's contract.
    unsafe { free(devices) }
}
