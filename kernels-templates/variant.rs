//! What a kernel variant says of itself, and the choice between variants.

use crate::{DeviceClass, Lowering, Problem, REGISTRY, Target, Tiling};
use anyhow::Result;

/// One way to compute an op.
pub struct Variant {
    /// Name, also that of its template.
    pub name: &'static str,
    /// Whether it computes a problem correctly, on a device that meets its needs.
    pub computes: fn(&Problem, &Target) -> bool,
    /// What it needs of a device.
    pub needs: Needs,
    /// Renders its launches; called through [`Variant::lower`].
    pub launches: fn(&Problem, &Target) -> Result<Lowering>,
    /// Share of the device's rates that it reaches, unless a profile says otherwise.
    pub share: f64,
    /// Rounding error beside that of sums in FP32, for values of at most the last argument that are
    /// multiplied or weighed.
    pub rounding: fn(&Problem, &Target, f32) -> Rounding,
    /// Tiles worth trying on a target, beside the target's own.
    pub tuning: fn(&Target) -> Vec<Tiling>,
    /// Does the whole op in one launch at the rate of the device's memory, so that nothing is gained by
    /// fusing the op into its reader.
    pub one_launch: bool,
    /// The obvious loop, one work-item an output element: what other variants are compared with.
    pub oracle: bool,
}

/// What a variant needs of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs {
    /// The class that it is written for; `None` for all.
    pub class: Option<DeviceClass>,
    /// Half arithmetic, `cl_khr_fp16` in runs of [`Target::half_run`].
    pub half_arithmetic: bool,
    /// Inline PTX with tensor cores.
    pub ptx_mma: bool,
    /// Least local memory.
    pub local_mem_bytes: u64,
    /// Least work-group.
    pub work_group: u32,
}

impl Needs {
    /// OpenCL C 1.2 and nothing else.
    pub const NOTHING: Self = Self {
        class: None,
        half_arithmetic: false,
        ptx_mma: false,
        local_mem_bytes: 0,
        work_group: 1,
    };

    /// A device of that class.
    pub const fn class(class: DeviceClass) -> Self {
        Self { class: Some(class), ..Self::NOTHING }
    }

    /// Whether a device has it all.
    pub fn met_by(&self, target: &Target) -> bool {
        self.class.is_none_or(|class| class == target.class)
            && (!self.half_arithmetic || target.half_run > 0 && target.half_run.is_multiple_of(4))
            && (!self.ptx_mma || target.ptx_mma)
            && self.local_mem_bytes <= target.local_mem_bytes
            && self.work_group <= target.max_work_group
    }
}

/// Bound of a variant's error, given that of the same sums in FP32: `scale * bound + abs`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rounding {
    /// Factor of the absolute bound of sums in FP32.
    pub scale: f32,
    /// What is added to it.
    pub abs: f32,
}

impl Rounding {
    /// That of sums in FP32.
    pub const FP32: Self = Self { scale: 1.0, abs: 0.0 };
}

impl Variant {
    /// A variant that sums in FP32 at the rate of the device, needs nothing and has nothing to tune.
    pub const fn new(
        name: &'static str,
        computes: fn(&Problem, &Target) -> bool,
        launches: fn(&Problem, &Target) -> Result<Lowering>,
    ) -> Self {
        Self {
            name,
            computes,
            needs: Needs::NOTHING,
            launches,
            share: 1.0,
            rounding: |_, _, _| Rounding::FP32,
            tuning: |_| vec![],
            one_launch: false,
            oracle: false,
        }
    }

    /// The oracle of a family.
    pub const fn naive(
        computes: fn(&Problem, &Target) -> bool,
        launches: fn(&Problem, &Target) -> Result<Lowering>,
    ) -> Self {
        Self { share: 0.02, oracle: true, ..Self::new("naive", computes, launches) }
    }

    /// Whether it can compute a problem on a target: correctness and limits, not speed.
    pub fn applies(&self, problem: &Problem, target: &Target) -> bool {
        self.needs.met_by(target) && (self.computes)(problem, target)
    }

    /// The launches for a problem to which it [applies](Self::applies).
    ///
    /// Errors: a template that names an undefined parameter; an argument that was never bound.
    pub fn lower(&self, problem: &Problem, target: &Target) -> Result<Lowering> {
        (self.launches)(problem, target)?.expect_bound()
    }
}

/// The variants of an op.
pub struct Family {
    /// [`kiln_ir::Op::name`].
    pub op: &'static str,
    /// Best first; the oracle last.
    pub variants: &'static [Variant],
}

impl Family {
    /// The variant that others are compared with.
    pub fn oracle(&self) -> Option<&'static Variant> {
        self.variants.iter().find(|variant| variant.oracle)
    }

    /// The variant of that name.
    pub fn variant(&self, name: &str) -> Option<&'static Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }
}

/// All families.
pub fn families() -> impl Iterator<Item = &'static Family> {
    REGISTRY.iter().copied().flatten()
}

/// The family of an op.
pub fn family(op: &str) -> Option<&'static Family> {
    families().find(|f| f.op == op)
}

/// The variants that can compute a problem, best first: those the target prefers by name, then
/// the family's own order.
pub fn candidates(problem: &Problem, target: &Target) -> Vec<&'static Variant> {
    let op = problem.op.name();
    let Some(family) = family(op) else {
        return vec![];
    };
    let mut list: Vec<_> = family.variants.iter().filter(|v| v.applies(problem, target)).collect();
    if let Some(preferred) = target.prefer.get(op) {
        let rank =
            |v: &Variant| preferred.iter().position(|p| p == v.name).unwrap_or(preferred.len());
        list.sort_by_key(|v| rank(v));
    }
    list
}
