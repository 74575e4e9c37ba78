//! Device profiles: everything the compiler knows of a device, one TOML file each.

use anyhow::{Context, Result, anyhow};
use kiln_bundle::rationale::Rates as PlanRates;
use kiln_kernels::Target;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The profiles that ship. To add one: its file and its line here.
const PROFILES: &[(&str, &str)] = &[
    ("cpu-avx512", include_str!("../profiles/cpu-avx512.toml")),
    ("cpu-avx2", include_str!("../profiles/cpu-avx2.toml")),
    ("cpu-128", include_str!("../profiles/cpu-128.toml")),
    ("gpu", include_str!("../profiles/gpu.toml")),
    ("nvidia", include_str!("../profiles/nvidia.toml")),
    ("mali-g78", include_str!("../profiles/mali-g78.toml")),
];

/// A device as the planner sees it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceProfile {
    /// Facts that decide which kernels are taken.
    pub target: Target,
    /// Facts that decide the plan.
    pub memory: MemoryProfile,
    /// Sustained rates, which decide residency and predict time.
    pub rates: Rates,
    /// Times that others published for the device; nothing is decided by them.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// Times of a model's networks on the device, from a publication.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Name of the model.
    pub model: String,
    /// Who measured what.
    pub source: String,
    /// Seconds of a pass, by network.
    pub seconds: BTreeMap<String, f64>,
}

/// Memory facts of a device and its driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryProfile {
    /// Offsets of buffers are multiples of this.
    pub base_align_bytes: u64,
    /// Largest single allocation; 0 if unknown. The arena is one allocation, so that a plan keeps
    /// no more weights resident than fit into it.
    pub max_alloc_bytes: u64,
    /// Host and device share one memory: no staging, and device bytes count in the process.
    pub unified: bool,
    /// Memory of the process with the driver loaded, before anything of Kiln is.
    pub process_baseline_bytes: u64,
    /// Memory of the driver's compiler while compiled kernels are loaded from the runtime's cache.
    pub compiler_bytes: u64,
    /// Host memory of one compiled kernel, loaded from the runtime's cache.
    pub kernel_bytes: u64,
    /// Largest run of weights that one launch reads.
    pub max_block_bytes: u64,
    /// Slots for streamed weights: one in use, the others being filled.
    pub slot_count: u32,
}

/// Sustained rates of a device.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// FP32 arithmetic, two for each multiply-add.
    pub flops_per_s: f64,
    /// FP16 arithmetic of kernels with [`Target::half_run`]; 0 for that of FP32.
    #[serde(default)]
    pub half_flops_per_s: f64,
    /// Device memory.
    pub memory_bytes_per_s: f64,
    /// Reading weights from storage.
    pub io_bytes_per_s: f64,
    /// Fixed time of a launch, in nanoseconds.
    pub launch_ns: u64,
    /// Longest predicted time of a launch, in milliseconds; longer launches are split. 0 for no
    /// limit.
    #[serde(default)]
    pub max_dispatch_ms: u64,
    /// Share of these rates that a kernel variant reaches on this device, by its name; that of
    /// [`Variant::share`](kiln_kernels::Variant::share) where it is not named.
    #[serde(default)]
    pub variant_share: BTreeMap<String, f64>,
}

impl MemoryProfile {
    /// [`Self::max_alloc_bytes`], no limit where it is unknown.
    pub fn max_alloc_bytes(&self) -> u64 {
        if self.max_alloc_bytes == 0 { u64::MAX } else { self.max_alloc_bytes }
    }
}

impl Rates {
    /// [`Self::max_dispatch_ms`] in nanoseconds.
    pub fn max_dispatch_ns(&self) -> u64 {
        self.max_dispatch_ms.saturating_mul(1_000_000)
    }

    /// The rates as the plan records them.
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
    /// The profile of that name, or the one in the TOML file at that path.
    ///
    /// Errors: neither a known name nor a readable file; a field that is unknown or missing.
    pub fn load(name_or_path: &str) -> Result<(String, Self)> {
        let (name, text) = Self::text(name_or_path)?;
        let profile =
            toml::from_str(&text).with_context(|| format!("device profile {name_or_path}"))?;
        Ok((name, profile))
    }

    /// Its name and its TOML, unread.
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
        let text = std::fs::read_to_string(name_or_path)
            .with_context(|| format!("reading device profile {name_or_path}"))?;
        let name = std::path::Path::new(name_or_path).file_stem().unwrap_or_default();
        Ok((name.to_string_lossy().into_owned(), text))
    }

    /// Names of the profiles that ship.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.iter().map(|(name, _)| *name)
    }

    /// Name of the profile for an OpenCL device of that kind.
    ///
    /// `vector_width` is the device's native float vector width in elements.
    pub fn name_for(is_gpu: bool, device_name: &str, vector_width: u32) -> &'static str {
        match (is_gpu, vector_width) {
            (true, _) if device_name.contains("Mali") => "mali-g78",
            (true, _) if device_name.contains("NVIDIA") => "nvidia",
            (true, _) => "gpu",
            (false, 16..) => "cpu-avx512",
            (false, 8..) => "cpu-avx2",
            (false, _) => "cpu-128",
        }
    }
}
