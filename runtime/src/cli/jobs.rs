//! The images that a command asks for: one, a sequence of seeds, or the lines of a file.
//!
//! Owns the names of their files. Knows no device.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{RunArgs, file_error};
use crate::error::RuntimeError;
use crate::pipeline::sampler::{self, SamplerOptions};

/// The text that the seed replaces in an output's name.
const SEED: &str = "{seed}";

/// One image to make.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Job {
    pub prompt: String,
    pub negative_prompt: String,
    pub seed: u64,
    pub steps: usize,
    pub guidance: f32,
    pub sampler: String,
    pub output: PathBuf,
}

/// A line of a prompts file. Missing fields have the values of the arguments.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    negative_prompt: Option<String>,
    seed: Option<u64>,
    steps: Option<usize>,
    guidance: Option<f32>,
    sampler: Option<String>,
    output: Option<PathBuf>,
}

impl Line {
    /// Errors: the fault and its column.
    fn read(text: &str) -> Result<Line, String> {
        serde_json::from_str(text).map_err(|error| {
            let message = error.to_string();
            // Each line is one JSON value, so the column alone gives the place.
            match message.rsplit_once(" at line ") {
                Some((what, _)) => format!("{what} at column {}", error.column()),
                None => message,
            }
        })
    }
}

/// The images to make, and the number of those in a batch that exist already.
///
/// Errors: `Input` if a line is invalid, two images would have the same name, or a sampler is
/// unknown.
pub(super) fn jobs(args: &RunArgs) -> Result<(Vec<Job>, usize), RuntimeError> {
    let mut jobs = match &args.prompts {
        Some(path) => of_file(args, path)?,
        None => of_seeds(args)?,
    };
    let mut names = HashSet::new();
    for job in &jobs {
        if !names.insert(&job.output) {
            let name = job.output.display();
            return Err(RuntimeError::Input(format!("two pictures would be written to {name}")));
        }
        sampler::by_name(&job.sampler, &SamplerOptions::stable_diffusion(job.steps, 0))?;
    }
    let count = jobs.len();
    if args.prompts.is_some() {
        jobs.retain(|job| !job.output.exists());
    }
    let done = count - jobs.len();
    if count > 1 && (args.dump.is_some() || args.report.is_some()) {
        let message = "--dump and --report are for one picture, not for several";
        return Err(RuntimeError::Input(message.into()));
    }
    Ok((jobs, done))
}

fn of_seeds(args: &RunArgs) -> Result<Vec<Job>, RuntimeError> {
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let pattern = args.output.as_deref().unwrap_or(Path::new(""));
    let base = Job { prompt: text(prompt, "prompt")?, ..defaults(args)? };
    Ok((0..args.count)
        .map(|index| {
            let seed = args.seed.wrapping_add(index as u64);
            let number = (args.count > 1).then_some(index + 1);
            Job { seed, output: output_name(pattern, seed, number), ..base.clone() }
        })
        .collect())
}

fn of_file(args: &RunArgs, path: &Path) -> Result<Vec<Job>, RuntimeError> {
    let base = defaults(args)?;
    let file = File::open(path).map_err(file_error("open", path))?;
    let mut jobs = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(file_error("read", path))?;
        if line.trim().is_empty() {
            continue;
        }
        let job = of_line(&line, index + 1, &base, args.output.as_deref()).map_err(|message| {
            RuntimeError::Input(format!("{} line {}: {message}", path.display(), index + 1))
        })?;
        jobs.push(job);
    }
    if jobs.is_empty() {
        return Err(RuntimeError::Input(format!("{} has no prompts", path.display())));
    }
    Ok(jobs)
}

fn of_line(text: &str, number: usize, base: &Job, pattern: Option<&Path>) -> Result<Job, String> {
    let line = Line::read(text)?;
    let seed = line.seed.unwrap_or(base.seed);
    let output = match (line.output, pattern) {
        (Some(output), _) => output,
        (None, Some(pattern)) => output_name(pattern, seed, Some(number)),
        (None, None) => return Err("it has no \"output\", and there is no --output".into()),
    };
    let base = base.clone();
    Ok(Job {
        prompt: line.prompt,
        negative_prompt: line.negative_prompt.unwrap_or(base.negative_prompt),
        seed,
        steps: line.steps.unwrap_or(base.steps),
        guidance: line.guidance.unwrap_or(base.guidance),
        sampler: line.sampler.unwrap_or(base.sampler),
        output,
    })
}

