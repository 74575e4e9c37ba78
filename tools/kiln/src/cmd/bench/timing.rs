//! One lowering of an op on a device: its time, and whether its answer is right.

use anyhow::{Result, ensure};
use kiln_ir::{DType, Tensor, TensorType};
use kiln_kernels::{Lowering, Packing, Problem};
use kiln_runtime::probe::{Argument, Launch, Prepared, Probe};
use kiln_testkit::{decode, random, stored};

use super::median;

/// A run that takes longer is measured by a part of its work.
const LONG_SECONDS: f64 = 1.0;
/// Parts of the work of a first trial of a long run.
const TRIAL_PARTS: u64 = 64;
/// What is timed together takes at least so long.
const TIMED_SECONDS: f64 = 0.02;
/// Times of which the median counts.
const SAMPLES: usize = 5;
/// With these many multiply-adds the reference on the host takes about a second.
const REFERENCE_FLOPS: u64 = 1_000_000_000;

/// Relative L2 error that an answer in FP32 may have.
const MAX_ERROR_F32: f64 = 1e-4;
/// As much in FP16, which rounds to 11 bits, the sums of half arithmetic included.
const MAX_ERROR_F16: f64 = 2e-3;

/// The time of one lowering.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Timing {
    /// Median.
    pub seconds: f64,
    /// Part of the work that was run; the time is that of it all.
    pub part: f64,
}

/// A lowering on a device with inputs.
pub struct Candidate<'a> {
    probe: &'a Probe,
    launches: Vec<Launch>,
    prepared: Prepared,
    output: TensorType,
}

/// Random values for the inputs of a problem, the same for every candidate: small enough that no
/// sum overflows in FP16.
pub fn inputs(problem: &Problem) -> Vec<Vec<f32>> {
    let values = |(index, input): (usize, &kiln_kernels::Operand)| {
        // A filter's sums have the size of its input.
        let spread = match input.constant && input.ty.shape.len() >= 2 {
            true => (3.0 / input.ty.shape[1..].iter().product::<usize>() as f32).sqrt(),
            false => 1.0,
        };
        let values = random(index as u64 + 1, input.ty.elem_count());
        stored(input.ty.dtype, &values.iter().map(|v| v * spread).collect::<Vec<_>>())
    };
    problem.inputs.iter().enumerate().map(values).collect()
}

impl<'a> Candidate<'a> {
    /// Compiles a lowering and uploads its inputs, constants packed.
    ///
    /// Errors: the driver refuses it.
    pub fn new(
        probe: &'a Probe,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
    ) -> Result<Self> {
        let (launches, buffers) = prepare(problem, lowering, values);
        let prepared = probe.prepare(&launches, &buffers)?;
        Ok(Self { probe, launches, prepared, output: problem.output.clone() })
    }

