//! Kernel variants and the choice between them.

use crate::{DeviceClass, Lowering, Problem, REGISTRY, Target, Tiling};
use anyhow::Result;

/// One way to compute an op.
pub struct Variant {
    /// Name of the variant and of its template.
    pub name: &'static str,
    /// Whether the variant computes a problem correctly, on a device that meets its needs.
    pub computes: fn(&Problem, &Target) -> bool,
    /// Needs of the variant.
    pub needs: Needs,
    /// Renders the launches. Call it through [`Variant::lower`].
    pub launches: fn(&Problem, &Target) -> Result<Lowering>,
    /// Default fraction of the device's rates that the variant reaches. A profile may override it.
    pub share: f64,
    /// Default factor of the device's rate of FP32 arithmetic that the variant reaches, for
    /// arithmetic on integers. The rate of memory stays.
    pub arithmetic: f64,
    /// Rounding error in addition to that of sums in FP32. The last argument bounds the values that
    /// are multiplied or weighed.
    pub rounding: fn(&Problem, &Target, f32) -> Rounding,
    /// Tilings worth trying on a target, in addition to the target's own.
    pub tuning: fn(&Target) -> Vec<Tiling>,
    /// Whether the variant does the whole op in one launch at the rate of the device's memory.
    /// Fusing the op into its reader then gains nothing.
    pub one_launch: bool,
    /// Whether this is the oracle: the obvious loop, one work-item an output element, with which
    /// other variants are compared.
    pub oracle: bool,
}

/// Requirements of a variant on a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Needs {
    /// The device class for which the variant is written; `None` for all.
    pub class: Option<DeviceClass>,
    /// Whether it needs half arithmetic: `cl_khr_fp16`, in runs of [`Target::half_run`].
    pub half_arithmetic: bool,
    /// Whether it needs inline PTX with tensor cores.
    pub ptx_mma: bool,
    /// Whether it needs [`Target::vnni`].
    pub vnni: bool,
    /// Least local memory of a work-group, in bytes.
    pub local_mem_bytes: u64,
    /// Least size of a work-group, in work-items.
    pub work_group: u32,
}

impl Needs {
    /// OpenCL C 1.2 only.
    pub const NOTHING: Self = Self {
        class: None,
        half_arithmetic: false,
        ptx_mma: false,
        vnni: false,
        local_mem_bytes: 0,
        work_group: 1,
    };

    /// An NVIDIA GPU with tensor cores. All of them have at least these limits.
    pub const TENSOR_CORES: Self = Self {
        ptx_mma: true,
        local_mem_bytes: 48 << 10,
        work_group: 1024,
        ..Self::class(DeviceClass::Gpu)
    };

    /// A device of a class.
    pub const fn class(class: DeviceClass) -> Self {
        Self { class: Some(class), ..Self::NOTHING }
    }

    /// Whether a device meets all needs.
    pub fn met_by(&self, target: &Target) -> bool {
        self.class.is_none_or(|class| class == target.class)
            && (!self.half_arithmetic || target.half_run > 0 && target.half_run.is_multiple_of(4))
            && (!self.ptx_mma || target.ptx_mma)
            && (!self.vnni || target.vnni)
            && self.local_mem_bytes <= target.local_mem_bytes
            && self.work_group <= target.max_work_group
    }
}

/// Bound of a variant's error, from the bound of the same sums in FP32: `scale * bound + abs`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rounding {
    /// Factor of the absolute bound of sums in FP32.
    pub scale: f32,
    /// Addend of the bound.
    pub abs: f32,
}

impl Rounding {
    /// The bound of sums in FP32.
    pub const FP32: Self = Self { scale: 1.0, abs: 0.0 };
}

impl Variant {
    /// A variant that sums in FP32 at the device's full rates, without needs or tuning.
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
            arithmetic: 1.0,
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

    /// Whether the variant can compute a problem on a target: correctness and limits, not speed.
    pub fn applies(&self, problem: &Problem, target: &Target) -> bool {
        self.needs.met_by(target) && (self.computes)(problem, target)
    }

    /// The launches for a problem to which it [applies](Self::applies).
    ///
    /// Errors: a template names an undefined parameter; an argument is not bound.
    pub fn lower(&self, problem: &Problem, target: &Target) -> Result<Lowering> {
        (self.launches)(problem, target)?.expect_bound()
    }
}

/// The variants of one op.
pub struct Family {
    /// [`kiln_ir::Op::name`].
    pub op: &'static str,
    /// The variants, best first. The oracle is last.
    pub variants: &'static [Variant],
}

impl Family {
    /// The oracle, with which other variants are compared.
    pub fn oracle(&self) -> Option<&'static Variant> {
        self.variants.iter().find(|variant| variant.oracle)
    }

    /// The variant with a name.
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

/// The variants that can compute a problem, best first: first those that the target names, then all
/// others in the family's order.
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
