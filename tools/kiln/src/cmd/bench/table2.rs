//! `kiln bench table2`: the networks in the configurations of table 2 of a thesis, and in Kiln's.
//!
//! The thesis ported Stable Diffusion v2.1 to OpenCL on a Samsung Galaxy S21;
//! docs/benchmarks/mali.md has its figures.

use anyhow::{Context, Result};
use kiln_bundle::BundleFile;
use kiln_kernels::{Variant, family};
use kiln_runtime::probe::Probe;
use kiln_testkit::Loaded;
use serde::Serialize;
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use super::peak::Peak;
use super::problems::{Item, Resolved, Subject, resolve};
use super::timing::{inputs, time};
use crate::cmd::print::{self, printed};

/// Measure networks by naive kernels, im2col, im2win, im2win with tiled matmul, and as compiled
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln bench table2 --model sd21-base
  kiln bench table2 sd21.kiln --seconds 600 --json

The rows are those of table 2 of a thesis that ported Stable Diffusion v2.1 to OpenCL on a phone.
docs/benchmarks/mali.md has its figures.

Each op is measured alone, once for each of its shapes. The next op is the largest one of the
network that has had the least time, until the time is up. Unmeasured ops of a network are assumed
to run at the rate of the measured ones. A network without any measurement has a -, in JSON null.
An op of more than a second is timed by a part of its work-items.")]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Begin no further op after this many seconds. Unless it is 0, one op of each network is
    /// measured
    #[arg(long, default_value_t = 150)]
    seconds: u64,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// A row of the table. For each op it takes the first of the named variants that applies, and the
/// compiler's choice for all other ops.
struct Way {
    name: &'static str,
    conv2d: &'static [&'static str],
    matmul: &'static [&'static str],
    /// All other ops use naive kernels.
    others_naive: bool,
    /// Weights are read before a network's launches, not while they run.
    reads_first: bool,
}

const TILED: &[&str] = &["tiled", "naive"];
const NAIVE: &[&str] = &["naive"];

const WAYS: &[Way] = &[
    Way { name: "naive", conv2d: NAIVE, matmul: NAIVE, others_naive: true, reads_first: true },
    Way {
        name: "im2col",
        conv2d: &["im2col"],
        matmul: NAIVE,
        others_naive: false,
        reads_first: true,
    },
    Way {
        name: "im2win",
        conv2d: &["im2win"],
        matmul: NAIVE,
        others_naive: false,
        reads_first: true,
    },
    Way {
        name: "im2win, tiled matmul",
        conv2d: &["im2win"],
        matmul: TILED,
        others_naive: false,
        reads_first: true,
    },
    Way { name: "kiln", conv2d: &[], matmul: &[], others_naive: false, reads_first: false },
];

impl Way {
    fn variant(&self, item: &Item, resolved: &Resolved) -> Option<&'static Variant> {
        let (problem, target) = (item.problem(), &resolved.profile.target);
        let op = problem.op.name();
        let names = match op {
            "conv2d" => self.conv2d,
            "matmul" => self.matmul,
            _ if self.others_naive => NAIVE,
            _ => &[],
        };
        let variants = family(op).map_or(&[][..], |f| f.variants);
        let named = |name: &&str| variants.iter().find(|v| v.name == *name);
        let mut found = names.iter().filter_map(named);
        let found = found.find(|v| v.applies(&problem, target));
        found.or_else(|| resolved.variants(&problem).ok()?.first().copied())
    }
}

/// A row of the result.
#[derive(Serialize)]
struct Row {
    way: &'static str,
    networks: Vec<Cell>,
}

/// Times of a network. `None` if none of its ops was measured.
#[derive(Clone, Serialize)]
struct Cell {
    network: String,
    seconds: Option<f64>,
    seconds_with_io: Option<f64>,
    /// Part of the arithmetic in ops that were measured.
    measured_part: f64,
}

/// The result of the command, as `--json` prints it.
#[derive(Serialize)]
struct Measured {
    device: String,
    model: String,
    profile: String,
    peak_flops_per_s: f64,
    read_bytes_per_s: f64,
    /// Whether the rate was measured with the bundle. Otherwise it is the profile's.
    read_measured: bool,
    batches: HashMap<String, usize>,
    flops: HashMap<String, u64>,
    rows: Vec<Row>,
}

