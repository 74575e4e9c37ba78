//! Turns observations into advice. Knows packages of Debian and conventions of Android.

use std::path::Path;

use super::report::{DeviceReport, Finding, IcdFile, Platform, Stop, StopKind, Survey};

/// Facts about the machine that need no OpenCL.
#[derive(Clone, Default)]
pub struct Host {
    /// Whether the machine runs Android.
    pub android: bool,
    /// Vendors' libraries that exist, also if the loader does not find them.
    pub vendor_libraries: Vec<String>,
    /// Device files of GPUs, and whether this process may open them.
    pub gpu_files: Vec<(String, bool)>,
    /// The folder or file in which the loader looks for drivers.
    pub vendors: String,
    /// Whether the environment names `vendors`.
    pub vendors_named: bool,
    /// Value of `OPENCL_DYLIB_PATH`.
    pub library_named: Option<String>,
}

/// Places of the GPU's library on phones and boards.
const VENDOR_LIBRARIES: [&str; 7] = [
    "/vendor/lib64/libOpenCL.so",
    "/system/vendor/lib64/libOpenCL.so",
    "/vendor/lib64/egl/libGLES_mali.so",
    "/system/lib64/libOpenCL.so",
    "/usr/lib/aarch64-linux-gnu/libmali.so",
    "/usr/lib/aarch64-linux-gnu/libmali.so.1",
    "/usr/lib/libmali.so",
];

/// Device files of Mali, Adreno, NVIDIA and AMD.
const GPU_FILES: [&str; 4] = ["/dev/mali0", "/dev/kgsl-3d0", "/dev/nvidiactl", "/dev/kfd"];

impl Host {
    /// Examines this machine.
    pub fn here(vendors: &Path) -> Host {
        let there = |path: &&str| Path::new(path).exists();
        let mut files: Vec<String> =
            GPU_FILES.iter().filter(|path| there(path)).map(|path| path.to_string()).collect();
        if let Ok(entries) = std::fs::read_dir("/dev/dri") {
            let paths = entries.flatten().map(|entry| entry.path().display().to_string());
            files.extend(paths.filter(|path| path.contains("renderD")));
        }
        let open =
            |path: &String| std::fs::OpenOptions::new().read(true).write(true).open(path).is_ok();
        Host {
            android: cfg!(target_os = "android") || there(&"/system/build.prop"),
            vendor_libraries: (VENDOR_LIBRARIES.iter().filter(|path| there(path)))
                .map(|path| path.to_string())
                .collect(),
            gpu_files: files.into_iter().map(|path| (path.clone(), open(&path))).collect(),
            vendors: vendors.display().to_string(),
            vendors_named: ["OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"]
                .iter()
                .any(|name| std::env::var_os(name).is_some()),
            library_named: std::env::var("OPENCL_DYLIB_PATH").ok(),
        }
    }

    fn drivers(&self) -> Vec<String> {
        if self.android {
            return self.android_steps();
        }
        let mut steps = vec![
            "any CPU: apt install pocl-opencl-icd".to_string(),
            "Intel GPU: apt install intel-opencl-icd".into(),
            "NVIDIA GPU: apt install nvidia-opencl-icd (of Debian non-free)".into(),
            "AMD or other GPU: apt install mesa-opencl-icd, and set RUSTICL_ENABLE=radeonsi \
             (or the name of the GPU's Mesa driver)"
                .into(),
        ];
        steps.extend(self.vendor_steps());
        steps
    }

    fn vendor_steps(&self) -> Option<String> {
        let library = self.vendor_libraries.first()?;
        Some(format!("a vendor's library is here: set OPENCL_DYLIB_PATH={library}"))
    }

    fn android_steps(&self) -> Vec<String> {
        let mut steps: Vec<String> = self.vendor_steps().into_iter().collect();
        if steps.is_empty() {
            steps.push(
                "look for the GPU's library: ls /vendor/lib64/libOpenCL.so \
                 /vendor/lib64/egl/libGLES_mali.so, and set OPENCL_DYLIB_PATH to it"
                    .into(),
            );
        }
        steps.push("in adb shell, also set LD_LIBRARY_PATH=/vendor/lib64".into());
        steps.push(
            "in an app, name it in the manifest: \
             <uses-native-library android:name=\"libOpenCL.so\" android:required=\"false\"/>"
                .into(),
        );
        steps
    }

