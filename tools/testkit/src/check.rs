//! Compares the variants of an op with its reference.

use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{DeviceClass, Launch, Lowering, Operand, Problem, Target, Variant};
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pairs::Pairs;
use crate::runner::Runner;
use crate::tolerance::{Tolerance, assert_close};
use crate::values::{every, random, reference, stored};

/// The targets whose kernels are tested on every device. All kernels are legal OpenCL C.
pub fn targets() -> Vec<Target> {
    let mobile = Target { class: DeviceClass::MobileGpu, max_work_group: 128, ..Target::gpu() };
    let narrow = Target { vector_width: 8, ..Target::cpu() };
    let halves = Target { half_run: 16, ..mobile.clone() };
    vec![Target::cpu(), narrow, Target::gpu(), Target::nvidia(), mobile, halves]
}

/// Runs every variant of `op` on random inputs of these shapes, scaled by `spread`, and compares
/// with the reference: in FP32, and in FP16 for about half of all ops and shapes, or for all if
/// `KILN_EVERY` is 1. [`Pairs`] says for which targets.
pub fn check(op: impl Into<Op>, shapes: &[&[usize]], spread: f32, tolerance: Tolerance) {
    let op = op.into();
    let values: Vec<Vec<f32>> = (shapes.iter().enumerate())
        .map(|(i, s)| random(i as u64 + 1, s.iter().product()))
        .map(|v| v.into_iter().map(|x| x * spread).collect())
        .collect();
    check_values(&op, shapes, &values, DType::F32, tolerance);
    if hash(&op, shapes).is_multiple_of(every(2) as u64) {
        check_values(&op, shapes, &values, DType::F16, tolerance);
    }
}

fn hash(op: &Op, shapes: &[&[usize]]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (op.name(), shapes).hash(&mut hasher);
    hasher.finish()
}

/// [`check`] with given values and one storage type.
pub fn check_values(
    op: &Op,
    shapes: &[&[usize]],
    values: &[Vec<f32>],
    storage: DType,
    tolerance: Tolerance,
) {
    let inputs: Vec<Operand> =
        (shapes.iter()).map(|s| Operand::new(TensorType::new(storage, s))).collect();
    let types: Vec<&TensorType> = inputs.iter().map(|o| &o.ty).collect();
    let output = op.infer(&types).unwrap();
    let problem = Problem::unlimited(op, &inputs, &output);
    let values: Vec<Vec<f32>> = values.iter().map(|v| stored(storage, v)).collect();
    let largest = values.iter().flatten().fold(0.0f32, |most, v| most.max(v.abs()));
    let check = Check::new(&problem, &values, largest, tolerance);
    static PAIRS: Mutex<Pairs> = Mutex::new(Pairs::new());
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let case = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut chosen: Vec<Lowered> = vec![];
    let (targets, first) = (targets(), hash(op, shapes) as usize);
    for t in (0..targets.len()).map(|i| (first % targets.len() + i) % targets.len()) {
        let target = &targets[t];
        for variant in kiln_kernels::candidates(&problem, target) {
            let lowering = variant.lower(&problem, target).unwrap();
            let name = format!("{}/{} {storage:?}", op.name(), variant.name);
            let seen = chosen.iter().any(|known| known.lowering == lowering);
            if !seen && locked(&PAIRS).adds(&name, case, t) {
                check_limits(&lowering, target, &format!("{}: {problem}", variant.name));
                chosen.push(Lowered { problem: problem.clone(), variant, lowering, target });
            }
        }
    }
    check.hold(&chosen);
    assert!(!chosen.is_empty(), "no variant applies to {} {problem}", op.name());
}

/// A variant's launches for a problem and a target.
pub struct Lowered<'a> {
    /// The op with its types and limits.
    pub problem: Problem<'a>,
    /// The variant.
    pub variant: &'static Variant,
    /// Its launches.
    pub lowering: Lowering,
    /// What they are for.
    pub target: &'a Target,
}