/// Measures and prints the result.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let resolved = resolve(&args.subject, &[])?;
    let probe = Probe::open(&resolved.device)?;
    let target = &resolved.profile.target;
    let peak = Peak::new(&probe, target)?;
    let (read_bytes_per_s, read_measured) = match &args.subject.bundle {
        Some(path) => (read_rate(path)?, true),
        None => (resolved.profile.rates.io_bytes_per_s, false),
    };
    let go_on =
        |spent: f64| started.elapsed().as_secs() < args.seconds || args.seconds > 0 && spent == 0.0;
    let times = measure(&probe, &resolved, &go_on)?;
    let networks = names(&resolved.items);
    let row = |way: &'static Way| Row {
        way: way.name,
        networks: networks
            .iter()
            .map(|name| cell(way, name, &resolved, &times, read_bytes_per_s))
            .collect(),
    };
    let flops = |name: &&str| (name.to_string(), sum(&resolved.items, name, Item::flops));
    let measured = Measured {
        device: resolved.device.name.clone(),
        model: resolved.model.clone(),
        profile: resolved.profile_name.clone(),
        peak_flops_per_s: peak.flops_per_s,
        read_bytes_per_s,
        read_measured,
        batches: resolved.batches.clone(),
        flops: networks.iter().map(flops).collect(),
        rows: WAYS.iter().map(row).collect(),
    };
    match args.json {
        true => print::json(&measured),
        false => printed(|out| print(&measured, out)),
    }
}

/// Names of the networks, in order.
fn names(items: &[Item]) -> Vec<&str> {
    let mut names: Vec<&str> = items.iter().map(|i| i.network.as_str()).collect();
    names.dedup();
    names
}

fn sum(items: &[Item], network: &str, figure: impl Fn(&Item) -> u64) -> u64 {
    let items = items.iter().filter(|i| i.network == network);
    items.map(|i| figure(i) * i.count as u64).sum()
}

