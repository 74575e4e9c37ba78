//! `kiln show`: the parameters of a picture, from its file.

use anyhow::Result;
use kiln_runtime::RuntimeError;
use kiln_runtime::pipeline::png::Described;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Show the parameters of a picture: the text in its file, PNG, JPEG or WebP.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln show out.png
  kiln show out.jpg
  kiln show out.png --json | jq -r .text.prompt")]
pub struct Args {
    /// Picture, from this program or another
    #[arg(value_name = "FILE")]
    pub picture: PathBuf,
    /// Print JSON, for programs: {"width", "height", "text": {key: value}}
    #[arg(long)]
    pub json: bool,
}

/// Prints the parameters.
pub fn run(args: Args) -> Result<()> {
    let found = crate::pictures::read_described(&args.picture).map_err(RuntimeError::Png)?;
    if args.json {
        super::print::json(&json(&found))
    } else {
        super::print::printed(|out| write!(out, "{}: {}", args.picture.display(), lines(&found)))
    }
}

fn json(found: &Described) -> Value {
    let text: Map<_, _> =
        found.text.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    serde_json::json!({ "width": found.width, "height": found.height, "text": text })
}

fn lines(found: &Described) -> String {
    let mut lines = format!("{} x {} pixels\n", found.width, found.height);
    if found.text.is_empty() {
        lines += "it says nothing of how it was made\n";
    }
    // Pictures of this program also have each part of `parameters` as an entry of its own.
    let single = found.text.iter().any(|(key, _)| key == "prompt");
    for (key, value) in found.text.iter().filter(|(key, _)| !(single && key == "parameters")) {
        let value = printable(value).replace('\n', "\n                 ");
        lines += &format!("{:16} {value}\n", printable(key));
    }
    lines
}

/// The text without control characters, which a terminal would obey.
fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(text: &[(&str, &str)]) -> Described {
        let text = text.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Described { width: 8, height: 4, text }
    }

    #[test]
    fn parameters_are_listed_once_and_harmless() {
        let found = described(&[("parameters", "p"), ("prompt", "a\u{1b}[2J\nb"), ("seed", "7")]);
        let expected = "8 x 4 pixels\nprompt           a\u{fffd}[2J\n                 b\n\
                        seed             7\n";
        assert_eq!(lines(&found), expected);
        assert!(lines(&described(&[("parameters", "p")])).contains("parameters       p"));
        assert!(lines(&described(&[])).contains("nothing"));
        assert_eq!(json(&found)["text"]["prompt"], "a\u{1b}[2J\nb");
    }
}
