//! The self-test: each kernel family on a device, against the op's reference.

use anyhow::{Context, Result, bail, ensure};
use kiln_bundle::plan::HALF_EXTENSION;
use kiln_ir::{DType, Tensor, TensorType};
use kiln_kernels::contraction::mobile::mean_error;
use kiln_kernels::{Lowering, Operand, Problem, Target, candidates};
use kiln_runtime::device::{self, DeviceFacts};
use kiln_runtime::probe::Probe;
use std::time::Instant;

use super::cases::{Case, cases};
use super::report::{Line, Outcome};
use crate::cmd::bench::timing::{OUTPUT, UNWRITTEN, prepare};
use kiln_testkit::{decode, random, stored};

/// Tests device `index` and tells each step to `tell`.
///
/// Errors: the device cannot be opened. A family that fails is an outcome, not an error.
pub fn run(index: usize, tell: &mut dyn FnMut(Line) -> Result<()>) -> Result<()> {
    let device = device::list()?.into_iter().find(|d| d.index == index);
    let device = device.with_context(|| format!("no OpenCL device {index}"))?;
    tell(Line::Begin("opening the device".into()))?;
    let (_, profile) =
        kiln_compiler::device::DeviceProfile::load(crate::cmd::devices::profile(&device))?;
    let probe = Probe::open(&device)?;
    for case in cases() {
        for storage in [DType::F32, DType::F16] {
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

/// Errors: why the device does not pass.
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
    let values: Vec<Vec<f32>> = (1..)
        .zip(&case.inputs)
        .map(|(seed, input)| (random(seed, input.shape.iter().product()), input.spread))
        .map(|(values, spread)| values.iter().map(|v| v * spread).collect::<Vec<_>>())
        .map(|values| stored(storage, &values))
        .collect();
    let problem = Problem {
        op: &case.op,
        inputs: &inputs,
        output: &output,
        max_weight_bytes: u64::MAX,
        max_scratch_bytes: u64::MAX,
    };
    let variants = candidates(&problem, target);
    let variant = variants.first().context("no variant applies")?;
    outcome.variant = variant.name.to_string();
    let lowering = variant.lower(&problem, target)?;
    check_limits(&lowering, device)?;

    let (launches, mut buffers) = prepare(&problem, &lowering, &values);
    probe.run(&launches, &mut buffers)?;
    let len = output.size_bytes() as usize;
    let (bytes, guard) = buffers[OUTPUT].split_at(len);
    ensure!(guard.iter().all(|b| *b == UNWRITTEN), "a kernel wrote behind its output");

    let tensors: Vec<Tensor> =
        inputs.iter().zip(values).map(|(i, v)| Tensor::new(&i.ty.shape, v)).collect();
    let expected = case.op.eval(&tensors.iter().collect::<Vec<_>>()).data;
    // Six standard deviations; sums are about 0.8 in the mean.
    let in_halves = lowering.launches.iter().any(|launch| launch.half_arithmetic);
    let halved = if in_halves { 6.0 * 0.8 * mean_error(target.half_run) } else { 0.0 };
    let case = Case { abs: case.abs + halved, ..case.clone() };
    compare(&decode(output.dtype, bytes), &expected, &case, storage, outcome)
}

fn check_limits(lowering: &Lowering, device: &DeviceFacts) -> Result<()> {
    for launch in &lowering.launches {
        let (needed, found) = (launch.local_mem_bytes, device.local_mem_bytes);
        ensure!(needed <= found, "{needed} bytes of local memory needed, {found} there");
        let needed: u64 = launch.local.unwrap_or([1; 3]).iter().product();
        let found = device.max_work_group_size;
        ensure!(needed <= found, "work-groups of {needed} needed, {found} possible");
        let has_half = device.extensions.iter().any(|name| name == HALF_EXTENSION);
        ensure!(has_half || !launch.half_arithmetic, "{HALF_EXTENSION} needed, not there");
    }
    Ok(())
}

/// Errors: an element differs by more than the case and the rounding of its storage allow.
fn compare(
    found: &[f32],
    expected: &[f32],
    case: &Case,
    storage: DType,
    outcome: &mut Outcome,
) -> Result<()> {
    // Half a unit in the last place of a 16-bit output.
    let half = if storage == DType::F16 { (3e-8, 4.9e-4) } else { (f32::MIN_POSITIVE, 0.0) };
    let mut wrong = 0;
    for (found, expected) in found.iter().zip(expected) {
        let allowed = case.abs + half.0 + (case.rel + half.1) * expected.abs();
        let error = (found - expected).abs();
        let error = if error.is_nan() { f32::MAX } else { error };
        outcome.worst_error = outcome.worst_error.max(error);
        outcome.of_allowed = outcome.of_allowed.max((error / allowed).min(f32::MAX));
        wrong += usize::from(error > allowed);
    }
    if wrong > 0 {
        bail!("{wrong} of {} elements are wrong", expected.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome_of(found: &[f32]) -> (Result<()>, Outcome) {
        let case = cases().into_iter().find(|case| case.op.name() == "softmax").unwrap();
        let empty = r#"{"family":"","variant":"","storage":"","worst_error":0,"of_allowed":0,
            "seconds":0}"#;
        let mut outcome = serde_json::from_str(empty).unwrap();
        (compare(found, &[0.25, 0.5], &case, DType::F32, &mut outcome), outcome)
    }

    #[test]
    fn wrong_and_unwritten_elements_fail() {
        assert!(outcome_of(&[0.25, 0.5]).0.is_ok());
        let (wrong, outcome) = outcome_of(&[0.25, 0.51]);
        assert!(wrong.unwrap_err().to_string().contains("1 of 2"));
        assert!(outcome.of_allowed > 1.0 && (outcome.worst_error - 0.01).abs() < 1e-6);
        assert!(outcome_of(&[f32::NAN, 0.5]).0.is_err());
    }
}