/// Seconds by index of an item and name of a variant.
type Times = HashMap<(usize, &'static str), f64>;

/// Items of a network that wait to be measured, those with the most arithmetic last, and the
/// seconds spent on the network.
struct Turn {
    waiting: Vec<usize>,
    spent: f64,
}

impl Turn {
    fn new(network: &str, items: &[Item]) -> Self {
        let own = |i: &usize| items[*i].network == network;
        let mut waiting: Vec<usize> = (0..items.len()).filter(own).collect();
        waiting.sort_by_key(|i| items[*i].flops() * items[*i].count as u64);
        Self { waiting, spent: 0.0 }
    }

    /// The network with the least time spent among those with waiting items.
    fn next(turns: &mut [Self]) -> Option<&mut Self> {
        let waiting = turns.iter_mut().filter(|turn| !turn.waiting.is_empty());
        waiting.min_by(|a, b| a.spent.total_cmp(&b.spent))
    }
}

/// Times the variants of all rows, the networks in turn, until `go_on` returns false for the
/// seconds spent on the next one.
fn measure(probe: &Probe, resolved: &Resolved, go_on: &dyn Fn(f64) -> bool) -> Result<Times> {
    let target = &resolved.profile.target;
    let items = &resolved.items;
    let mut turns: Vec<Turn> = names(items).into_iter().map(|n| Turn::new(n, items)).collect();
    let bar = super::bar(items.len())?;
    let mut times = Times::new();
    while let Some(turn) = Turn::next(&mut turns).filter(|turn| go_on(turn.spent)) {
        let Some(index) = turn.waiting.pop() else { break };
        let started = Instant::now();
        let item = &items[index];
        bar.set_message(item.first.clone());
        let problem = item.problem();
        let values = inputs(&problem);
        for variant in WAYS.iter().filter_map(|way| way.variant(item, resolved)) {
            if times.contains_key(&(index, variant.name)) {
                continue;
            }
            let lowering = variant.lower(&problem, &target.tuned(&problem))?;
            let timed = Loaded::new(probe, &problem, &lowering, &values)
                .and_then(|loaded| time(&loaded))
                .with_context(|| format!("{} {problem}", variant.name))?;
            times.insert((index, variant.name), timed.seconds);
        }
        turn.spent += started.elapsed().as_secs_f64();
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(times)
}

fn cell(way: &Way, network: &str, resolved: &Resolved, times: &Times, read_rate: f64) -> Cell {
    let own = || resolved.items.iter().enumerate().filter(|(_, item)| item.network == network);
    let (mut seconds, mut flops, mut rest) = (0.0, 0u64, 0u64);
    for (index, item) in own() {
        let work = item.flops() * item.count as u64;
        let time = way.variant(item, resolved).and_then(|v| times.get(&(index, v.name)));
        match time {
            Some(time) => {
                seconds += time * item.count as f64;
                flops += work;
            }
            None => rest += work,
        }
    }
    // The time of unmeasured ops is extrapolated from measured arithmetic, or there are none.
    let known = seconds > 0.0 && (flops > 0 || rest == 0);
    let seconds = known.then(|| seconds * (1.0 + rest as f64 / flops.max(1) as f64));
    let read_seconds = sum(&resolved.items, network, Item::weight_bytes) as f64 / read_rate;
    let seconds_with_io = seconds.map(|seconds| match way.reads_first {
        true => seconds + read_seconds,
        false => seconds.max(read_seconds),
    });
    let measured_part = flops as f64 / (flops + rest).max(1) as f64;
    Cell { network: network.to_string(), seconds, seconds_with_io, measured_part }
}

/// Rate of reading a bundle's weights as in a run, measured for about two seconds.
fn read_rate(path: &Path) -> Result<f64> {
    const CHUNK_BYTES: u64 = 4 << 20;
    let bundle = BundleFile::open(path)?;
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let (started, mut read_bytes) = (Instant::now(), 0);
    'blocks: for block in &bundle.plan().blocks {
        for at_bytes in (0..block.len_bytes).step_by(chunk.len()) {
            let len = CHUNK_BYTES.min(block.len_bytes - at_bytes);
            bundle.read_weights(block.offset_bytes + at_bytes, &mut chunk[..len as usize])?;
            read_bytes += len;
            if started.elapsed().as_secs() >= 2 {
                break 'blocks;
            }
        }
    }
    Ok(read_bytes as f64 / started.elapsed().as_secs_f64())
}

/// A number with some decimals, more if it is too small for them; `-` if there is none.
fn figure(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = value else { return "-".into() };
    let small = value < 0.5 * 10f64.powi(1 - decimals as i32);
    if small { format!("{value:.0$}", decimals + 3) } else { format!("{value:.decimals$}") }
}

fn print(measured: &Measured, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{} for {} on {}", measured.model, measured.profile, measured.device)?;
    let from = if measured.read_measured { "measured with the bundle" } else { "the profile's" };
    writeln!(
        out,
        "FMA peak {:.0} GFLOP/s; weights are read at {:.2} GB/s ({from})",
        measured.peak_flops_per_s * 1e-9,
        measured.read_bytes_per_s * 1e-9
    )?;
    write!(out, "{:22}", "")?;
    let Some(first) = measured.rows.first() else { return Ok(()) };
    for cell in &first.networks {
        let batch = measured.batches.get(&cell.network).copied().unwrap_or(1);
        write!(out, " {:>23}", format!("{} (batch {batch})", cell.network))?;
    }
    write!(out, "\n{:22}", "seconds")?;
    for _ in &first.networks {
        write!(out, " {:>11} {:>11}", "", "with I/O")?;
    }
    writeln!(out)?;
    for row in &measured.rows {
        write!(out, "{:22}", row.way)?;
        for cell in &row.networks {
            write!(
                out,
                " {:>11} {:>11}",
                figure(cell.seconds, 3),
                figure(cell.seconds_with_io, 3)
            )?;
        }
        writeln!(out)?;
    }
    if let [.., kiln] = &measured.rows[..] {
        write!(out, "{:22}", "kiln, % of peak")?;
        for cell in &kiln.networks {
            let flops = measured.flops.get(&cell.network).copied().unwrap_or(0) as f64;
            let percent = |seconds| flops / seconds / measured.peak_flops_per_s * 100.0;
            write!(out, " {:>11} {:>11}", figure(cell.seconds.map(percent), 1), "")?;
        }
        write!(out, "\n{:22}", "measured, % of FLOP")?;
        for cell in &kiln.networks {
            write!(out, " {:>11.1} {:>11}", cell.measured_part * 100.0, "")?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "with I/O: the first four read a network's weights, then compute (the sum); kiln reads \
         while it\ncomputes (the longer of the two)"
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_neither_zero_nor_infinite() {
        assert_eq!(figure(Some(12.3456), 3), "12.346");
        assert_eq!(figure(Some(0.000123), 3), "0.000123");
        assert_eq!(figure(Some(67.61), 1), "67.6");
        assert_eq!(figure(None, 3), "-");
    }

    #[test]
    fn networks_take_turns_by_the_time_they_had() {
        let turn = |waiting: &[usize]| Turn { waiting: waiting.to_vec(), spent: 0.0 };
        let mut turns = [turn(&[1, 0]), turn(&[5, 4, 3, 2]), turn(&[])];
        let mut order = vec![];
        while let Some(turn) = Turn::next(&mut turns) {
            let index = turn.waiting.pop().expect("it waits");
            // The first network's ops take three times as long as the second's.
            turn.spent += if index < 2 { 3.0 } else { 1.0 };
            order.push(index);
        }
        assert_eq!(order, [0, 2, 3, 4, 1, 5]);
    }
}
