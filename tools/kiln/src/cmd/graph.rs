//! `kiln graph`: the networks of a model as text or DOT, before or after the passes.

use anyhow::{Result, bail};
use kiln_compiler::Model;
use kiln_compiler::passes;
use kiln_ir::{Graph, dot, text};
use std::io::Write;

use crate::model;

/// Print the graph of a network as text or DOT.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln graph --model sd21-base --network unet
  kiln graph --model emoji-256 --network decoder --plain --dot | dot -Tsvg > decoder.svg")]
pub struct Args {
    /// Model, as for kiln compile
    #[arg(long)]
    pub model: String,
    /// Network: text_encoder, unet or decoder
    #[arg(long)]
    pub network: String,
    /// Print the graph before the compiler's passes
    #[arg(long)]
    pub plain: bool,
    /// Print DOT, for Graphviz
    #[arg(long)]
    pub dot: bool,
}

/// Prints the graph.
pub fn run(args: Args) -> Result<()> {
    let model = model::find(&args.model)?;
    let mut graph: Graph = match args.network.as_str() {
        "text_encoder" => model.text_encoder(2)?,
        "unet" => model.unet(2)?,
        "decoder" => model.decoder()?,
        other => bail!("no network '{other}': use text_encoder, unet or decoder"),
    };
    if !args.plain {
        for (pass, changes) in passes::optimize(&mut graph)? {
            // A closed standard error is no failure.
            let _ = writeln!(std::io::stderr(), "{pass}: {changes} changes");
        }
    }
    let text = if args.dot { dot::dot(&graph, false) } else { text::dump(&graph)? };
    super::print::printed(|out| out.write_all(text.as_bytes()))
}
