//! `kiln tune`: finds the fastest kernels for the shapes of a model on this device.

use anyhow::{Context, Result};
use kiln_bundle::whole;
use kiln_kernels::{Lowering, Problem, Target, Tiling, Tuning, candidates};
use kiln_runtime::probe::Probe;
use kiln_testkit::Loaded;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::bench::problems::{Item, Resolved, Subject, resolve};
use super::bench::timing::{check, expected, inputs, time};
use super::bench::{bar, duration, median};
use super::print;

/// First line of the entries that tuning writes. The next tuning replaces everything after it.
const MARK: &str = "# Measured by kiln tune; the last entry for a problem counts.\n";
/// A winner must take less than this fraction of the time of the profile's own choice.
const WORTHWHILE: f64 = 0.97;
/// Pairs of runs that confirm a winner.
const PAIRS: usize = 5;

/// Find the fastest kernels for the shapes of a model on this device, as a profile for compile
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln tune sd21.kiln -o mine.toml
  kiln tune --model sd21-base --network unet --filter conv2d --seconds 600 -o mine.toml
  kiln compile --model sd21-base --weights v2-1_512-ema-pruned.safetensors --device mine.toml \\
      -o sd21.kiln

Before a candidate is timed, its result is compared with the op's reference or its naive kernel.
A candidate replaces the profile's own choice if it is at least 3 % faster in five pairs of runs.
Shapes without an entry in the table are compiled by the profile's rules.")]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Only this network. May be repeated [default: text_encoder, unet and decoder]
    #[arg(long)]
    network: Vec<String>,
    /// Only ops with this text in their lines of kiln bench ops
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    filter: String,
    /// Start no candidate after this many seconds
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Print the time of every candidate, the profile's own choice first
    #[arg(long)]
    each: bool,
    /// Profile to write: a copy of the input profile with a table of winners
    #[arg(short, long, value_name = "FILE.toml")]
    output: PathBuf,
}

/// Searches and writes the profile.
pub fn run(args: Args) -> Result<()> {
    let started = Instant::now();
    let profile = args.subject.profile.as_ref().map(|path| ("--profile", Path::new(path)));
    let bundle = args.subject.bundle.as_ref().map(|path| ("the bundle", path.as_path()));
    let inputs = profile.into_iter().chain(bundle);
    super::files::check(inputs, "--output", &args.output, Some("toml"))?;
    let resolved = resolve(&args.subject, &args.network)?;
    let probe = Probe::open(&resolved.device)?;
    let mut items: Vec<&Item> = (resolved.items.iter())
        .filter(|item| format!("{} {}", item.problem(), item.first).contains(&args.filter))
        .filter(|item| choices(item, &resolved.profile.target).is_ok_and(|list| list.len() > 1))
        .collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.flops() * item.count as u64));
    let bar = bar(items.len())?;
    let mut tuner =
        Tuner { probe: &probe, resolved: &resolved, tried: 0, each: args.each, wrong: vec![] };
    let mut winners: Vec<Winner> = Vec::new();
    for item in &items {
        let more = || started.elapsed().as_secs() < args.seconds;
        // Opening a slow device may take all the time. One shape is an answer, none is not.
        if !winners.is_empty() && !more() {
            break;
        }
        bar.set_message(item.first.clone());
        let same = |w: &&Winner| {
            (w.tuning.op.as_str(), &w.tuning.problem)
                == (item.problem().op.name(), &item.problem().to_string())
        };
        if winners.iter().find(same).is_none() {
            let winner = tuner.search(item, &more);
            winners.push(winner.with_context(|| format!("tuning {}", item.problem()))?);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let text = profile_text(&resolved, winners.iter().map(|w| &w.tuning));
    whole::write(&args.output, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", args.output.display()))?;
    for winner in &winners {
        print::line(winner)?;
    }
    for message in &tuner.wrong {
        print::line(format_args!("left out: {message}"))?;
    }
    print::line(format_args!(
        "wrote {}: {} of {} shapes measured, {} changed, {} candidates tried, for {} on {}",
        args.output.display(),
        winners.len(),
        items.len(),
        winners.iter().filter(|w| w.tuning != w.untuned).count(),
        tuner.tried,
        resolved.profile_name,
        resolved.device.name
    ))
}

/// The result for a problem.
struct Winner {
    tuning: Tuning,
    /// The profile's own choice.
    untuned: Tuning,
    seconds: f64,
    untuned_seconds: f64,
}

impl fmt::Display for Winner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>10} {:20} was {:>10} {:20} ratio {:.2}  {} {}",
            duration(self.seconds),
            label(&self.tuning),
            duration(self.untuned_seconds),
            label(&self.untuned),
            self.seconds / self.untuned_seconds,
            self.tuning.op,
            self.tuning.problem
        )
    }
}

/// Variant and tiling in readable form.
fn label(tuning: &Tuning) -> String {
    let Tuning { variant, tile_rows, tile_columns, sum_parts, .. } = tuning;
    match sum_parts {
        0 => format!("{variant} {tile_rows}x{tile_columns}"),
        parts => format!("{variant} {tile_rows}x{tile_columns}/{parts}"),
    }
}

struct Tuner<'a> {
    probe: &'a Probe,
    resolved: &'a Resolved,
    tried: usize,
    /// Whether to print the time of every candidate.
    each: bool,
    /// Candidates with a wrong result, or refused by the driver.
    wrong: Vec<String>,
}

