//! `kiln-synth`: writes a full-size Stable Diffusion v2.1-base checkpoint with synthetic values.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kiln_synth::{Checkpoint, Precision};

/// Write a full-size Stable Diffusion v2.1-base checkpoint with synthetic weights.
///
/// 1,240 tensors, 1.30 G parameters, 5.21 GB in FP32. The values are a pure function of seed,
/// tensor name and index. Activations stay near unit variance.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// File to write. Its name is OUT.part until it is complete
    #[arg(value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Storage type
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
    /// Seed of the values
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep only the tensors whose names start with one of these
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    only: Vec<String>,
}

fn main() -> ExitCode {
    let a = Arguments::parse();
    let written = Checkpoint::plan(&a.only, a.dtype).and_then(|checkpoint| {
        checkpoint.write(&a.out, a.seed)?;
        Ok(checkpoint)
    });
    match written {
        Ok(checkpoint) => {
            println!("{}: {checkpoint}", a.out.display());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("kiln-synth: {e:#}");
            ExitCode::from(2)
        }
    }
}
