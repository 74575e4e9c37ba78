//! `kiln devices`: the OpenCL devices of this machine, and their profiles.

use anyhow::{Context, Result};
use kiln_bundle::plan::{AVX_VNNI, AVX512_VNNI, HALF_EXTENSION};
use kiln_compiler::device::{DeviceLimits, DeviceProfile};
use kiln_compiler::size::mib;
use kiln_runtime::device::{self, DeviceFacts, DeviceType};
use serde_json::json;
use std::io::{self, Write};

use super::print;

/// List the OpenCL devices and the profile that compile would use for each.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln devices
  kiln devices --json")]
pub struct Args {
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// Prints the list of devices.
pub fn run(args: Args) -> Result<()> {
    let devices = device::list()?;
    if args.json {
        let list: Vec<_> =
            devices.iter().map(|d| json!({ "device": d, "profile": profile(d) })).collect();
        return print::json(&list);
    }
    print::printed(|out| devices.iter().try_for_each(|device| print(device, out)))
}

fn print(d: &DeviceFacts, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} {} ({}, driver {})", d.index, d.name, d.platform, d.driver)?;
    writeln!(
        out,
        "  {} compute units, {} memory, {} a single allocation, {} local, work-groups to {}",
        d.compute_units,
        mib(d.global_mem_bytes),
        mib(d.max_alloc_bytes),
        mib(d.local_mem_bytes),
        d.max_work_group_size
    )?;
    let memory = if d.unified_memory { "shared with the host" } else { "its own" };
    writeln!(
        out,
        "  memory is {memory}; base alignment {} bytes; profile {}",
        d.base_align_bytes,
        profile(d)
    )
}

/// Name of the profile for a device.
pub fn profile(device: &DeviceFacts) -> &'static str {
    let gpu = matches!(device.device_type, DeviceType::Gpu);
    DeviceProfile::name_for(gpu, &device.name, device.native_vector_width_f32)
}

/// The profile for a device, adapted to the device's own limits, and its name.
pub fn adapted_profile(device: &DeviceFacts) -> Result<(String, DeviceProfile)> {
    let (name, mut profile) = DeviceProfile::load(profile(device))?;
    let has = |extension: &str| device.extensions.iter().any(|name| name == extension);
    let vnni_widths: &[u32] = match (has(AVX512_VNNI), has(AVX_VNNI)) {
        (true, true) => &[8, 16],
        (true, false) => &[16],
        (false, true) => &[8],
        (false, false) => &[],
    };
    profile.adapt(&DeviceLimits {
        base_align_bytes: device.base_align_bytes,
        max_alloc_bytes: device.max_alloc_bytes,
        local_mem_bytes: device.local_mem_bytes,
        max_work_group: device.max_work_group_size,
        compute_units: device.compute_units,
        half_arithmetic: has(HALF_EXTENSION),
        vnni_widths,
    });
    let told = || format!("profile {name} with what {} reports of itself", device.name);
    profile.check().with_context(told)?;
    Ok((name, profile))
}

/// The profile that `--device` names, and its name. `auto` means this machine's device.
pub fn named_profile(wanted: &str) -> Result<(String, DeviceProfile)> {
    match wanted {
        "auto" => adapted_profile(&device::select("auto")?),
        name => DeviceProfile::load(name).context("--device"),
    }
}