impl Tuner<'_> {
    fn say(&self, tuning: &Tuning, seconds: f64, problem: &Problem) -> Result<()> {
        if !self.each {
            return Ok(());
        }
        print::line(format_args!("{:>10} {:20} {problem}", duration(seconds), label(tuning)))
    }

    fn search(&mut self, item: &Item, more: &dyn Fn() -> bool) -> Result<Winner> {
        let problem = item.problem();
        let target = &self.resolved.profile.target;
        let values = inputs(&problem);
        let answer = expected(self.probe, &problem, target, &values)?;
        let list = choices(item, target)?;
        let (untuned, lowering) = list.first().context("no variant applies")?;
        let own = Loaded::new(self.probe, &problem, lowering, &values)?;
        check(&own.result()?, &answer, problem.output.dtype)
            .with_context(|| format!("{} gives a wrong answer", untuned.variant))?;
        let mut best = (0, time(&own)?.seconds);
        self.say(untuned, best.1, &problem)?;
        for (index, (tuning, lowering)) in list.iter().enumerate().skip(1) {
            if !more() {
                break;
            }
            self.tried += 1;
            let timed = Loaded::new(self.probe, &problem, lowering, &values).and_then(|loaded| {
                check(&loaded.result()?, &answer, problem.output.dtype)?;
                time(&loaded)
            });
            match timed {
                Ok(timing) => {
                    self.say(tuning, timing.seconds, &problem)?;
                    if timing.seconds < best.1 {
                        best = (index, timing.seconds);
                    }
                }
                Err(error) => {
                    self.wrong.push(format!("{} for {problem}: {error:#}", label(tuning)));
                }
            }
        }
        let untuned_winner = |seconds| Winner {
            tuning: untuned.clone(),
            untuned: untuned.clone(),
            seconds,
            untuned_seconds: seconds,
        };
        if best.0 == 0 {
            return Ok(untuned_winner(best.1));
        }
        let (tuning, lowering) = &list[best.0];
        let other = Loaded::new(self.probe, &problem, lowering, &values)?;
        let (mut seconds, mut untuned_seconds) = (vec![], vec![]);
        for _ in 0..PAIRS {
            untuned_seconds.push(time(&own)?.seconds);
            seconds.push(time(&other)?.seconds);
        }
        let ratios: Vec<f64> = seconds.iter().zip(&untuned_seconds).map(|(a, b)| a / b).collect();
        let (seconds, untuned_seconds) = (median(&seconds), median(&untuned_seconds));
        if median(&ratios) >= WORTHWHILE {
            return Ok(untuned_winner(untuned_seconds));
        }
        let (tuning, untuned) = (tuning.clone(), untuned.clone());
        Ok(Winner { tuning, untuned, seconds, untuned_seconds })
    }
}

/// Every distinct lowering of an op: the profile's own choice first, without oracles.
fn choices(item: &Item, target: &Target) -> Result<Vec<(Tuning, Lowering)>> {
    let problem = item.problem();
    let plain = Target { tuning: vec![], ..target.clone() };
    let mut list: Vec<(Tuning, Lowering)> = Vec::new();
    for tiling in tilings(&problem, &plain) {
        let target = plain.with_tiling(tiling);
        for variant in candidates(&problem, &target) {
            let tuned = tiling == plain.tiling() || (variant.tuning)(&plain).contains(&tiling);
            if !tuned || (variant.oracle && !list.is_empty()) {
                continue;
            }
            let lowering = variant.lower(&problem, &target)?;
            if list.iter().any(|(_, known)| *known == lowering) {
                continue;
            }
            let tuning = Tuning {
                op: problem.op.name().to_string(),
                problem: problem.to_string(),
                variant: variant.name.to_string(),
                tile_rows: tiling.rows,
                tile_columns: tiling.columns,
                sum_parts: tiling.sum_parts,
            };
            list.push((tuning, lowering));
        }
    }
    Ok(list)
}

/// The target's own tiling, then the tilings to try of its variants for a problem.
fn tilings(problem: &Problem, target: &Target) -> Vec<Tiling> {
    let mut tilings = vec![target.tiling()];
    for tiling in candidates(problem, target).into_iter().flat_map(|v| (v.tuning)(target)) {
        if !tilings.contains(&tiling) {
            tilings.push(tiling);
        }
    }
    tilings
}

/// The profile followed by the winners, and by an earlier tuning's winners for other problems.
fn profile_text<'a>(resolved: &Resolved, winners: impl Iterator<Item = &'a Tuning>) -> String {
    let winners: Vec<&Tuning> = winners.collect();
    let own = resolved.profile_text.split(MARK).next().unwrap_or_default().trim_end();
    let is_new =
        |old: &&Tuning| winners.iter().all(|w| (&w.op, &w.problem) != (&old.op, &old.problem));
    let kept = match resolved.profile_text.contains(MARK) {
        true => resolved.profile.target.tuning.iter().filter(is_new).collect(),
        false => vec![],
    };
    let entries = kept.iter().chain(&winners).map(|t| {
        format!(
            "\n[[target.tuning]]\nop = {:?}\nproblem = {:?}\nvariant = {:?}\ntile_rows = {}\n\
             tile_columns = {}\n{}",
            t.op,
            t.problem,
            t.variant,
            t.tile_rows,
            t.tile_columns,
            if t.sum_parts == 0 { String::new() } else { format!("sum_parts = {}\n", t.sum_parts) }
        )
    });
    format!("{own}\n\n{MARK}{}", entries.collect::<String>())
}
