//! The device of the tests.

use anyhow::Result;
use kiln_kernels::{DeviceClass, Launch, Lowering, Problem, SourceText, program};
use kiln_runtime::device::{self, AVX_VNNI, AVX512_VNNI, DeviceFacts, DeviceType};
use kiln_runtime::probe::Probe;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::half;
use crate::loaded::{Loaded, Source};
use crate::values::every;

/// The device of the tests: `KILN_TEST_DEVICE`, else `auto`, in the form of `--device`. Panics if
/// there is none.
pub fn device() -> DeviceFacts {
    let wanted = std::env::var("KILN_TEST_DEVICE").unwrap_or_else(|_| "auto".into());
    device::select(&wanted).unwrap_or_else(|error| panic!("{error}"))
}

/// Kernels of a program, as in bundles.
const KERNELS: usize = 8;
const UNOPTIMIZED: &str = "-cl-opt-disable";
/// For oclgrind's compiler: an error needs its line. What variables are where takes the compiler
/// minutes for a long kernel.
const LINES_ALONE: &str = "-debug-info-kind=line-tables-only";

/// An OpenCL device that runs kernels of all targets. Missing instructions are emulated.
pub struct Runner {
    probe: Probe,
    name: String,
    vendor: String,
    /// The device is a CPU.
    cpu: bool,
    /// Options of the driver's compiler.
    options: &'static str,
    /// Names of extensions and instructions of the device.
    extensions: Vec<String>,
    half: OnceLock<half::Way>,
    /// Sources of launches in programs of several, by source and entry of the launch.
    joined: Mutex<HashMap<(SourceText, &'static str), Source>>,
}

impl Runner {
    /// The [`device`] of the tests, opened once for all tests of a binary.
    pub fn shared() -> &'static Self {
        static RUNNER: OnceLock<Runner> = OnceLock::new();
        RUNNER.get_or_init(|| {
            let device = self::device();
            let probe = Probe::open(&device).expect("it opens");
            let options = if device.name.contains("Oclgrind") { LINES_ALONE } else { "" };
            Self {
                probe,
                options,
                name: device.name,
                vendor: device.vendor,
                cpu: device.device_type == DeviceType::Cpu,
                extensions: device.extensions,
                half: OnceLock::new(),
                joined: Mutex::default(),
            }
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
        let Source { text, options, entry } = self.source(launch);
        let built = self.probe.build_kernels(&text, options, &[&entry]);
        built.unwrap_or_else(|error| panic!("{}\n{error}", numbered(&text)));
    }

    /// Puts the kernels of lowerings for a class of devices, which will be loaded, into programs of
    /// [`KERNELS`]: drivers compile such a program in less time than as many programs. A driver for
    /// CPUs compiles kernels for other devices without optimization, or with it if `KILN_EVERY` is
    /// 1. Kernels that have been joined before, or need options of their own, are left as they are.
    pub fn join<'a>(&self, lowerings: impl IntoIterator<Item = (&'a Lowering, DeviceClass)>) {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (lowering, class) in lowerings {
            let plain = !self.cpu || class == DeviceClass::Cpu || every(2) == 1;
            for launch in &lowering.launches {
                let key = (launch.source.clone(), launch.entry);
                let source = self.source(launch);
                if source.options != self.options || joined.contains_key(&key) {
                    continue;
                }
                let part = program::part(&source.text, launch.entry);
                let options = if plain { self.options } else { UNOPTIMIZED };
                joined.insert(key.clone(), source);
                parts.entry(options).or_default().push((key, part));
            }
        }
        for (options, parts) in parts {
            for together in parts.chunks(KERNELS) {
                let text: String = together.iter().map(|(_, part)| &*part.source).collect();
                joined.extend(together.iter().map(|(key, part)| {
                    let (text, entry) = (text.clone(), part.entry.clone());
                    (key.clone(), Source { text, options, entry })
                }));
            }
        }
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
        let source = |launch: &Launch| {
            let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
            let known = joined.get(&(launch.source.clone(), launch.entry)).cloned();
            known.unwrap_or_else(|| self.source(launch))
        };
        let loaded: Result<_> =
            Loaded::with_sources(&self.probe, problem, lowering, values, &source, in_place);
        loaded.unwrap_or_else(|error| {
            let texts: BTreeSet<_> = lowering.launches.iter().map(|l| source(l).text).collect();
            let texts: Vec<_> = texts.iter().map(|text| numbered(text)).collect();
            panic!("{}\n{error:#}", texts.join("\n"))
        })
    }

    fn source(&self, launch: &Launch) -> Source {
        let entry = launch.entry.to_string();
        let nvidia = self.vendor.contains("NVIDIA");
        if let Some(emulated) = (!nvidia).then(|| without_ptx(&launch.source)).flatten() {
            // With optimizations, PoCL 3.1 computes wrong sums in some of these kernels.
            return Source { text: emulated, options: UNOPTIMIZED, entry };
        }
        let text = match launch.half_arithmetic {
            true => self.half().source(&launch.source),
            false => self.without_vnni(&launch.source).unwrap_or_else(|| launch.source.to_string()),
        };
        Source { text, options: self.options, entry }
    }
}

impl Runner {
    /// A kernel with OpenCL C in place of its VNNI instructions. `None` if it has none, or the
    /// device has them.
    fn without_vnni(&self, source: &str) -> Option<String> {
        let begin = source.find("/* VNNI:")?;
        let end = source.find("/* End of VNNI. */")?;
        let needed = if source.contains("avx512vnni") { AVX512_VNNI } else { AVX_VNNI };
        let has = self.extensions.iter().any(|name| name == needed);
        (!has).then(|| [&source[..begin], include_str!("vnni.cl"), &source[end..]].concat())
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
