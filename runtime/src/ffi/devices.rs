//! Devices for C.

use std::ffi::{CString, c_char};

use super::{Failure, KilnStatus, c_text, create, free, give, given, guard};
use crate::device::{self, DeviceFacts, DeviceType};

/// The devices that were there when they were listed.
pub struct KilnDevices(Vec<Listed>);

struct Listed {
    name: CString,
    platform: CString,
    driver: CString,
    facts: DeviceFacts,
}

/// What a device is made for.
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

/// A device. Its texts belong to the list and are valid until that is freed.
#[repr(C)]
pub struct KilnDevice {
    /// Name of the device. A session takes it, a part of it, or its index in the list.
    pub name: *const c_char,
    /// Name of the platform, which is the driver.
    pub platform: *const c_char,
    /// Version of the driver.
    pub driver: *const c_char,
    /// What it is made for.
    pub device_type: KilnDeviceType,
    /// Compute units.
    pub compute_units: u32,
    /// Memory.
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
/// This opens the drivers, and each costs the process memory that it never gives back.
/// On success `*out` is the caller's, to be freed with `kiln_devices_free`; else it is NULL.
/// Any thread. Fails with `KILN_STATUS_DEVICE`, and an error that says which libraries were tried.
///
/// # Safety
///
/// `out` may be written.
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

/// How many devices a list has; 0 if it is NULL. Any thread.
///
/// # Safety
///
/// `devices` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_count(devices: *const KilnDevices) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { devices.as_ref() }.map_or(0, |devices| devices.0.len() as u32)
}

/// Describes a device by its index. Any thread. Fails with `KILN_STATUS_INPUT` if there is none.
///
/// # Safety
///
/// `devices` is a list that has not been freed; `out` may be written.
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

/// Frees a list; NULL is allowed. No thread may use it, or a text from it, then or later.
///
/// # Safety
///
/// `devices` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_devices_free(devices: *mut KilnDevices) {
    // SAFETY: by this function's contract.
    unsafe { free(devices) }
}
