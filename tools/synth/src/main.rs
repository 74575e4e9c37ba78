//! `kiln-synth`: writes a full-size Stable Diffusion v2.1-base checkpoint with synthetic values.
//!
//! Every tensor name and shape is that of `v2-1_512-ema-pruned.safetensors`, so that what handles
//! this file handles the real one. `values` says what the values are; `file` writes them.

#![forbid(unsafe_code)]

mod file;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

/// Write a full-size Stable Diffusion v2.1-base checkpoint with synthetic weights.
///
/// 1,240 tensors, 1.30 G parameters, 5.21 GB in FP32. The values are a pure function of seed,
/// tensor name and index; activations stay near unit variance.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The file to write; OUT.part until it is complete
    #[arg(value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Storage type
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    dtype: Precision,
    /// Another seed gives other values
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep just the tensors whose names start with one of these
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    only: Vec<String>,
}

/// Storage type of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    Fp32,
    Fp16,
}

impl Precision {
    fn size_bytes(self) -> usize {
        match self {
            Self::Fp32 => 4,
            Self::Fp16 => 2,
        }
    }

    /// The name that safetensors has for it.
    fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "F32",
            Self::Fp16 => "F16",
        }
    }
}

fn main() -> ExitCode {
    let a = Arguments::parse();
    let written = file::Checkpoint::plan(&a.only, a.dtype).and_then(|checkpoint| {
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
