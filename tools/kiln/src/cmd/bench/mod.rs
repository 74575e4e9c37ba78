//! `kiln bench`: speed of networks and single ops on a device, compared with its measured peak.

mod kernels;
mod networks;
pub mod ops;
pub mod peak;
pub mod problems;
mod shapes;
mod table2;
pub mod timing;

use anyhow::Result;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};

/// Measure networks, ops and bare kernels on this device.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln bench networks sd21.kiln
  kiln bench networks sd21.kiln --network unet --runs 9 --json
  kiln bench ops sd21.kiln --filter conv2d
  kiln bench ops --model sd21-base --network decoder --chosen
  kiln bench kernels --precision fp16
  kiln bench table2 --model sd21-base --seconds 300

Times are wall-clock times from the first launch until the device is done. The peak is the rate of
FP32 multiply-adds, measured in the same run.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum What {
    Networks(networks::Args),
    Ops(ops::Args),
    Kernels(kernels::Args),
    Table2(table2::Args),
}

/// Runs the chosen benchmark.
pub fn run(args: Args) -> Result<()> {
    match args.what {
        What::Networks(args) => networks::run(args),
        What::Ops(args) => ops::run(args),
        What::Kernels(args) => kernels::run(args),
        What::Table2(args) => table2::run(args),
    }
}

/// A progress bar over `count` measurements. Hidden unless standard error is a terminal.
pub fn bar(count: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(count as u64);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} {elapsed} {msg:40}")?);
    Ok(bar)
}

/// The median; the larger of the two middle values. 0 if there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// The smallest value; infinity if there are none.
pub fn best(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Seconds as `12.3 ms` or `4.56 s`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.*} ms", if s < 0.01 { 3 } else { 1 }, s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Processor seconds of this process, in steps of a hundredth. `None` if the system does not report
/// them.
pub fn processor_seconds() -> Option<f64> {
    /// Unit of the system's counters.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may contain anything, stand the state and then numbers.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_durations() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(best(&[3.0, 1.0, 2.0]), 1.0);
        let shown = [1.5, 0.25, 0.0012].map(duration);
        assert_eq!(shown, ["1.50 s", "250.0 ms", "1.200 ms"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_takes_processor_time() {
        let before = processor_seconds().unwrap();
        let mut sum = 0u64;
        while processor_seconds().unwrap() < before + 0.02 {
            sum = (0..1u64 << 20).fold(sum, |a, b| a.wrapping_mul(31) ^ b);
        }
        assert!(std::hint::black_box(sum) != 1);
    }
}
