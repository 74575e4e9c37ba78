//! `kiln tokenize`: prompts to token ids.

use anyhow::{Context, Result, bail};
use kiln_runtime::pipeline::tokenizer::Tokenizer;
use std::io::{BufRead, Read};

use super::print;
use crate::model;

/// Longest line in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Turn prompts into token ids: one JSON string a line on stdin, one JSON array a line on stdout.
#[derive(clap::Args)]
#[command(after_help = "Example:
  echo '\"a red heart\"' | kiln tokenize")]
pub struct Args {
    /// Model with the tokenizer, as for kiln compile
    #[arg(long, default_value = "sd21-base")]
    pub model: String,
}

/// Tokenizes standard input.
pub fn run(args: Args) -> Result<()> {
    model::find(&args.model)?;
    let tokenizer = Tokenizer::from_merges(model::MERGES)?;
    let mut input = std::io::stdin().lock();
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        let line = (&mut input).take(MAX_LINE_BYTES).read_until(b'\n', &mut text);
        if line.with_context(|| format!("reading line {number}"))? == 0 {
            break;
        }
        if text.len() as u64 == MAX_LINE_BYTES {
            bail!("line {number}: over {MAX_LINE_BYTES} bytes");
        }
        let line = str::from_utf8(&text).with_context(|| format!("line {number}: not UTF-8"))?;
        let line = if number == 1 { line.trim_start_matches('\u{feff}') } else { line };
        let prompt: String = serde_json::from_str(line)
            .with_context(|| format!("line {number}: not a JSON string"))?;
        print::line(serde_json::to_string(&tokenizer.encode(&prompt))?)?;
    }
    Ok(())
}