    /// Times it; a long one by the same part of each of its launches.
    pub fn time(&self) -> Result<Timing> {
        let expected_seconds = self.trial_seconds()?;
        if expected_seconds > LONG_SECONDS {
            return self.time_part(expected_seconds);
        }
        // The first run of a kernel may compile it.
        self.probe.time(&self.prepared, 1)?;
        let first = self.probe.time(&self.prepared, 1)?;
        if first > LONG_SECONDS {
            return Ok(Timing { seconds: first, part: 1.0 });
        }
        let times = (TIMED_SECONDS / first.max(1e-6)).ceil().max(1.0) as usize;
        let mut seconds = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            seconds.push(self.probe.time(&self.prepared, times)? / times as f64);
        }
        Ok(Timing { seconds: median(&seconds), part: 1.0 })
    }

    /// What the whole may take, from a small part; 0 if it is too small to have parts.
    fn trial_seconds(&self) -> Result<f64> {
        Ok(self.parts(TRIAL_PARTS)?.map_or(0.0, |timing| timing.seconds))
    }

    fn time_part(&self, expected_seconds: f64) -> Result<Timing> {
        let parts = (expected_seconds / LONG_SECONDS).ceil() as u64;
        let whole = || Ok(Timing { seconds: self.probe.time(&self.prepared, 1)?, part: 1.0 });
        self.parts(parts)?.map_or_else(whole, Ok)
    }

    /// Times one of so many parts of each launch. `None` if a launch cannot be divided so.
    fn parts(&self, parts: u64) -> Result<Option<Timing>> {
        let part = |launch: &Launch| part(launch, parts, 0);
        let Some(divided) = self.launches.iter().map(part).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let launches: Vec<Launch> = divided.iter().map(|(launch, _)| launch.clone()).collect();
        self.probe.time_each(&self.prepared, &launches)?;
        let seconds = self.probe.time_each(&self.prepared, &launches)?;
        let whole: f64 = seconds.iter().zip(&divided).map(|(s, (_, share))| s / share).sum();
        Ok(Some(Timing { seconds: whole, part: seconds.iter().sum::<f64>() / whole }))
    }

    /// Runs it all and returns its output.
    pub fn output(&self) -> Result<Vec<f32>> {
        self.probe.time(&self.prepared, 1)?;
        let mut bytes = vec![0; self.output.size_bytes() as usize];
        self.probe.read(&self.prepared, OUTPUT, &mut bytes)?;
        Ok(decode(self.output.dtype, &bytes))
    }

    /// Runs parts of it, the first and the last among them, and returns its output, NaN where it
    /// did not write.
    fn sampled_output(&self, parts: u64) -> Result<Vec<f32>> {
        for which in [0, parts / 2, parts - 1] {
            let part = |launch: &Launch| part(launch, parts, which).map(|(launch, _)| launch);
            let some: Option<Vec<Launch>> = self.launches.iter().map(part).collect();
            let Some(launches) = some else { return self.output() };
            self.probe.time_each(&self.prepared, &launches)?;
        }
        let mut bytes = vec![0; self.output.size_bytes() as usize];
        self.probe.read(&self.prepared, OUTPUT, &mut bytes)?;
        Ok(decode(self.output.dtype, &bytes))
    }
}

/// What the answer should be: from the op's reference on the host if that is quick, else parts of
/// what the naive kernel gives, NaN elsewhere.
///
/// Errors: there is no naive kernel for it; the driver refuses it.
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
    // The reference knows no integers; kernels of all variants read the same ones.
    let integers = problem.inputs.iter().any(|i| i.ty.dtype == DType::I8);
    let Some(naive) = naive.filter(|_| integers || flops > REFERENCE_FLOPS) else {
        let tensors: Vec<Tensor> = (problem.inputs.iter().zip(values))
            .map(|(i, v)| Tensor::new(&i.ty.shape, v.clone()))
            .collect();
        return Ok(problem.op.eval(&tensors.iter().collect::<Vec<_>>()).data);
    };
    let lowering = naive.lower(problem, target)?;
    let candidate = Candidate::new(probe, problem, &lowering, values)?;
    // More than one launch may share scratch memory, which parts would leave unwritten.
    match lowering.scratch_bytes.is_empty() {
        true => candidate.sampled_output((flops / REFERENCE_FLOPS).clamp(3, 256)),
        false => candidate.output(),
    }
}

/// Errors: what was found differs from what is expected, where that is known.
pub fn check(found: &[f32], expected: &[f32], dtype: DType) -> Result<()> {
    let known = || found.iter().zip(expected).filter(|(_, e)| !e.is_nan());
    ensure!(known().next().is_some(), "nothing to compare with");
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = known().map(|(f, e)| square(f - e)).sum();
    let norm: f64 = known().map(|(_, e)| square(*e)).sum();
    let error = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
    let limit = if dtype == DType::F16 { MAX_ERROR_F16 } else { MAX_ERROR_F32 };
    ensure!(error <= limit, "relative L2 error {error:.1e} is over {limit:.0e}");
    Ok(())
}