/// Values with the reference's result.
pub struct Check<'a> {
    values: &'a [Vec<f32>],
    expected: Vec<f32>,
    /// The largest value that is multiplied or weighted.
    largest: f32,
    tolerance: Tolerance,
}

impl<'a> Check<'a> {
    /// Evaluates the reference. `tolerance` is the bound for sums in FP32. [`Variant::rounding`]
    /// widens it.
    pub fn new(
        problem: &Problem,
        values: &'a [Vec<f32>],
        largest: f32,
        tolerance: Tolerance,
    ) -> Self {
        Self { values, expected: reference(problem, values), largest, tolerance }
    }

    /// Compares lowerings with the reference: whole, in parts and in place.
    pub fn hold(&self, lowerings: &[Lowered]) {
        let runner = Runner::shared();
        runner.join(lowerings.iter().map(|l| (&l.lowering, l.target.class)));
        for lowered in lowerings {
            let Lowered { problem, variant, lowering, target } = lowered;
            let op = problem.op.name();
            let what = format!("{op}/{} {problem} for {:?}", variant.name, target.class);
            let rounding = (variant.rounding)(problem, target, self.largest);
            let found = runner.load(problem, lowering, self.values).result().expect(&what);
            let tolerance = self.tolerance.rounded(rounding).stored_as(problem.output.dtype);
            assert_close(&found, &self.expected, tolerance, &what);
            self.hold_parts(lowered, &found);
            self.hold_in_place(lowered, &found);
        }
    }

    /// Checks that a lowering gives the same bits in parts. Runs once for each variant and set of
    /// axes, because drivers compile kernels again for it.
    fn hold_parts(&self, lowered: &Lowered, whole: &[f32]) {
        let Lowered { problem, variant, lowering, .. } = lowered;
        static SEEN: Seen = Mutex::new(BTreeSet::new());
        let axes = |launch: &Launch| {
            let local = launch.local.unwrap_or([1; 3]);
            [0, 1, 2].map(|axis| launch.global[axis] > local[axis])
        };
        let axes: Vec<_> = lowering.launches.iter().map(axes).collect();
        let kind = format!("{}/{} cut along {axes:?}", problem.op.name(), variant.name);
        if is_new(&SEEN, &kind) {
            let loaded = Runner::shared().load(problem, lowering, self.values);
            loaded.run_in_parts().expect(&kind);
            assert!(bits(&loaded.output().expect(&kind)) == bits(whole), "{kind} differs");
        }
    }

    /// Checks that a lowering gives the same bits with its output in the memory of each input that
    /// allows it. Runs once for each variant, input and kind of launches.
    fn hold_in_place(&self, lowered: &Lowered, whole: &[f32]) {
        let Lowered { problem, variant, lowering, .. } = lowered;
        static SEEN: Seen = Mutex::new(BTreeSet::new());
        let several = lowering.launches.len() > 2;
        for input in kiln_kernels::in_place(problem, lowering) {
            let name = format!("{}/{}", problem.op.name(), variant.name);
            let kind = format!("{name} {several} over {input}");
            if is_new(&SEEN, &kind) {
                let loaded = Runner::shared().load_in_place(problem, lowering, self.values, input);
                assert!(bits(&loaded.result().expect(&kind)) == bits(whole), "{kind} differs");
            }
        }
    }
}

/// The kinds of lowerings that have been checked in one way.
type Seen = Mutex<BTreeSet<String>>;

fn is_new(seen: &Seen, kind: &str) -> bool {
    locked(seen).insert(kind.to_string())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn check_limits(lowering: &Lowering, target: &Target, what: &str) {
    for launch in &lowering.launches {
        assert!(launch.local_mem_bytes <= target.local_mem_bytes, "{what}: local memory");
        let Some(local) = launch.local else { continue };
        let work_group: u64 = local.iter().product();
        assert!(work_group <= target.max_work_group.into(), "{what}: work-group");
        for (global, local) in launch.global.iter().zip(local) {
            assert_eq!(global % local, 0, "{what}: work-groups fill {:?}", launch.global);
        }
    }
}
