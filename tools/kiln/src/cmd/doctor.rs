//! `kiln doctor`: finds OpenCL, reports faults, and tests every device.
//!
//! Only separate processes (`--worker`) touch drivers: one lists platforms and devices, then one
//! tests each device. This process collects their reports.

mod advice;
mod cases;
mod child;
mod report;
mod selftest;
mod survey;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use kiln_runtime::cli::CacheArgs;
use kiln_runtime::session::{ExecutorOptions, NotFiniteOp, Session, SessionOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::print::{self as output, printed};
use advice::Host;
use report::{Device, DeviceReport, IcdFile, Line, Report, Stop, StopKind, Survey};

/// Check that this machine can run pictures: find OpenCL, and test every device.
#[derive(clap::Args)]
#[command(
    long_about = "Check that this machine can run pictures: find OpenCL, and test every device.

Lists the OpenCL library and the drivers, and says what to install if one is missing. Compiles and \
runs a small test of each kind of kernel on each device. The exit code is 0 if a device is fit, \
otherwise 3.",
    after_help = "Examples:
  kiln doctor
  kiln doctor --device 1
  kiln doctor --json > doctor.json
  kiln doctor sd21.kiln      # which op of a bundle leaves the finite range"
)]
pub struct Args {
    /// Look for the first op of this bundle that gives numbers which are not finite
    #[arg(value_name = "FILE.kiln", conflicts_with_all = ["json", "worker"])]
    pub bundle: Option<PathBuf>,
    /// Test only this device, by its number in `kiln devices`
    #[arg(long, value_name = "INDEX")]
    pub device: Option<usize>,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
    /// Do the work in this process and print it line by line
    #[arg(long, hide = true)]
    pub worker: bool,
}

/// Examines the machine and prints a report.
///
/// Errors: no device is fit.
pub fn run(args: Args) -> Result<()> {
    if args.worker {
        return work(args.device);
    }
    if let Some(bundle) = &args.bundle {
        return check_finite(bundle, args.device);
    }
    let report = examine(args.device)?;
    if args.json {
        super::print::json(&report)?;
    } else {
        printed(|out| print(&report, out))?;
    }
    match report.fit {
        true => Ok(()),
        false => bail!(super::Unfit("no OpenCL device here is fit to run pictures".into())),
    }
}

/// Runs each network of a bundle once on ordinary numbers.
///
/// Errors: the first op that gives an infinity or NaN.
fn check_finite(bundle: &Path, device: Option<usize>) -> Result<()> {
    let programs = CacheArgs::default().programs(&[super::prepare::NAME]);
    let options = SessionOptions {
        device: device.map_or("auto".into(), |index| index.to_string()),
        executor: ExecutorOptions {
            programs,
            command_buffers: Some(false),
            ..ExecutorOptions::default()
        },
        ..SessionOptions::default()
    };
    let mut session = Session::open(bundle, &options)?;
    let found = session.first_not_finite()?;
    let (path, networks) = (bundle.display(), session.plan().networks.len());
    match found {
        None => output::line(format_args!("{path}: all ops of {networks} networks are finite")),
        Some(NotFiniteOp { network, op }) => bail!(super::Refused(format!(
            "{path}: {op} of {network} is the first op with numbers that are not finite"
        ))),
    }
}

/// The work of a separate process.
fn work(device: Option<usize>) -> Result<()> {
    match device {
        Some(index) => selftest::run(index, &mut |line| child::tell(&line)),
        None => {
            child::tell(&Line::Begin("asking for platforms".into()))?;
            child::tell(&Line::Survey(survey::here()))?;
            child::tell(&Line::End)
        }
    }
}

fn examine(only: Option<usize>) -> Result<Report> {
    let survey = survey::elsewhere(&[])?;
    let mut icd_files = survey::icd_files();
    if survey.loaded && (survey.error.is_some() || survey.platforms.len() < icd_files.len()) {
        survey::ask_each(&mut icd_files)?;
    }
    let mut problems = advice::of_survey(&survey, &icd_files, &Host::here(&survey::vendors()));
    let all = survey.platforms.iter().flat_map(|platform| &platform.devices);
    let wanted: Vec<&Device> = all.filter(|d| only.is_none_or(|i| d.index == i)).collect();
    if let (Some(index), true) = (only, wanted.is_empty()) {
        let what = format!("there is no device {index}");
        problems.push(report::Finding { what, advice: vec!["see kiln devices".into()] });
    }
    let devices = wanted.into_iter().map(test).collect::<Result<Vec<_>>>()?;
    problems.extend(devices.iter().filter_map(advice::of_device));
    let fit = devices.iter().any(|device| device.fit);
    Ok(Report { fit, problems, survey, icd_files, devices })
}

