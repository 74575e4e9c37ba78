//! Device profiles: all facts about a device, one TOML file each.

mod check;
mod code;

use anyhow::{Context, Result, anyhow};
pub use check::WrongField;
pub use code::CodeTable;
use kiln_bundle::rationale::Rates as PlanRates;
use kiln_kernels::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The profiles that ship with Kiln. To add one: its file and its line here.
const PROFILES: &[(&str, &str)] = &[
    ("cpu-avx512", include_str!("../profiles/cpu-avx512.toml")),
    ("cpu-avx2", include_str!("../profiles/cpu-avx2.toml")),
    ("cpu-128", include_str!("../profiles/cpu-128.toml")),
    ("gpu", include_str!("../profiles/gpu.toml")),
    ("nvidia", include_str!("../profiles/nvidia.toml")),
    ("mali-g78", include_str!("../profiles/mali-g78.toml")),
    ("adreno", include_str!("../profiles/adreno.toml")),
];

/// A device profile.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// Facts that select kernels.
    pub target: Target,
    /// Memory facts, which shape the plan.
    pub memory: MemoryProfile,
    /// Sustained rates, which choose residency and predict time.
    pub rates: Rates,
    /// Published times for the device. They influence no decision.
    #[serde(default)]
    pub published: Vec<Published>,
    /// Fields that [`Self::adapt`] changed, each as `name = value`.
    #[serde(skip)]
    pub adapted: Vec<String>,
    /// The table that [`Rates::machine_code`] names.
    #[serde(skip)]
    pub code: CodeTable,
}

/// Figures that a device reports of itself.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// Alignment of sub-buffers, in bytes.
    pub base_align_bytes: u64,
    /// Largest single allocation in bytes; 0 if unknown.
    pub max_alloc_bytes: u64,
    /// Local memory of a work-group, in bytes; 0 if the device has none.
    pub local_mem_bytes: u64,
    /// Largest work-group, in work-items.
    pub max_work_group: u64,
    /// Number of compute units; 0 if unknown.
    pub compute_units: u32,
    /// Whether the device has `cl_khr_fp16`.
    pub half_arithmetic: bool,
    /// Vector widths for which the device meets [`Target::vnni`].
    pub vnni_widths: &'static [u32],
}

/// Published times of a model's networks on the device.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Name of the model.
    pub model: String,
    /// Source: authors and publication.
    pub source: String,
    /// Seconds of a pass, by name of the network.
    pub seconds: BTreeMap<String, f64>,
}

/// Memory facts of a device and its driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryProfile {
    /// Alignment of buffer offsets, in bytes.
    pub base_align_bytes: u64,
    /// Largest single allocation in bytes; 0 if unknown. A larger arena is several allocations.
    pub max_alloc_bytes: u64,
    /// Whether host and device share one memory: no staging, and device bytes count in the process.
    pub unified: bool,
    /// Memory of the process with the driver loaded, before Kiln allocates anything, in bytes.
    pub process_baseline_bytes: u64,
    /// Memory of the driver's compiler while compiled kernels are loaded from the runtime's cache,
    /// in bytes.
    pub compiler_bytes: u64,
    /// Host memory of one compiled kernel that is loaded from the runtime's cache, in bytes.
    pub kernel_bytes: u64,
    /// Largest run of weights that one launch reads, in bytes.
    pub max_block_bytes: u64,
    /// Number of slots for streamed weights: one in use, the others being filled.
    pub slot_count: u32,
}

/// Sustained rates of a device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// FP32 arithmetic in FLOP a second, two FLOP for each multiply-add.
    pub flops_per_s: f64,
    /// FP16 arithmetic of kernels with [`Target::half_run`], in FLOP a second; 0 to use the FP32
    /// rate.
    #[serde(default)]
    pub half_flops_per_s: f64,
    /// Bandwidth of device memory, in bytes a second.
    pub memory_bytes_per_s: f64,
    /// Rate of reading weights from storage, in bytes a second.
    pub io_bytes_per_s: f64,
    /// Fixed time of a launch, in nanoseconds.
    pub launch_ns: u64,
    /// Longest predicted time of a launch, in milliseconds. Longer launches are split. 0 for no
    /// limit.
    #[serde(default)]
    pub max_dispatch_ms: u64,
    /// Fraction of the rates that a kernel variant reaches on this device, by the variant's name.
    /// Default: [`Variant::share`](kiln_kernels::Variant::share).
    #[serde(default)]
    pub variant_share: BTreeMap<String, f64>,
    /// Name of a table of kernels' machine code for the device. Times of the kernels of its
    /// variants follow from the table, those of all others from the rates above.
    #[serde(default)]
    pub machine_code: Option<String>,
}

