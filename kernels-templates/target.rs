//! What kernel selection knows of a device.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Devices whose fast kernels have the same shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceClass {
    /// One work-item owns a register tile of wide vectors; no local memory, work-groups of one.
    Cpu,
    /// Work-groups share tiles in local memory.
    Gpu,
    /// Register tiles and 4-wide loads; local memory is ordinary memory.
    MobileGpu,
}

/// The part of a device profile that decides kernels.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Shape of the kernels.
    pub class: DeviceClass,
    /// Elements of the widest float vector worth using: 4, 8 or 16.
    pub vector_width: u32,
    /// Rows of a register tile of the contractions.
    pub tile_rows: u32,
    /// Columns of a register tile of the contractions; a multiple of `vector_width`.
    pub tile_columns: u32,
    /// Largest work-group.
    pub max_work_group: u32,
    /// Local memory of a work-group.
    pub local_mem_bytes: u64,
    /// Compute units, for choosing how finely to split reductions.
    pub compute_units: u32,
    /// Variants to try first, best first, by op.
    #[serde(default)]
    pub prefer: BTreeMap<String, Vec<String>>,
}

impl Target {
    /// A CPU with 512-bit vectors; what the kernel tests use beside [`Target::gpu`].
    pub fn cpu() -> Self {
        Self {
            class: DeviceClass::Cpu,
            vector_width: 16,
            tile_rows: 12,
            tile_columns: 32,
            max_work_group: 4096,
            local_mem_bytes: 1 << 20,
            compute_units: 2,
            prefer: BTreeMap::new(),
        }
    }

    /// A discrete GPU.
    pub fn gpu() -> Self {
        Self {
            class: DeviceClass::Gpu,
            vector_width: 4,
            tile_rows: 8,
            tile_columns: 8,
            max_work_group: 256,
            local_mem_bytes: 48 << 10,
            compute_units: 64,
            prefer: BTreeMap::new(),
        }
    }

    /// A mobile GPU.
    pub fn mobile() -> Self {
        Self {
            class: DeviceClass::MobileGpu,
            vector_width: 4,
            tile_rows: 4,
            tile_columns: 4,
            max_work_group: 256,
            local_mem_bytes: 32 << 10,
            compute_units: 8,
            prefer: BTreeMap::new(),
        }
    }
}