/// One of `parts` equal parts of a launch along its longest dimension, and its share of the work.
/// `None` if that dimension has not as many work-groups.
fn part(launch: &Launch, parts: u64, which: u64) -> Option<(Launch, f64)> {
    let local = launch.local.unwrap_or([1; 3]);
    let groups: Vec<u64> = launch.global.iter().zip(local).map(|(g, l)| g / l.max(1)).collect();
    let axis = (0..3).max_by_key(|axis| groups[*axis])?;
    if groups[axis] < parts || parts == 0 {
        return None;
    }
    let (lower, upper) = (groups[axis] * which / parts, groups[axis] * (which + 1) / parts);
    let mut launch = launch.clone();
    launch.first[axis] = lower * local[axis];
    launch.global[axis] = (upper - lower) * local[axis];
    Some((launch, (upper - lower) as f64 / groups[axis] as f64))
}

/// Index of the output among the buffers of [`prepare`].
pub const OUTPUT: usize = 0;
/// Bytes behind an output that no kernel may change.
pub const GUARD_BYTES: usize = 256;
/// What memory holds before a kernel writes it: NaN in every storage type.
pub const UNWRITTEN: u8 = 0xff;

/// Launches and their buffers: the output with its guard, scratch, then a buffer for each region
/// of an input.
pub fn prepare(
    problem: &Problem,
    lowering: &Lowering,
    values: &[Vec<f32>],
) -> (Vec<Launch>, Vec<Vec<u8>>) {
    let packed: Vec<Vec<u8>> = (problem.inputs.iter().zip(values).enumerate())
        .map(|(index, (input, values))| {
            let packing = lowering.packings.iter().find(|(i, _)| *i == index);
            let packing = packing.map_or(Packing::RowMajor(input.ty.dtype), |(_, p)| *p);
            packing.pack(&input.ty.shape, values)
        })
        .collect();
    let mut buffers = vec![vec![UNWRITTEN; problem.output.size_bytes() as usize + GUARD_BYTES]];
    buffers.extend(lowering.scratch_bytes.iter().map(|len| vec![UNWRITTEN; *len as usize]));
    let mut argument = |argument: &kiln_kernels::Argument| match *argument {
        kiln_kernels::Argument::Output => Argument::Buffer(OUTPUT),
        kiln_kernels::Argument::Scratch { index, .. } => Argument::Buffer(1 + index),
        kiln_kernels::Argument::U32(value) => Argument::U32(value),
        kiln_kernels::Argument::F32(value) => Argument::F32(value),
        kiln_kernels::Argument::Late(slot) => unreachable!("a lowering is told {slot:?}"),
        kiln_kernels::Argument::Input { index, offset_bytes, len_bytes } => {
            let start = offset_bytes as usize;
            buffers.push(packed[index][start..start + len_bytes as usize].to_vec());
            Argument::Buffer(buffers.len() - 1)
        }
    };
    let launch = |launch: &kiln_kernels::Launch| Launch {
        source: launch.source.to_string(),
        entry: launch.entry.to_string(),
        args: launch.args.iter().map(&mut argument).collect(),
        global: launch.global,
        local: launch.local,
        first: [0; 3],
    };
    let launches = lowering.launches.iter().map(launch).collect();
    (launches, buffers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(global: [u64; 3], local: Option<[u64; 3]>) -> Launch {
        let (source, entry) = (String::new(), String::new());
        Launch { source, entry, args: vec![], global, local, first: [0; 3] }
    }

    #[test]
    fn parts_cover_a_launch() {
        let whole = launch([2, 24, 1], Some([2, 4, 1]));
        let parts: Vec<_> = (0..4).map(|which| part(&whole, 4, which).unwrap()).collect();
        let rows: Vec<_> = parts.iter().map(|(l, _)| (l.first[1], l.global[1])).collect();
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
