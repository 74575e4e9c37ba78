//! The device of the tests.

use anyhow::Result;
use kiln_kernels::{Launch, Lowering, Problem};
use kiln_runtime::device::{self, DeviceFacts};
use kiln_runtime::probe::Probe;
use std::sync::OnceLock;

use crate::half;
use crate::loaded::{Loaded, Source};

/// The device of the tests: `KILN_TEST_DEVICE`, else `auto`, in the form of `--device`. Panics if
/// there is none.
pub fn device() -> DeviceFacts {
    let wanted = std::env::var("KILN_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    device::select(&wanted).unwrap_or_else(|error| panic!("{error}"))
}

/// An OpenCL device that runs kernels of all targets. Missing instructions are emulated.
pub struct Runner {
    probe: Probe,
    name: String,
    vendor: String,
    half: OnceLock<half::Way>,
}

impl Runner {
    /// The [`device`] of the tests, opened once for all tests of a binary.
    pub fn shared() -> &'static Self {
        static RUNNER: OnceLock<Runner> = OnceLock::new();
        RUNNER.get_or_init(|| {
            let device = self::device();
            let probe = Probe::open(&device).expect("it opens");
            Self { probe, name: device.name, vendor: device.vendor, half: OnceLock::new() }
        })
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Vendor of the device.
    pub fn vendor(&self) -> &str {
        &self.vendor
    }

    /// Support of the device for half arithmetic.
    pub fn half(&self) -> half::Way {
        *self.half.get_or_init(|| half::Way::find(|trial| self.builds_trial(trial)))
    }

    /// Whether the device builds one of [`half::trials`].
    pub fn builds_trial(&self, source: &str) -> bool {
        self.probe.build_kernels(source, "", &[half::TRIAL, half::KERNEL]).is_ok()
    }

    /// Builds the kernel of a launch. Panics with the numbered source if it does not build.
    pub fn build(&self, launch: &Launch) {
        let (source, options) = self.source(launch);
        let built = self.probe.build_kernels(&source, options, &[launch.entry]);
        built.unwrap_or_else(|error| panic!("{}\n{error}", numbered(&source)));
    }

    /// A lowering on the device. Panics with the numbered source of a kernel that does not build.
    pub fn load(&self, problem: &Problem, lowering: &Lowering, values: &[Vec<f32>]) -> Loaded<'_> {
        self.load_with(problem, lowering, values, None)
    }

    /// [`Runner::load`] with the output in the memory of an input of the same type.
    pub fn load_in_place(
        &self,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
        input: usize,
    ) -> Loaded<'_> {
        self.load_with(problem, lowering, values, Some(input))
    }

    fn load_with(
        &self,
        problem: &Problem,
        lowering: &Lowering,
        values: &[Vec<f32>],
        in_place: Option<usize>,
    ) -> Loaded<'_> {
        let source = |launch: &Launch| self.source(launch);
        let loaded: Result<_> =
            Loaded::with_sources(&self.probe, problem, lowering, values, &source, in_place);
        loaded.unwrap_or_else(|error| {
            let sources = lowering.launches.iter().map(|launch| numbered(&source(launch).0));
            panic!("{}\n{error:#}", sources.collect::<Vec<_>>().join("\n"))
        })
    }

    fn source(&self, launch: &Launch) -> Source {
        let nvidia = self.vendor.contains("NVIDIA");
        if let Some(emulated) = (!nvidia).then(|| without_ptx(&launch.source)).flatten() {
            // With optimizations, PoCL 3.1 computes wrong sums in some of these kernels.
            return (emulated, "-cl-opt-disable");
        }
        match launch.half_arithmetic {
            true => (self.half().source(&launch.source), ""),
            false => (launch.source.to_string(), ""),
        }
    }
}

/// A kernel with OpenCL C in place of its inline PTX. `None` if it has no PTX.
fn without_ptx(source: &str) -> Option<String> {
    let begin = source.find("/* PTX of")?;
    let end = source.find("/* End of PTX. */")?;
    let emulated = [&source[..begin], include_str!("ptx.cl"), &source[end..]].concat();
    // Unrolling loops with barriers is not worth its time.
    let rolled = emulated.replace("    #pragma unroll\n", "\n");
    let area = "    __local uint ptx_area[256][6];\n    __local uint4 memory";
    Some(rolled.replace("    __local uint4 memory", area))
}

fn numbered(source: &str) -> String {
    source.lines().enumerate().map(|(i, l)| format!("{:4} {l}\n", i + 1)).collect()
}
