//! One lowering of an op on a device: its time, and whether its result is right.

use anyhow::{Result, ensure};
use kiln_ir::{DType, TensorType};
use kiln_kernels::{Operand, Problem};
use kiln_runtime::probe::{Part, Probe, ProbeLaunch};
use kiln_testkit::{Loaded, bounds, random_stored, reference, relative_l2};

use super::median;

/// Longer runs are measured by a part of their work, in seconds.
const LONG_SECONDS: f64 = 1.0;
/// Number of parts of a long run; its first trial runs one of them.
const TRIAL_PARTS: u64 = 64;
/// Least duration of the runs that are timed together, in seconds.
const TIMED_SECONDS: f64 = 0.02;
/// Number of timings. The median counts.
const SAMPLES: usize = 5;
/// Arithmetic that the reference on the host does in about a second, in FLOP.
const REFERENCE_FLOPS: u64 = 1_000_000_000;

/// The time of one lowering.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Timing {
    /// The median, in seconds.
    pub seconds: f64,
    /// Part of the work that was run. `seconds` is extrapolated to all of it.
    pub part: f64,
}

/// Random values for the inputs of a problem, the same for every candidate. They are small, so that
/// no sum overflows in FP16.
pub fn inputs(problem: &Problem) -> Vec<Vec<f32>> {
    let values = |(index, input): (usize, &Operand)| {
        // With this spread, a filter's sums are of the size of its input.
        let spread = match input.constant && input.ty.shape.len() >= 2 {
            true => (3.0 / input.ty.shape[1..].iter().product::<usize>() as f32).sqrt(),
            false => 1.0,
        };
        random_stored(index as u64 + 1, &input.ty, spread)
    };
    problem.inputs.iter().enumerate().map(values).collect()
}

/// Times a lowering. Of a long one, it times the same part of each launch.
pub fn time(loaded: &Loaded) -> Result<Timing> {
    // A launch that is too small for parts takes negligible time.
    let expected_seconds = time_part(loaded, TRIAL_PARTS)?.map_or(0.0, |timing| timing.seconds);
    if expected_seconds > LONG_SECONDS {
        let parts = (expected_seconds / LONG_SECONDS).ceil() as u64;
        let whole = || Ok(Timing { seconds: loaded.run(1)?, part: 1.0 });
        return time_part(loaded, parts)?.map_or_else(whole, Ok);
    }
    // The first run of a kernel may compile it.
    loaded.run(1)?;
    let first = loaded.run(1)?;
    if first > LONG_SECONDS {
        return Ok(Timing { seconds: first, part: 1.0 });
    }
    let times = (TIMED_SECONDS / first.max(1e-6)).ceil().max(1.0) as usize;
    let mut seconds = Vec::with_capacity(SAMPLES);
    for _ in 0..SAMPLES {
        seconds.push(loaded.run(times)? / times as f64);
    }
    Ok(Timing { seconds: median(&seconds), part: 1.0 })
}

/// Times one of `parts` parts of each launch. `None` if a launch cannot be divided.
fn time_part(loaded: &Loaded, parts: u64) -> Result<Option<Timing>> {
    let Some(divided) = divided(loaded, parts, 0) else { return Ok(None) };
    let run = || -> Result<Vec<f64>> {
        divided.iter().enumerate().map(|(i, (part, _))| loaded.run_part(i, *part)).collect()
    };
    run()?;
    let seconds = run()?;
    let whole: f64 = seconds.iter().zip(&divided).map(|(s, (_, share))| s / share).sum();
    Ok(Some(Timing { seconds: whole, part: seconds.iter().sum::<f64>() / whole }))
}

/// Runs the first, the middle and the last part of a lowering and returns its output. Elements that
/// were not written are NaN.
fn sampled_output(loaded: &Loaded, parts: u64) -> Result<Vec<f32>> {
    for which in [0, parts / 2, parts - 1] {
        let Some(divided) = divided(loaded, parts, which) else { return loaded.result() };
        for (index, (part, _)) in divided.iter().enumerate() {
            loaded.run_part(index, *part)?;
        }
    }
    loaded.output()
}