/// Tests a device in a separate process.
fn test(device: &Device) -> Result<DeviceReport> {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    let start = Instant::now();
    let mut tests = vec![];
    let index = device.index.to_string();
    let stop = child::run(&["--device", &index], &[], &mut |line| match line {
        Line::Begin(what) => bar.set_message(format!("{}: {what}", device.name)),
        Line::Outcome(outcome) => tests.push(outcome),
        Line::Survey(_) | Line::End => {}
    })?;
    bar.finish_and_clear();
    let fit = stop.is_none() && !tests.is_empty() && tests.iter().all(|t| t.fault.is_none());
    let seconds = start.elapsed().as_secs_f64();
    let families = cases::cases().len();
    Ok(DeviceReport { device: device.clone(), fit, stop, families, seconds, tests })
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    print_found(&report.survey, &report.icd_files, out)?;
    for device in &report.devices {
        print_device(device, out)?;
    }
    for problem in &report.problems {
        writeln!(out, "\nproblem: {}", problem.what)?;
        for step in &problem.advice {
            writeln!(out, "  - {step}")?;
        }
    }
    Ok(())
}

fn print_found(survey: &Survey, files: &[IcdFile], out: &mut dyn Write) -> io::Result<()> {
    match (&survey.library, survey.loaded) {
        (Some(path), _) => writeln!(out, "OpenCL library: {path}")?,
        (None, true) => writeln!(out, "OpenCL library: there, its file is not known")?,
        (None, false) => writeln!(out, "OpenCL library: none")?,
    }
    if files.is_empty() {
        writeln!(out, "drivers: none in {}", survey::vendors().display())?;
    }
    for file in files {
        let found = file.found.as_deref().unwrap_or("found by no usual path");
        writeln!(out, "driver: {} -> {} ({found})", file.path, file.library)?;
    }
    for platform in &survey.platforms {
        let count = platform.devices.len();
        writeln!(out, "platform: {} ({}), {count} devices", platform.name, platform.version)?;
    }
    Ok(())
}

fn print_device(report: &DeviceReport, out: &mut dyn Write) -> io::Result<()> {
    let device = &report.device;
    let verdict = if report.fit { "fit" } else { "NOT FIT" };
    writeln!(out, "\ndevice {}: {}: {verdict}", device.index, device.name)?;
    writeln!(out, "  {}, driver {}, profile {}", device.platform, device.driver, device.profile)?;
    let (passed, families, seconds) = (report.passed(), report.families, report.seconds);
    writeln!(out, "  {passed} of {families} kernel families pass, f32 and f16, in {seconds:.1} s")?;
    if !device.keeps_budget {
        writeln!(
            out,
            "  cannot keep a memory budget: the driver compiles kernels at their first launch, in \
             the process that makes the picture"
        )?;
    }
    if device.name.contains("llvmpipe") {
        writeln!(out, "  takes minutes a step; for this CPU: apt install pocl-opencl-icd")?;
    }
    for storage in ["f32", "f16"] {
        let Some(worst) = report.worst(storage).filter(|_| report.fit) else { continue };
        let (family, error) = (&worst.family, worst.worst_error);
        let part = 100.0 * worst.of_allowed;
        writeln!(
            out,
            "  {storage}: rounding is largest in {family}, {error:.1e}, {part:.0} % of its bound"
        )?;
    }
    for test in &report.tests {
        let Some(fault) = &test.fault else { continue };
        writeln!(out, "  FAILED {}/{} {}: {fault}", test.family, test.variant, test.storage)?;
        if test.worst_error > 0.0 {
            writeln!(out, "    worst error {:.1e}", test.worst_error)?;
        }
    }
    if let Some(Stop { kind, what }) = &report.stop {
        let kind = match kind {
            StopKind::Crash => "CRASHED",
            StopKind::Timeout => "TIMED OUT",
            StopKind::Error => "FAILED",
        };
        writeln!(out, "  {kind}: {what}")?;
    }
    Ok(())
}
