//! `kiln arena`: the planner's offset search on a problem from a file.

use anyhow::{Context, Result, bail};
use kiln_bundle::whole;
use kiln_compiler::plan::arena::run_csv;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::size;

/// Place buffers with live ranges in one arena (the format of MiniMalloc's benchmarks).
#[derive(clap::Args)]
#[command(after_help = "Example:
  kiln arena compiler/tests/data/minimalloc/A.1048576.csv --capacity 1048576")]
pub struct Args {
    /// CSV file, one buffer a line: id,lower,upper,size or id,lower,upper,size,alignment
    pub file: PathBuf,
    /// Size of the arena, such as 1MiB [default: as small as the search finds]
    #[arg(long, value_parser = size::parse)]
    pub capacity: Option<u64>,
    /// Stop the search after this many seconds. The answer then depends on the machine
    #[arg(long)]
    pub time_limit: Option<f64>,
    /// File to write: the same lines with offsets
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

/// Solves the problem and prints the quality of the solution.
pub fn run(args: Args) -> Result<()> {
    let path = args.file.display();
    if let Some(output) = &args.output {
        super::files::check([("the problem", args.file.as_path())], "--output", output, None)?;
    }
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("reading {path}"))?;
    let limit = match args.time_limit {
        Some(s) => Some(Duration::try_from_secs_f64(s).context("--time-limit")?),
        None => None,
    };
    let start = Instant::now();
    let report = run_csv(&text, args.capacity, limit).with_context(|| path.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    if !report.fits() {
        super::print::line(format_args!("{path}: {report}; {seconds:.3} s"))?;
        bail!(super::Refused(format!("{path} was not placed in its capacity")));
    }
    if let Some(output) = &args.output {
        whole::write(output, |file| file.write_all(report.csv.as_bytes()))
            .with_context(|| format!("writing {}", output.display()))?;
    }
    super::print::line(format_args!("{path}: {report}; {seconds:.3} s"))
}