/// The expected result: from the op's reference on the host if that is quick, otherwise parts of
/// the naive kernel's result. All other elements are NaN.
///
/// Errors: no naive kernel applies; the driver refuses the kernel.
pub fn expected(
    probe: &Probe,
    problem: &Problem,
    target: &kiln_kernels::Target,
    values: &[Vec<f32>],
) -> Result<Vec<f32>> {
    let types: Vec<&TensorType> = problem.inputs.iter().map(|i| &i.ty).collect();
    let flops = problem.op.flops(&types, problem.output);
    let naive = kiln_kernels::family(problem.op.name()).and_then(|f| f.oracle());
    let naive = naive.filter(|v| v.applies(problem, target));
    // The reference has no integers. Kernels of all variants read the same INT8 values.
    let integers = problem.inputs.iter().any(|i| i.ty.dtype == DType::I8);
    let Some(naive) = naive.filter(|_| integers || flops > REFERENCE_FLOPS) else {
        return Ok(reference(problem, values));
    };
    let lowering = naive.lower(problem, target)?;
    let loaded = Loaded::new(probe, problem, &lowering, values)?;
    // Several launches may communicate through scratch memory, which a part would leave unwritten.
    match lowering.scratch_bytes.is_empty() {
        true => sampled_output(&loaded, (flops / REFERENCE_FLOPS).clamp(3, 256)),
        false => loaded.result(),
    }
}

/// Compares a result with the expected elements that are known (not NaN).
///
/// Errors: they differ by more than the bound of the type.
pub fn check(found: &[f32], expected: &[f32], dtype: DType) -> Result<()> {
    let known = found.iter().zip(expected).filter(|(_, expected)| !expected.is_nan());
    let (found, expected): (Vec<f32>, Vec<f32>) = known.unzip();
    ensure!(!expected.is_empty(), "nothing to compare with");
    let error = relative_l2(&found, &expected);
    let limit = if dtype == DType::F16 { bounds::KERNEL_FP16 } else { bounds::KERNEL_FP32 };
    ensure!(error <= limit, "relative L2 error {error:.1e} is over {limit:.0e}");
    Ok(())
}

/// [`part`] of each launch. `None` if a launch cannot be divided.
fn divided(loaded: &Loaded, parts: u64, which: u64) -> Option<Vec<(Part, f64)>> {
    loaded.launches().map(|launch| part(launch, parts, which)).collect()
}

/// One of `parts` equal parts of a launch along its longest dimension, and its fraction of the
/// work. `None` if the dimension has fewer work-groups than `parts`.
fn part(launch: &ProbeLaunch, parts: u64, which: u64) -> Option<(Part, f64)> {
    let local = launch.local.unwrap_or([1; 3]);
    let groups: Vec<u64> = launch.global.iter().zip(local).map(|(g, l)| g / l.max(1)).collect();
    let axis = (0..3).max_by_key(|axis| groups[*axis])?;
    if groups[axis] < parts || parts == 0 {
        return None;
    }
    let (lower, upper) = (groups[axis] * which / parts, groups[axis] * (which + 1) / parts);
    let mut part = Part { first: [0; 3], global: launch.global };
    part.first[axis] = lower * local[axis];
    part.global[axis] = (upper - lower) * local[axis];
    Some((part, (upper - lower) as f64 / groups[axis] as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_launch() {
        let (global, local) = ([2, 24, 1], Some([2, 4, 1]));
        let (source, entry) = (String::new(), String::new());
        let whole = ProbeLaunch { source, options: "", entry, args: vec![], global, local };
        let parts: Vec<_> = (0..4).map(|which| part(&whole, 4, which).unwrap()).collect();
        let rows: Vec<_> = parts.iter().map(|(p, _)| (p.first[1], p.global[1])).collect();
        assert_eq!(rows, [(0, 4), (4, 8), (12, 4), (16, 8)]);
        assert!((parts.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(part(&whole, 7, 0).is_none());
    }

    #[test]
    fn an_answer_is_held_to_what_is_known() {
        let expected = [1.0, f32::NAN, 2.0];
        assert!(check(&[1.0, 9.0, 2.0], &expected, DType::F32).is_ok());
        assert!(check(&[1.0, 9.0, 2.001], &expected, DType::F32).is_err());
        assert!(check(&[1.0, 9.0, 2.001], &expected, DType::F16).is_ok());
        assert!(check(&[1.0, 9.0, f32::NAN], &expected, DType::F32).is_err());
        assert!(check(&[1.0], &[f32::NAN], DType::F32).is_err());
    }
}