    fn permissions(&self) -> Vec<String> {
        let closed = self.gpu_files.iter().filter(|(_, open)| !open).map(|(path, _)| {
            format!(
                "{path} may not be opened: add yourself to its group (usually render or video: \
                 usermod -aG render,video $USER) and log in again"
            )
        });
        closed.collect()
    }
}

/// Faults that are known before any device is tested.
pub fn of_survey(survey: &Survey, files: &[IcdFile], host: &Host) -> Vec<Finding> {
    let mut problems = vec![];
    if !survey.loaded {
        return vec![no_library(host)];
    }
    if let Some(error) = &survey.error {
        let what = format!("the drivers fail when they are asked for platforms: {error}");
        let advice = match files.iter().any(|file| file.fault.is_some()) {
            true => vec![],
            false => vec![format!("try the drivers of {} one by one", host.vendors)],
        };
        problems.push(Finding { what, advice });
    } else if survey.platforms.is_empty() {
        problems.push(no_platform(files, host));
    }
    problems.extend(files.iter().filter_map(of_file));
    problems.extend(survey.platforms.iter().filter_map(|platform| of_platform(platform, host)));
    problems
}

fn no_library(host: &Host) -> Finding {
    let mut what = "there is no OpenCL library (libOpenCL.so.1)".to_string();
    if let Some(named) = &host.library_named {
        what += &format!(", and OPENCL_DYLIB_PATH names {named}, which cannot be loaded");
    }
    let mut advice = vec![];
    if !host.android {
        advice.push("apt install ocl-icd-libopencl1, and a driver:".to_string());
    }
    advice.extend(host.drivers());
    Finding { what, advice }
}

fn no_platform(files: &[IcdFile], host: &Host) -> Finding {
    let place = &host.vendors;
    if !files.is_empty() {
        let what = format!("no driver of {place} offers a platform");
        return Finding { what, advice: host.permissions() };
    }
    let what = format!("the OpenCL library finds no driver: no .icd file in {place}");
    let mut advice = vec![];
    if host.vendors_named {
        advice.push("unset OCL_ICD_VENDORS and OPENCL_VENDOR_PATH, or correct them".to_string());
    }
    advice.extend(host.drivers());
    Finding { what, advice }
}

fn of_file(file: &IcdFile) -> Option<Finding> {
    let IcdFile { path, library, found, fault } = file;
    let fault = fault.as_ref()?;
    let missing = found.is_none();
    let why = if library.is_empty() {
        "it is empty".to_string()
    } else if missing {
        format!("its library {library} is not there")
    } else {
        fault.clone()
    };
    let advice = if missing {
        format!("install the driver again (dpkg -S {path} names its package), or remove the file")
    } else {
        format!("update the driver, or remove {path}; to use one driver: OCL_ICD_VENDORS=FILE.icd")
    };
    Some(Finding { what: format!("{path} is no use: {why}"), advice: vec![advice] })
}

fn of_platform(platform: &Platform, host: &Host) -> Option<Finding> {
    let name = &platform.name;
    if let Some(error) = &platform.error {
        let what = format!("platform {name} fails: {error}");
        let own = match error.contains("POCL_CACHE_DIR") {
            true => "give PoCL a folder: export POCL_CACHE_DIR=\"$(mktemp -d)\"",
            false => "update its driver",
        };
        let advice = [vec![own.to_string()], host.permissions()].concat();
        return Some(Finding { what, advice });
    }
    if !platform.devices.is_empty() {
        return None;
    }
    let mut advice = host.permissions();
    let lower = name.to_lowercase();
    if lower.contains("nvidia") {
        advice
            .push("load the kernel module (nvidia-modprobe); compare versions: nvidia-smi".into());
    } else if lower.contains("rusticl") {
        advice.push("set RUSTICL_ENABLE to the GPU's Mesa driver, such as radeonsi or iris".into());
    } else if lower.contains("arm") || lower.contains("mali") {
        advice.push("Mali: the library and the kernel driver (/dev/mali0) must match".into());
    }
    if host.gpu_files.is_empty() {
        advice.push(
            "this machine shows no GPU (nothing in /dev/dri); in a container, pass it in".into(),
        );
    }
    advice.push("any CPU works with: apt install pocl-opencl-icd".into());
    Some(Finding { what: format!("platform {name} has no device"), advice })
}

