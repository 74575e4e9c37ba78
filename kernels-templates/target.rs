//! Facts about a device that select kernels.

use crate::Problem;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Device classes, by the structure of their fast kernels.
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

/// The part of a device profile that selects kernels.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Device class.
    pub class: DeviceClass,
    /// Elements of the widest float vector worth using: 4, 8 or 16.
    pub vector_width: u32,
    /// Rows of a register tile of the contractions.
    pub tile_rows: u32,
    /// Columns of a register tile of the contractions; a multiple of `vector_width`.
    pub tile_columns: u32,
    /// Split-K: number of parts of the reduction axis that contractions compute side by side, if
    /// they support it. 0 lets the kernel decide.
    #[serde(default)]
    pub sum_parts: u32,
    /// Largest work-group, in work-items.
    pub max_work_group: u32,
    /// Local memory of a work-group, in bytes.
    pub local_mem_bytes: u64,
    /// Number of compute units.
    pub compute_units: u32,
    /// Whether storing values between ops in FP16 makes the device faster, not only its memory
    /// smaller.
    #[serde(default)]
    pub half_activations: bool,
    /// Number of products of FP16 values that are summed in FP16 before FP32 takes over: a multiple
    /// of 4, see [`mobile`](crate::contraction::mobile). Such kernels need the extension
    /// `cl_khr_fp16`. 0: all arithmetic is in FP32.
    #[serde(default)]
    pub half_run: u32,
    /// Whether `fma` is replaced by `mad`, which rounds twice. For devices that have no fused
    /// multiply-add and compute `fma` in software.
    #[serde(default)]
    pub mad: bool,
    /// Whether the driver accepts the inline PTX of NVIDIA GPUs with tensor cores (compute
    /// capability 8.0 and later).
    #[serde(default)]
    pub ptx_mma: bool,
    /// Whether the processor sums products of bytes by one instruction, `vpdpbusd`, and the driver
    /// is PoCL, which takes it: AVX512_VNNI for vectors of 16, AVX_VNNI for vectors of 8.
    #[serde(default)]
    pub vnni: bool,
    /// Columns of the panels in which weights are packed already, for another number of rows. Kernels
    /// with tiles of these columns take one of them. No field of profiles.
    #[serde(skip)]
    pub packed_columns: Option<usize>,
    /// Variants to try first for each op, best first.
    #[serde(default)]
    pub prefer: BTreeMap<String, Vec<String>>,
    /// Measured choices for single problems. The last entry for a problem counts.
    #[serde(default)]
    pub tuning: Vec<Tuning>,
}

/// The parameters of a tiling that a target sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tiling {
    /// [`Target::tile_rows`].
    pub rows: u32,
    /// [`Target::tile_columns`].
    pub columns: u32,
    /// [`Target::sum_parts`].
    pub sum_parts: u32,
}

/// The fastest way to compute one problem on one device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// [`kiln_ir::Op::name`].
    pub op: String,
    /// The types and attributes, as [`Problem`] prints them.
    pub problem: String,
    /// The variant to try first.
    pub variant: String,
    /// [`Target::tile_rows`] for this problem.
    pub tile_rows: u32,
    /// [`Target::tile_columns`] for this problem.
    pub tile_columns: u32,
    /// [`Target::sum_parts`] for this problem.
    #[serde(default)]
    pub sum_parts: u32,
}

impl Target {
    /// This target with its tuning for one problem applied.
    pub fn tuned(&self, problem: &Problem) -> Cow<'_, Target> {
        if self.tuning.is_empty() {
            return Cow::Borrowed(self);
        }
        let (op, text) = (problem.op.name(), problem.to_string());
        let found = self.tuning.iter().rev().find(|t| t.op == op && t.problem == text);
        found.map_or(Cow::Borrowed(self), |tuning| Cow::Owned(self.with(tuning)))
    }

    /// This target with `tuning` applied to all problems of its op.
    pub fn with(&self, tuning: &Tuning) -> Target {
        let Tuning { tile_rows: rows, tile_columns: columns, sum_parts, .. } = *tuning;
        let mut target = self.with_tiling(Tiling { rows, columns, sum_parts });
        target.prefer.insert(tuning.op.clone(), vec![tuning.variant.clone()]);
        target
    }

    /// This target's own tiling.
    pub fn tiling(&self) -> Tiling {
        let (rows, columns) = (self.tile_rows, self.tile_columns);
        Tiling { rows, columns, sum_parts: self.sum_parts }
    }

    /// This target with another tiling, for all problems.
    pub fn with_tiling(&self, tiling: Tiling) -> Target {
        Target {
            tile_rows: tiling.rows,
            tile_columns: tiling.columns,
            sum_parts: tiling.sum_parts,
            tuning: vec![],
            ..self.clone()
        }
    }

    /// A CPU with 512-bit vectors, for tests. The other targets differ from it in the fields that
    /// they name. A new field has its test value here.
    pub fn cpu() -> Self {
        Self {
            class: DeviceClass::Cpu,
            vector_width: 16,
            tile_rows: 12,
            tile_columns: 32,
            sum_parts: 0,
            max_work_group: 4096,
            local_mem_bytes: 1 << 20,
            compute_units: 2,
            half_activations: false,
            half_run: 0,
            mad: false,
            ptx_mma: false,
            vnni: false,
            packed_columns: None,
            prefer: BTreeMap::new(),
            tuning: vec![],
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
            ..Self::cpu()
        }
    }

    /// A discrete GPU of NVIDIA.
    pub fn nvidia() -> Self {
        Self { ptx_mma: true, compute_units: 132, max_work_group: 1024, ..Self::gpu() }
    }

    /// A mobile GPU.
    pub fn mobile() -> Self {
        Self {
            class: DeviceClass::MobileGpu,
            tile_rows: 4,
            tile_columns: 4,
            local_mem_bytes: 32 << 10,
            compute_units: 8,
            ..Self::gpu()
        }
    }

    /// A mobile GPU with half arithmetic.
    pub fn mobile_half() -> Self {
        Self { half_run: 16, ..Self::mobile() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Operand, candidates};
    use kiln_ir::TensorType;
    use kiln_ir::ops::{epilogue::Epilogue, matmul::Matmul};

    #[test]
    fn tuning_changes_its_own_problem_and_no_other() {
        let op = Matmul { sources: 1, epilogue: Epilogue::default() }.into();
        let operand =
            |rows, constant| Operand { constant, ..Operand::new(TensorType::f32(&[rows, 64])) };
        let (inputs, output) =
            ([operand(48, false), operand(64, true)], TensorType::f32(&[48, 64]));
        let problem = |inputs| Problem {
            op: &op,
            inputs,
            output: &output,
            max_weight_bytes: 1 << 20,
            max_scratch_bytes: 0,
        };
        let entry = |variant: &str, tile_rows| Tuning {
            op: "matmul".into(),
            problem: problem(&inputs).to_string(),
            variant: variant.into(),
            tile_rows,
            tile_columns: 16,
            sum_parts: 0,
        };
        let plain = Target::cpu();
        let target = Target { tuning: vec![entry("naive", 3), entry("tiled", 4)], ..plain.clone() };

        let tuned = target.tuned(&problem(&inputs));
        assert_eq!((tuned.tile_rows, tuned.tile_columns), (4, 16));
        assert_eq!(candidates(&problem(&inputs), &tuned)[0].name, "tiled");
        assert_eq!(candidates(&problem(&inputs), &plain)[0].name, "tiled_cpu");

        let other = [operand(47, false), operand(64, true)];
        assert_eq!(*target.tuned(&problem(&other)), target);
    }
}