/// The values of the arguments for an image.
fn defaults(args: &RunArgs) -> Result<Job, RuntimeError> {
    Ok(Job {
        prompt: String::new(),
        negative_prompt: text(&args.negative_prompt, "negative prompt")?,
        seed: args.seed,
        steps: args.steps,
        guidance: args.guidance,
        sampler: args.sampler.clone(),
        output: PathBuf::new(),
    })
}

/// Text of an argument.
fn text(argument: &OsStr, name: &str) -> Result<String, RuntimeError> {
    match argument.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(RuntimeError::Input(format!("the {name} is not UTF-8 text"))),
    }
}

/// `out.png` becomes `out-0001.png`, unless it contains `{seed}` or there is no number.
fn output_name(pattern: &Path, seed: u64, number: Option<usize>) -> PathBuf {
    if let Some(text) = pattern.to_str()
        && text.contains(SEED)
    {
        return PathBuf::from(text.replace(SEED, &seed.to_string()));
    }
    match number {
        Some(number) => super::files::with_suffix(pattern, &format!("-{number:04}")),
        None => pattern.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn parse(args: &[&str]) -> Result<(Vec<Job>, usize), RuntimeError> {
        let args = [&["m.kiln"], args].concat();
        match Command::parse(args.into_iter().map(Into::into)) {
            Ok(Command::Run(run)) => jobs(&run),
            other => panic!("{other:?}"),
        }
    }

    fn names(args: &[&str]) -> Vec<String> {
        let jobs = parse(args).unwrap().0;
        jobs.iter().map(|job| job.output.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn seeds_and_names_follow_each_other() {
        let one = ["-p", "x", "-o", "a/out.png"];
        assert_eq!(names(&one), ["a/out.png"]);
        let two = [&one[..], &["--count", "2", "--seed", "41"]].concat();
        assert_eq!(names(&two), ["a/out-0001.png", "a/out-0002.png"]);
        let seeds: Vec<u64> = parse(&two).unwrap().0.iter().map(|job| job.seed).collect();
        assert_eq!(seeds, [41, 42]);
        assert_eq!(names(&["-p", "x", "-o", "{seed}.png", "--count", "2"]), ["0.png", "1.png"]);
        assert_eq!(names(&["-p", "x", "-o", "s{seed}.png", "--seed", "7"]), ["s7.png"]);
        assert!(parse(&[&two[..], &["--report", "r.json"]].concat()).is_err());
        assert!(parse(&[&one[..], &["--report", "r.json"]].concat()).is_ok());
    }

    #[test]
    fn lines_say_what_differs_and_done_ones_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let file = path("p.jsonl");
        let done = path("done.png");
        std::fs::write(&done, "").unwrap();
        let lines = format!(
            "{{\"prompt\": \"a\", \"seed\": 5, \"sampler\": \"euler\"}}\n\n\
             {{\"prompt\": \"b\", \"steps\": 3, \"guidance\": 2.5, \"negative_prompt\": \"n\"}}\n\
             {{\"prompt\": \"c\", \"output\": {done:?}}}\n"
        );
        std::fs::write(&file, lines).unwrap();
        let (found, skipped) = parse(&["--prompts", &file, "-o", "o.png", "--steps", "9"]).unwrap();
        assert_eq!((found.len(), skipped), (2, 1));
        let first = (found[0].steps, found[0].seed, &*found[0].sampler, found[0].output.to_str());
        assert_eq!(first, (9, 5, "euler", Some("o-0001.png")));
        let second = (found[1].steps, found[1].guidance, &*found[1].negative_prompt);
        assert_eq!(second, (3, 2.5, "n"));
        assert_eq!(found[1].output, Path::new("o-0003.png"));

        for (text, expected) in [
            ("{\"prompt\": \"a\"}", "line 1: it has no \"output\""),
            ("{\"prompt\": \"a\", \"output\": \"x\"}\n{\"promt\": 1}", "line 2: unknown field"),
            ("{\"prompt\": \"a\", \"output\": \"x\", \"steps\": 0}", "steps"),
            ("{\"prompt\": \"a\", \"output\": \"x\", \"sampler\": \"none\"}", "euler"),
            ("\n", "no prompts"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = parse(&["--prompts", &file]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let same = "{\"prompt\": \"a\", \"output\": \"x.png\"}\n".repeat(2);
        std::fs::write(&file, same).unwrap();
        assert!(parse(&["--prompts", &file]).unwrap_err().to_string().contains("two pictures"));
    }
}
