//! A file of prompts: JSON or plain text, one image a line.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::jobs::{Job, output_name};
use super::{RunArgs, file_error};
use crate::error::RuntimeError;

/// Longest file in bytes. It stays in memory.
const MAX_BYTES: usize = 4 << 20;

/// A line of a prompts file. Missing fields have the values of the arguments.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    negative_prompt: Option<String>,
    seed: Option<serde_json::Number>,
    steps: Option<usize>,
    guidance: Option<f32>,
    guidance_rescale: Option<f32>,
    sampler: Option<String>,
    spacing: Option<String>,
    eta: Option<f32>,
    init_image: Option<PathBuf>,
    mask: Option<PathBuf>,
    strength: Option<f64>,
    fast: Option<usize>,
    guidance_interval: Option<String>,
    cache_interval: Option<usize>,
    output: Option<PathBuf>,
}

impl Line {
    /// Errors: the fault and its column.
    fn read(text: &str) -> Result<Line, String> {
        serde_json::from_str(text).map_err(|error| {
            if !text.trim_start().starts_with('{') {
                let example = "{\"prompt\": \"a rocket\"}";
                return format!("it is no {example}; plain prompts, one a line, go in a .txt file");
            }
            let message = error.to_string();
            // Each line is one JSON value, so the column alone gives the place.
            match message.rsplit_once(" at line ") {
                Some((what, _)) => format!("{what} at column {}", error.column()),
                None => message,
            }
        })
    }
}

/// A file of prompts.
pub(super) struct Prompts {
    pub path: PathBuf,
    text: String,
    /// Whether each line is a prompt, not JSON.
    is_plain: bool,
}

impl Prompts {
    /// Errors: the file is too long or not UTF-8 text.
    pub fn read(path: &Path) -> Result<Prompts, RuntimeError> {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(file_error("open", path))?;
        file.take(MAX_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(file_error("read", path))?;
        let shown = path.display();
        if bytes.len() > MAX_BYTES {
            let message = format!("{shown} has over {MAX_BYTES} bytes; split it");
            return Err(RuntimeError::Input(message));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let (valid, _) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            RuntimeError::Input(format!("{shown} line {line}: not UTF-8 text; save it as UTF-8"))
        })?;
        let is_plain = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("txt"));
        Ok(Prompts { path: path.to_owned(), text, is_plain })
    }

    /// The lines with their numbers, without empty ones and without a byte order mark.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let text = self.text.strip_prefix('\u{feff}').unwrap_or(&self.text);
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
        lines.filter(|(_, line)| !line.trim().is_empty())
    }

    /// The image of a line. Errors: the fault of the line.
    pub fn job(
        &self,
        text: &str,
        number: usize,
        args: &RunArgs,
        base: &Job,
    ) -> Result<Job, String> {
        let line = match self.is_plain {
            true => Line { prompt: text.trim().to_owned(), ..Line::default() },
            false => Line::read(text)?,
        };
        let seed = match line.seed {
            Some(seed) => super::args::seed(&seed.to_string())?,
            None => base.seed,
        };
        let output = match (line.output, &args.output) {
            (Some(output), _) => output,
            (None, Some(pattern)) => output_name(pattern, seed, Some(number)),
            (None, None) => return Err("it has no \"output\", and there is no --output".into()),
        };
        let interval = line.guidance_interval.map(|interval| interval.parse());
        let interval =
            interval.transpose().map_err(|what: &str| format!("guidance_interval: {what}"))?;
        let base = base.clone();
        Ok(Job {
            prompt: line.prompt,
            negative_prompt: line.negative_prompt.unwrap_or(base.negative_prompt),
            seed,
            steps: line.steps.or(base.steps),
            guidance: line.guidance.or(base.guidance),
            guidance_rescale: line.guidance_rescale.unwrap_or(base.guidance_rescale),
            sampler: line.sampler.or(base.sampler),
            spacing: line.spacing.or(base.spacing),
            eta: line.eta.or(base.eta),
            init_image: line.init_image.or(base.init_image),
            mask: line.mask.or(base.mask),
            strength: line.strength.or(base.strength),
            fast: line.fast.unwrap_or(base.fast),
            guidance_interval: interval.or(base.guidance_interval),
            cache_interval: line.cache_interval.or(base.cache_interval),
            output,
            line: number,
        })
    }
}
