//! `kiln lora`: makes a LoRA that the runs of a bundle switch on.

use anyhow::{Context, Result};
use kiln_compiler::size::mib;
use kiln_compiler::weights::lora::{StepCost, step_cost, switch};
use std::path::PathBuf;

use super::{files, open_bundle, print};

/// Make a LoRA for a bundle, which its runs switch on with a strength.
///
/// The bundle must be compiled with --lora-memory. kiln compile --lora merges a LoRA instead, also
/// LoHa, LoKr and DoRA.
#[derive(clap::Args)]
#[command(after_help = "Example:
  kiln compile --model emoji-256 --lora-memory 16MiB -o emoji.kiln
  kiln lora models/emoji-256-sketch.safetensors --for emoji.kiln -o sketch.kiln-lora
  kiln run emoji.kiln -p 'a red heart' --lora sketch.kiln-lora:0.8 -o heart.png")]
pub struct Args {
    /// LoRA in the names of PEFT, diffusers, Kohya or LyCORIS (LoCon)
    #[arg(value_name = "FILE")]
    pub lora: PathBuf,
    /// Compiled model
    #[arg(long = "for", value_name = "FILE.kiln")]
    pub bundle: PathBuf,
    /// LoRA to write, such as style.kiln-lora
    #[arg(short, long, value_name = "FILE.kiln-lora")]
    pub output: PathBuf,
}

/// Makes the LoRA.
pub fn run(args: Args) -> Result<()> {
    let inputs = [("the LoRA", args.lora.as_path()), ("--for", args.bundle.as_path())];
    files::check(inputs, "--output", &args.output, Some("kiln-lora"))?;
    let bundle = open_bundle(&args.bundle)?;
    let plan = bundle.plan();
    let (lora, others) = switch(&args.lora, plan)?;
    let shown = args.output.display().to_string();
    let file_bytes = lora.write(&args.output).with_context(|| format!("writing {shown}"))?;
    let StepCost { flops, step_flops, streamed_bytes } = step_cost(&lora, plan);
    let share = 100.0 * flops as f64 / step_flops.max(1) as f64;
    print::printed(|out| {
        for layer in &others {
            writeln!(out, "{}: the bundle has not its layer {layer}", args.lora.display())?;
        }
        writeln!(
            out,
            "{shown}: {} weights, {} on disk and in the bundle's room for LoRAs",
            lora.head.changes.len(),
            mib(file_bytes)
        )?;
        match streamed_bytes {
            0 => writeln!(out, "a step costs nothing more: the weights are resident"),
            _ => writeln!(
                out,
                "a step changes {} of streamed weights, with {share:.2} % more arithmetic",
                mib(streamed_bytes)
            ),
        }
    })
}
