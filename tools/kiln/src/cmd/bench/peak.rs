//! Sustained rates of a device: FP32 multiply-adds, copying, and the time of an empty launch.

use anyhow::Result;
use kiln_kernels::{DeviceClass, Target};
use kiln_runtime::device::DeviceFacts;
use kiln_runtime::probe::{Prepared, Probe, ProbeArgument, ProbeLaunch};

use super::processor_seconds;

/// Independent chains of multiply-adds: enough to hide their latency, few enough for the 16
/// registers of AVX2.
const CHAINS: usize = 12;
/// Chains on GPUs, which also hide latency by other work-items.
const GPU_CHAINS: usize = 8;
/// Iterations of the loop.
const TURNS: u64 = 8192;
/// Number of runs. The fastest counts. Runs are short, so that some of them meet no other program.
const RUNS: usize = 50;
/// Empty launches that are timed together.
const EMPTY_LAUNCHES: usize = 1000;
/// Bytes of a copy, if the device has room for them twice: well over the last cache.
const COPY_BYTES: u64 = 256 << 20;
/// Copies that are timed together, so that the launch time of a GPU does not count.
const COPIES: usize = 3;
/// Number of timings of copies. The shortest counts.
const COPY_RUNS: usize = 5;
/// Vectors that a work-item of a CPU copies in sequence.
const COPY_RUN: u64 = 1024;

/// A device's peak. It is measured repeatedly, close in time to the measurements that it is
/// compared with.
pub struct Peak<'a> {
    probe: &'a Probe,
    prepared: Prepared,
    flops: u64,
    /// The highest rate seen so far, in FLOP a second.
    pub flops_per_s: f64,
    /// The highest rate by processor time, if the device is the processor and the system reports
    /// it. Other programs disturb it less.
    pub flops_per_processor_s: Option<f64>,
}

impl<'a> Peak<'a> {
    /// Compiles the kernel and measures once.
    pub fn new(probe: &'a Probe, target: &Target) -> Result<Self> {
        let (launch, flops) = kernel(target);
        let prepared = probe.prepare(&[launch], &[vec![0; 64]])?;
        let mut peak =
            Self { probe, prepared, flops, flops_per_s: 0.0, flops_per_processor_s: None };
        // The driver may compile at the first launch.
        probe.time(&peak.prepared, 1)?;
        peak.measure()?;
        Ok(peak)
    }

    /// Measures again. The best of all measurements stays.
    pub fn measure(&mut self) -> Result<()> {
        let before = processor_seconds();
        for _ in 0..RUNS {
            let seconds = self.probe.time(&self.prepared, 1)?;
            self.flops_per_s = self.flops_per_s.max(self.flops as f64 / seconds);
        }
        let spent = before.zip(processor_seconds()).map(|(a, b)| b - a).filter(|s| *s > 0.0);
        let rate = spent.map(|seconds| (RUNS as u64 * self.flops) as f64 / seconds);
        self.flops_per_processor_s = match (rate, self.flops_per_processor_s) {
            (Some(now), Some(before)) => Some(now.max(before)),
            (now, before) => now.or(before),
        };
        Ok(())
    }
}

/// The kernel with chains of multiply-adds in registers, and its arithmetic in FLOP.
fn kernel(target: &Target) -> (ProbeLaunch, u64) {
    let cpu = target.class == DeviceClass::Cpu;
    let (vector, chains) = match target.class {
        DeviceClass::Cpu => (target.vector_width.clamp(4, 16), CHAINS),
        DeviceClass::Gpu | DeviceClass::MobileGpu => (4, GPU_CHAINS),
    };
    let (items, local) = match cpu {
        true => (64 * u64::from(target.compute_units.max(1)), 1),
        false => (4096 * u64::from(target.compute_units.max(1)), 64),
    };
    let each = |f: &dyn Fn(usize) -> String| (0..chains).map(f).collect::<String>();
    let source = format!(
        "kernel void peak(global float *out) {{\n\
         const float{vector} a = (float{vector})(get_global_id(0) * 1e-9f + 0.999f);\n{}\
         for (int i = 0; i < {TURNS}; i++) {{ {} }}\n\
         vstore{vector}({}, 0, out);\n}}",
        each(&|i| format!("float{vector} c{i} = a + {i}.0f;\n")),
        each(&|i| format!("c{i} = fma(c{i}, a, a); ")),
        (0..chains).map(|i| format!("c{i}")).collect::<Vec<_>>().join(" + "),
    );
    let launch = ProbeLaunch {
        source,
        entry: "peak".into(),
        args: vec![ProbeArgument::Buffer(0)],
        global: [items, 1, 1],
        local: Some([local, 1, 1]),
        options: "",
    };
    (launch, items * TURNS * chains as u64 * 2 * u64::from(vector))
}

/// Bytes a second that a copy reads and writes, both counted.
pub fn copy_bytes_per_s(probe: &Probe, device: &DeviceFacts, target: &Target) -> Result<f64> {
    let (vector, run, local) = match target.class {
        DeviceClass::Cpu => (target.vector_width.clamp(4, 16), COPY_RUN, 1),
        DeviceClass::Gpu | DeviceClass::MobileGpu => (4, 1, 64),
    };
    let group_bytes = local * run * u64::from(vector) * 4;
    // A limit that the driver does not report is 0.
    let room = [device.max_alloc_bytes, device.global_mem_bytes / 8];
    let room_bytes = room.into_iter().filter(|b| *b > 0).fold(COPY_BYTES, u64::min);
    let groups = (room_bytes / group_bytes).max(1);
    let launch = ProbeLaunch {
        source: format!(
            "kernel void copy(global const float *x, global float *y) {{\n\
             for (int i = 0; i < {run}; i++) {{\n\
             const size_t at = get_global_id(0) * {run} + i;\n\
             vstore{vector}(vload{vector}(at, x), at, y);\n}}\n}}"
        ),
        entry: "copy".into(),
        args: vec![ProbeArgument::Buffer(0), ProbeArgument::Buffer(1)],
        global: [groups * local, 1, 1],
        local: Some([local, 1, 1]),
        options: "",
    };
    let bytes = groups * group_bytes;
    let prepared = probe.prepare(&[launch], &[vec![0; bytes as usize], vec![0; bytes as usize]])?;
    // The driver may compile at the first run, and the pages of the result do not exist yet.
    probe.time(&prepared, 1)?;
    let mut best = f64::INFINITY;
    for _ in 0..COPY_RUNS {
        best = best.min(probe.time(&prepared, COPIES)? / COPIES as f64);
    }
    Ok(2.0 * bytes as f64 / best)
}

/// Seconds of an empty launch among many.
pub fn launch_seconds(probe: &Probe) -> Result<f64> {
    let launch = ProbeLaunch {
        source: "kernel void empty(global float *out) { if (get_global_id(0)) out[0] = 0; }".into(),
        entry: "empty".into(),
        args: vec![ProbeArgument::Buffer(0)],
        global: [1, 1, 1],
        local: Some([1, 1, 1]),
        options: "",
    };
    let prepared = probe.prepare(&[launch], &[vec![0; 4]])?;
    probe.time(&prepared, EMPTY_LAUNCHES)?;
    Ok(probe.time(&prepared, EMPTY_LAUNCHES)? / EMPTY_LAUNCHES as f64)
}