impl MemoryProfile {
    /// [`Self::max_alloc_bytes`]; `u64::MAX` if it is unknown.
    pub fn max_alloc_bytes(&self) -> u64 {
        if self.max_alloc_bytes == 0 { u64::MAX } else { self.max_alloc_bytes }
    }
}

impl Rates {
    /// [`Self::max_dispatch_ms`] in nanoseconds.
    pub fn max_dispatch_ns(&self) -> u64 {
        self.max_dispatch_ms.saturating_mul(1_000_000)
    }

    /// The rates in the form of the plan.
    pub fn in_plan(&self) -> PlanRates {
        PlanRates {
            flops_per_s: self.flops_per_s as u64,
            half_flops_per_s: match self.half_flops_per_s as u64 {
                0 => self.flops_per_s as u64,
                rate => rate,
            },
            memory_bytes_per_s: self.memory_bytes_per_s as u64,
            io_bytes_per_s: self.io_bytes_per_s as u64,
            launch_ns: self.launch_ns,
        }
    }
}

impl DeviceProfile {
    /// Loads the profile with this name, or from the TOML file at this path.
    ///
    /// Errors: neither a known name nor a readable file; an unknown or missing field; a
    /// [`WrongField`].
    pub fn load(name_or_path: &str) -> Result<(String, Self)> {
        let (name, text) = Self::text(name_or_path)?;
        let mut profile: Self = toml::from_str(&text).map_err(|error| {
            let (line, column) = position(&text, error.span().map_or(0, |span| span.start));
            anyhow!("device profile {name_or_path}:{line}:{column}: {}", one_line(error.message()))
        })?;
        profile.check().with_context(|| format!("device profile {name_or_path}"))?;
        if let Some(table) = &profile.rates.machine_code {
            profile.code = CodeTable::load(table)?;
        }
        Ok((name, profile))
    }

    /// The name and the TOML text of a profile.
    ///
    /// Errors: neither a known name nor a readable file.
    pub fn text(name_or_path: &str) -> Result<(String, String)> {
        if let Some((name, text)) = PROFILES.iter().find(|(n, _)| *n == name_or_path) {
            return Ok((name.to_string(), text.to_string()));
        }
        if !name_or_path.ends_with(".toml") {
            let known: Vec<_> = Self::names().collect();
            return Err(anyhow!(
                "no device profile '{name_or_path}': use one of {}, or the path of a .toml file",
                known.join(", ")
            ));
        }
        let text = std::fs::read_to_string(name_or_path).map_err(|error| {
            anyhow!("cannot read the device profile {name_or_path}: {error}; check the path")
        })?;
        let name = std::path::Path::new(name_or_path).file_stem().unwrap_or_default();
        Ok((name.to_string_lossy().into_owned(), text))
    }

    /// Fits the profile to a device that reports `limits`, so that the device accepts every plan
    /// made with the profile. [`Self::adapted`] records the changes.
    ///
    /// Work-groups and local memory shrink to the device's but never grow: a class of kernels may
    /// be faster with less. The alignment is a multiple of both. The largest allocation and the
    /// number of compute units are the device's.
    pub fn adapt(&mut self, limits: &DeviceLimits) {
        let before = self.figures();
        let DeviceProfile { target, memory, .. } = self;
        let align_bytes = limits.base_align_bytes.next_power_of_two();
        memory.base_align_bytes = memory.base_align_bytes.max(align_bytes);
        if limits.max_alloc_bytes > 0 {
            memory.max_alloc_bytes = limits.max_alloc_bytes;
        }
        target.local_mem_bytes = target.local_mem_bytes.min(limits.local_mem_bytes);
        let most = u32::try_from(limits.max_work_group).unwrap_or(u32::MAX);
        target.max_work_group = target.max_work_group.min(most.max(1));
        if limits.compute_units > 0 {
            target.compute_units = limits.compute_units;
        }
        if !limits.half_arithmetic {
            target.half_run = 0;
        }
        target.vnni = limits.vnni_widths.contains(&target.vector_width);
        let changed = before.iter().zip(self.figures()).filter(|(old, new)| *old != new);
        self.adapted = changed.map(|(_, (name, value))| format!("{name} = {value}")).collect();
    }

