//! The self-test: each kernel family on a device, against the op's reference.

use anyhow::{Context, Result, ensure};
use kiln_bundle::plan::HALF_EXTENSION;
use kiln_ir::{DType, TensorType};
use kiln_kernels::{Lowering, Operand, Problem, Target, candidates};
use kiln_runtime::device::{self, DeviceFacts};
use kiln_runtime::probe::Probe;
use kiln_testkit::{Loaded, compare, random_stored, reference};
use std::time::Instant;

use super::cases::{Case, STORAGES, cases};
use super::report::{Line, Outcome};

/// Tests device `index` and passes each step to `tell`.
///
/// Errors: the device cannot be opened. A failed family is an outcome, not an error.
pub fn run(index: usize, tell: &mut dyn FnMut(Line) -> Result<()>) -> Result<()> {
    let device = device::list()?.into_iter().find(|d| d.index == index);
    let device = device.with_context(|| format!("no OpenCL device {index}"))?;
    tell(Line::Begin("opening the device".into()))?;
    let (_, profile) = crate::cmd::devices::adapted_profile(&device)?;
    let probe = Probe::open(&device)?;
    for case in cases() {
        for storage in STORAGES {
            tell(Line::Begin(format!("testing {} with {storage} storage", case.op.name())))?;
            let start = Instant::now();
            let mut outcome = Outcome {
                family: case.op.name().to_string(),
                variant: String::new(),
                storage: storage.to_string(),
                fault: None,
                worst_error: 0.0,
                of_allowed: 0.0,
                seconds: 0.0,
            };
            let tested = test(&probe, &device, &profile.target, &case, storage, &mut outcome);
            outcome.fault = tested.err().map(|error| format!("{error:#}"));
            outcome.seconds = start.elapsed().as_secs_f64();
            tell(Line::Outcome(outcome))?;
        }
    }
    tell(Line::End)
}

/// Errors: the reason why the device does not pass.
fn test(
    probe: &Probe,
    device: &DeviceFacts,
    target: &Target,
    case: &Case,
    storage: DType,
    outcome: &mut Outcome,
) -> Result<()> {
    let inputs: Vec<Operand> = (case.inputs.iter())
        .map(|i| Operand {
            constant: i.constant,
            ..Operand::new(TensorType::new(storage, &i.shape))
        })
        .collect();
    let types: Vec<&TensorType> = inputs.iter().map(|i| &i.ty).collect();
    let output = case.op.infer(&types)?;
    let values: Vec<Vec<f32>> = (inputs.iter().zip(&case.inputs).zip(1..))
        .map(|((input, of_case), seed)| random_stored(seed, &input.ty, of_case.spread))
        .collect();
    let problem = Problem::unlimited(&case.op, &inputs, &output);
    let variants = candidates(&problem, target);
    let variant = variants.first().context("no variant applies")?;
    outcome.variant = variant.name.to_string();
    let lowering = variant.lower(&problem, target)?;
    check_limits(&lowering, device)?;

    let found = Loaded::new(probe, &problem, &lowering, &values)?.result()?;
    let rounding = (variant.rounding)(&problem, target, 1.0);
    let tolerance = case.tolerance.rounded(rounding).stored_as(storage);
    let compared = compare(&found, &reference(&problem, &values), tolerance);
    // JSON has no infinity.
    outcome.worst_error = compared.worst_error.min(f32::MAX);
    outcome.of_allowed = compared.of_allowed.min(f32::MAX);
    ensure!(compared.wrong == 0, "{} of {} elements are wrong", compared.wrong, found.len());
    Ok(())
}

fn check_limits(lowering: &Lowering, device: &DeviceFacts) -> Result<()> {
    for launch in &lowering.launches {
        let (needed, found) = (launch.local_mem_bytes, device.local_mem_bytes);
        ensure!(needed <= found, "needs {needed} bytes of local memory, the device has {found}");
        let needed: u64 = launch.local.unwrap_or([1; 3]).iter().product();
        let found = device.max_work_group_size;
        ensure!(needed <= found, "needs work-groups of {needed}, the device allows {found}");
        let has_half = device.extensions.iter().any(|name| name == HALF_EXTENSION);
        ensure!(
            has_half || !launch.half_arithmetic,
            "needs {HALF_EXTENSION}, which the device lacks"
        );
    }
    Ok(())
}
