//! A lowering on a device.

use anyhow::{Result, ensure};
use kiln_ir::{DType, TensorType};
use kiln_kernels::{Argument, Launch, Lowering, Packing, Problem};
use kiln_runtime::probe::{Part, Prepared, Probe, ProbeArgument, ProbeLaunch};

use crate::values::decode;

/// Index of the output among the buffers.
const OUTPUT: usize = 0;
/// Bytes after the output that no kernel may change.
const GUARD_BYTES: usize = 256;
/// Initial bytes of scratch memory, the output and its guard: NaN in every storage type. They
/// expose elements that are read before they are written, or never written.
const UNWRITTEN: u8 = 0xff;

/// What a driver compiles for a launch.
#[derive(Clone, Debug)]
pub struct Source {
    /// OpenCL C, which may have other kernels too.
    pub text: String,
    /// Options of the driver's compiler.
    pub options: &'static str,
    /// Name of the kernel function.
    pub entry: String,
}

/// A lowering with built kernels and with its packed inputs on the device.
pub struct Loaded<'a> {
    probe: &'a Probe,
    prepared: Prepared,
    output: TensorType,
}

impl<'a> Loaded<'a> {
    /// Builds the kernels, packs the inputs and copies them to the device.
    ///
    /// Errors: the driver refuses a kernel or an allocation.
    pub fn new(
        probe: &'a Probe,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
    ) -> Result<Self> {
        let own = |launch: &Launch| Source {
            text: launch.source.to_string(),
            options: "",
            entry: launch.entry.to_string(),
        };
        Self::with_sources(probe, problem, lowering, values, &own, None)
    }

    /// [`Loaded::new`] with other sources for the kernels, and optionally with the output in the
    /// memory of an input of the same type.
    ///
    /// Errors: the driver refuses a kernel or an allocation.
    pub fn with_sources(
        probe: &'a Probe,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
        source: &dyn Fn(&Launch) -> Source,
        in_place: Option<usize>,
    ) -> Result<Self> {
        let packed: Vec<Vec<u8>> =
            (0..values.len()).map(|i| pack(problem, lowering, i, &values[i])).collect();
        let output_len = problem.output.size_bytes() as usize;
        let mut buffers = vec![match in_place {
            Some(input) => packed[input].clone(),
            None => vec![UNWRITTEN; output_len],
        }];
        buffers[OUTPUT].extend([UNWRITTEN; GUARD_BYTES]);
        buffers.extend(lowering.scratch_bytes.iter().map(|len| vec![UNWRITTEN; *len as usize]));
        let mut regions: Vec<((usize, u64, u64), usize)> = vec![];
        let mut argument = |argument: &Argument| match *argument {
            Argument::Output => ProbeArgument::Buffer(OUTPUT),
            Argument::Scratch { index, .. } => ProbeArgument::Buffer(1 + index),
            Argument::U32(value) => ProbeArgument::U32(value),
            Argument::F32(value) => ProbeArgument::F32(value),
            Argument::Late(slot) => unreachable!("a lowering is told {slot:?}"),
            Argument::Input { index, .. } if in_place == Some(index) => {
                ProbeArgument::Buffer(OUTPUT)
            }
            // Each region has a buffer of exactly its length, so that a sanitizer detects accesses
            // beyond it.
            Argument::Input { index, offset_bytes, len_bytes } => {
                let region = (index, offset_bytes, len_bytes);
                let known = regions.iter().find(|(known, _)| *known == region);
                ProbeArgument::Buffer(known.map(|(_, buffer)| *buffer).unwrap_or_else(|| {
                    let start = offset_bytes as usize;
                    buffers.push(packed[index][start..start + len_bytes as usize].to_vec());
                    regions.push((region, buffers.len() - 1));
                    buffers.len() - 1
                }))
            }
        };
        let launch = |launch: &Launch| {
            let Source { text, options, entry } = source(launch);
            ProbeLaunch {
                source: text,
                options,
                entry,
                args: launch.args.iter().map(&mut argument).collect(),
                global: launch.global,
                local: launch.local,
            }
        };
        let launches: Vec<ProbeLaunch> = lowering.launches.iter().map(launch).collect();
        let prepared = probe.prepare(&launches, &buffers)?;
        Ok(Self { probe, prepared, output: problem.output.clone() })
    }

    /// The launches in order.
    pub fn launches(&self) -> impl Iterator<Item = &ProbeLaunch> {
        self.prepared.launches()
    }

    /// Runs all launches `times` times and waits for the last one. Returns the total seconds.
    ///
    /// Errors: the driver fails.
    pub fn run(&self, times: usize) -> Result<f64> {
        Ok(self.probe.time(&self.prepared, times)?)
    }

    /// Runs part of one launch and waits for it. Returns the seconds.
    ///
    /// Errors: the driver fails.
    pub fn run_part(&self, launch: usize, part: Part) -> Result<f64> {
        Ok(self.probe.time_part(&self.prepared, launch, part)?)
    }

    /// Runs each launch in two parts along every axis with at least two work-groups, like the
    /// planner splits launches.
    ///
    /// Errors: the driver fails.
    pub fn run_in_parts(&self) -> Result<()> {
        for (index, launch) in self.launches().enumerate() {
            let local = launch.local.unwrap_or([1; 3]);
            let halves = |axis: usize| {
                let half = launch.global[axis] / local[axis] / 2 * local[axis];
                let parts = [(0, half), (half, launch.global[axis] - half)];
                parts.into_iter().filter(|(_, items)| *items > 0)
            };
            for (z, depth) in halves(2) {
                for (y, height) in halves(1) {
                    for (x, width) in halves(0) {
                        let part = Part { first: [x, y, z], global: [width, height, depth] };
                        self.run_part(index, part)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The output. Elements that were not written are NaN.
    ///
    /// Errors: a kernel wrote after the output's end; the driver fails.
    pub fn output(&self) -> Result<Vec<f32>> {
        let len = self.output.size_bytes() as usize;
        let mut bytes = vec![0; len + GUARD_BYTES];
        self.probe.read(&self.prepared, OUTPUT, &mut bytes)?;
        let (bytes, guard) = bytes.split_at(len);
        ensure!(guard.iter().all(|b| *b == UNWRITTEN), "a kernel wrote behind its output");
        Ok(decode(self.output.dtype, bytes))
    }

    /// Runs the lowering once and returns its output.
    ///
    /// Errors: those of [`Loaded::run`] and [`Loaded::output`].
    pub fn result(&self) -> Result<Vec<f32>> {
        self.run(1)?;
        self.output()
    }
}

/// An input, packed for the kernels.
fn pack(problem: &Problem, lowering: &Lowering, index: usize, values: &[f32]) -> Vec<u8> {
    let ty = &problem.inputs[index].ty;
    if ty.dtype == DType::I32 {
        return values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
    }
    let packing = lowering.packings.iter().find(|(input, _)| *input == index);
    let packing = packing.map_or(Packing::RowMajor(ty.dtype), |(_, p)| *p);
    let bytes = packing.pack(&ty.shape, values);
    assert_eq!(bytes.len() as u64, packing.size_bytes(&ty.shape), "packed size of input {index}");
    bytes
}