    /// The fields that [`Self::adapt`] may change.
    fn figures(&self) -> [(&'static str, u64); 7] {
        let DeviceProfile { target, memory, .. } = self;
        [
            ("base_align_bytes", memory.base_align_bytes),
            ("max_alloc_bytes", memory.max_alloc_bytes),
            ("local_mem_bytes", target.local_mem_bytes),
            ("max_work_group", target.max_work_group.into()),
            ("compute_units", target.compute_units.into()),
            ("half_run", target.half_run.into()),
            ("vnni", target.vnni.into()),
        ]
    }

    /// Names of the profiles that ship with Kiln.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().map(|(name, _)| *name)
    }

    /// Name of the default profile for an OpenCL device.
    ///
    /// `vector_width` is the device's native float vector width in elements.
    pub fn name_for(is_gpu: bool, device_name: &str, vector_width: u32) -> &'static str {
        match (is_gpu, vector_width) {
            (true, _) if device_name.contains("Mali") => "mali-g78",
            (true, _) if device_name.contains("Adreno") => "adreno",
            (true, _) if device_name.contains("NVIDIA") => "nvidia",
            (true, _) => "gpu",
            (false, 16..) => "cpu-avx512",
            (false, 8..) => "cpu-avx2",
            (false, _) => "cpu-128",
        }
    }
}

/// Line and column of a byte in a text, from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A message without its line breaks.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits above those of every profile, and none that is known of the allocation.
    const ROOMY: DeviceLimits = DeviceLimits {
        base_align_bytes: 4,
        max_alloc_bytes: 0,
        local_mem_bytes: 1 << 30,
        max_work_group: 1 << 20,
        compute_units: 0,
        half_arithmetic: true,
        vnni_widths: &[],
    };

    #[test]
    fn a_device_with_room_for_all_changes_nothing() {
        for name in DeviceProfile::names() {
            let (_, own) = DeviceProfile::load(name).unwrap();
            let mut adapted = own.clone();
            adapted.adapt(&ROOMY);
            assert_eq!(adapted.figures(), own.figures(), "{name}");
            assert!(adapted.adapted.is_empty(), "{name}: {:?}", adapted.adapted);
        }
    }

    #[test]
    fn limits_of_the_device_replace_those_of_the_profile() {
        let (_, mut profile) = DeviceProfile::load("mali-g78").unwrap();
        let limits = DeviceLimits {
            base_align_bytes: 512,
            max_alloc_bytes: 128 << 20,
            local_mem_bytes: 0,
            max_work_group: 64,
            compute_units: 3,
            half_arithmetic: false,
            vnni_widths: &[],
        };
        profile.adapt(&limits);
        let expected = [
            "base_align_bytes = 512",
            "max_alloc_bytes = 134217728",
            "local_mem_bytes = 0",
            "max_work_group = 64",
            "compute_units = 3",
            "half_run = 0",
        ];
        assert_eq!(profile.adapted, expected);
    }

    #[test]
    fn instructions_count_for_the_vectors_of_the_profile() {
        let adapted = |name: &str| {
            let (_, mut profile) = DeviceProfile::load(name).unwrap();
            profile.adapt(&DeviceLimits { vnni_widths: &[16], ..ROOMY });
            profile.adapted
        };
        assert_eq!(adapted("cpu-avx512"), ["vnni = 1"]);
        assert!(adapted("cpu-avx2").is_empty());
    }
}