/// The fault of a device that is not fit.
pub fn of_device(report: &DeviceReport) -> Option<Finding> {
    if report.fit {
        return None;
    }
    let name = format!("device {} ({})", report.device.index, report.device.name);
    let what = match &report.stop {
        Some(Stop { what, .. }) => format!("{name} is not fit: the driver {what}"),
        None => {
            let (passed, families) = (report.passed(), report.families);
            format!("{name} is not fit: {passed} of {families} kernel families pass")
        }
    };
    let is_slow = report.stop.as_ref().is_some_and(|stop| stop.kind == StopKind::Timeout);
    let mut advice = vec![
        "update its driver, or choose another device with --device".to_string(),
        "report it with the output of: kiln doctor --json".into(),
    ];
    if is_slow {
        advice.insert(0, "close other programs and try again: it may only be slow".into());
    }
    Some(Finding { what, advice })
}

#[cfg(test)]
mod tests {
    use super::super::report::Device;
    use super::*;

    fn text(problems: &[Finding]) -> String {
        problems.iter().map(|p| format!("{}\n{}\n", p.what, p.advice.join("\n"))).collect()
    }

    fn loaded() -> Survey {
        Survey { loaded: true, ..Survey::default() }
    }

    fn platform(name: &str, error: Option<&str>) -> Survey {
        let error = error.map(str::to_string);
        let (vendor, version) = (String::new(), String::new());
        let platform = Platform { name: name.into(), vendor, version, error, devices: vec![] };
        Survey { platforms: vec![platform], ..loaded() }
    }

    #[test]
    fn without_a_library_packages_are_named() {
        let host = Host { library_named: Some("/no/such.so".into()), ..Host::default() };
        let text = text(&of_survey(&Survey::default(), &[], &host));
        for part in ["ocl-icd-libopencl1", "pocl-opencl-icd", "/no/such.so"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn on_android_the_vendors_library_is_named() {
        let library = "/vendor/lib64/libOpenCL.so".to_string();
        let mut host = Host { android: true, ..Host::default() };
        let general = text(&of_survey(&Survey::default(), &[], &host));
        assert!(general.contains("libGLES_mali.so") && !general.contains("apt"), "{general}");
        host.vendor_libraries.push(library);
        let found = text(&of_survey(&Survey::default(), &[], &host));
        assert!(found.contains("OPENCL_DYLIB_PATH=/vendor/lib64/libOpenCL.so"), "{found}");
        assert!(found.contains("uses-native-library"), "{found}");
    }

    #[test]
    fn a_library_that_is_gone_is_named() {
        let (path, library) = ("/etc/OpenCL/vendors/a.icd".to_string(), "liba.so.1".to_string());
        let fault = Some("it offers no platform".to_string());
        let files = [IcdFile { path, library, found: None, fault }];
        let text = text(&of_survey(&loaded(), &files, &Host::default()));
        assert!(text.contains("liba.so.1 is not there") && text.contains("dpkg -S"), "{text}");
    }

    #[test]
    fn platforms_without_devices_get_their_vendors_advice() {
        let closed = vec![("/dev/dri/renderD128".to_string(), false)];
        let host = Host { gpu_files: closed, ..Host::default() };
        for (name, part) in [
            ("NVIDIA CUDA", "nvidia-modprobe"),
            ("rusticl", "RUSTICL_ENABLE"),
            ("ARM Platform", "/dev/mali0"),
        ] {
            let text = text(&of_survey(&platform(name, None), &[], &host));
            assert!(text.contains(part) && text.contains("render,video"), "{text}");
        }
        let text = text(&of_survey(&platform("X", Some("CL_OUT_OF_HOST_MEMORY")), &[], &host));
        assert!(text.contains("fails: CL_OUT_OF_HOST_MEMORY"), "{text}");
    }

    #[test]
    fn a_timeout_is_not_said_to_be_a_crash() {
        let device = Device {
            index: 0,
            name: "X".into(),
            platform: String::new(),
            driver: String::new(),
            version: String::new(),
            profile: String::new(),
            keeps_budget: true,
        };
        let tests = vec![];
        let (kind, what) = (StopKind::Timeout, "took more than 120 seconds".into());
        let stop = Some(Stop { kind, what });
        let report = DeviceReport { device, fit: false, stop, families: 24, seconds: 120.0, tests };
        let text = text(&[of_device(&report).unwrap()]);
        assert!(text.contains("took more than 120 seconds"), "{text}");
        assert!(text.contains("may only be slow") && !text.contains("crash"), "{text}");
    }
}
