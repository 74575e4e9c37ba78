//! `kiln tokenize`: prompts to token ids.

use anyhow::{Context, Result};
use kiln_runtime::pipeline::tokenizer::Tokenizer;
use std::io::{BufRead, Write};

use crate::model;

/// Turn prompts into token ids: one JSON string a line on stdin, one JSON array a line on stdout.
#[derive(clap::Args)]
#[command(after_help = "Example:
  echo '\"a red heart\"' | kiln tokenize")]
pub struct Args {
    /// Model with the tokenizer: emoji-256, sd21-base or sd21
    #[arg(long, default_value = "sd21-base")]
    pub model: String,
}

/// Tokenizes standard input.
pub fn run(args: Args) -> Result<()> {
    model::find(&args.model)?;
    let tokenizer = Tokenizer::from_merges(model::MERGES)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line.with_context(|| format!("line {}: not UTF-8", number + 1))?;
        let prompt: String = serde_json::from_str(&line)
            .with_context(|| format!("line {}: not a JSON string", number + 1))?;
        writeln!(out, "{}", serde_json::to_string(&tokenizer.encode(&prompt))?)?;
    }
    Ok(out.flush()?)
}
