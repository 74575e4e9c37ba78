//! `kiln eval`: one network of a bundle on tensors from files.

use anyhow::{Context, Result, anyhow, bail};
use kiln_bundle::plan::{ElementType, Plan, Port};
use kiln_bundle::whole;
use kiln_runtime::cli::{CacheArgs, LoraFile, read_loras};
use kiln_runtime::npy::{self, NpyError};
use kiln_runtime::session::{ExecutorOptions, Session, SessionOptions};
use kiln_runtime::tensor::{Tensor, Values};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Evaluate one network of a bundle: .npy in, .npy out (NCHW, FP32; tokens int32).
#[derive(clap::Args)]
#[command(after_help = "Examples:
  kiln eval m.kiln --network text_encoder --input tokens=ids.npy --output text.npy
  kiln eval m.kiln --network unet --input latent=x.npy --input timestep=t.npy \\
      --input context=text.npy --output eps.npy
  kiln eval m.kiln --network decoder --input latent=x.npy --output image.npy")]
pub struct Args {
    /// Compiled model
    pub bundle: PathBuf,
    /// Network and its inputs: text_encoder (tokens), unet (latent, timestep, context), decoder
    /// (latent) or encoder (image)
    #[arg(long)]
    pub network: String,
    /// An input of the network. Repeat it for each input. The batch axis may be left out
    #[arg(long = "input", value_name = "NAME=FILE.npy", required = true)]
    pub inputs: Vec<String>,
    /// File to write: the network's output
    #[arg(long, value_name = "FILE.npy")]
    pub output: PathBuf,
    /// LoRA to switch on, made by kiln lora for this bundle. May be repeated
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    pub lora: Vec<LoraFile>,
    /// OpenCL device: auto, an index, or part of a name
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Folder of compiled kernels
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Evaluates the network and writes its output.
pub fn run(args: Args) -> Result<()> {
    let programs = args.cache.programs(&[super::prepare::NAME]);
    let options = SessionOptions {
        device: args.device.clone(),
        executor: ExecutorOptions { programs, ..ExecutorOptions::default() },
        ..SessionOptions::default()
    };
    let named = named(&args.inputs)?;
    let files = named.iter().map(|(_, path)| ("--input", *path));
    let files = files.chain([("the bundle", args.bundle.as_path())]);
    let files = files.chain(args.lora.iter().map(|lora| ("--lora", lora.path.as_path())));
    super::files::check(files, "--output", &args.output, Some("npy"))?;
    let mut session = Session::open(&args.bundle, &options)?;
    session.set_loras(read_loras(&args.lora, session.plan())?)?;
    let mut inputs = Vec::new();
    for (name, path) in named {
        inputs.push((name, read(path, port(session.plan(), name)?)?));
    }
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
    let answer = session.eval(&args.network, &inputs)?;
    let values = answer.as_f32().context("the network's output is not FP32")?;
    let path = args.output.display();
    whole::write(&args.output, |file| npy::write(file, &answer.shape, values))
        .with_context(|| format!("writing {path}"))
}

/// The names and files of the inputs.
fn named(inputs: &[String]) -> Result<Vec<(&str, &Path)>> {
    let mut named: Vec<(&str, &Path)> = Vec::new();
    for input in inputs {
        let Some((name, path)) = input.split_once('=') else {
            bail!("--input '{input}' is not NAME=FILE.npy");
        };
        if named.iter().any(|(known, _)| *known == name) {
            bail!("--input {name} is given twice");
        }
        named.push((name, Path::new(path)));
    }
    Ok(named)
}

/// The largest input of a name: a latent is the U-Net's, with a row for each branch, and a decoder's.
fn port<'a>(plan: &'a Plan, name: &str) -> Result<&'a Port> {
    let ports = plan.networks.iter().flat_map(|n| &n.inputs).map(|input| &input.port);
    ports
        .filter(|port| port.name == name)
        .max_by_key(|port| max_elems(port))
        .with_context(|| format!("no network of this bundle has an input '{name}'"))
}

fn max_elems(port: &Port) -> usize {
    port.shape.iter().map(|&axis| axis as usize).product()
}

/// Reads a tensor of the port's element type. A missing batch axis is added in front.
fn read(path: &Path, port: &Port) -> Result<Tensor> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("opening {shown}"))?;
    let file = BufReader::new(file);
    let max_elems = max_elems(port);
    let failed = |error| match error {
        NpyError::TooLarge { shape } => {
            anyhow!("{shown}: has shape {shape:?}, over the {max_elems} values that it may have")
        }
        error => anyhow!("{shown}: {error}"),
    };
    let (mut shape, values) = if port.dtype == ElementType::I32 {
        let array = npy::read_at_most::<i32>(file, max_elems).map_err(failed)?;
        (array.shape, Values::I32(array.values))
    } else {
        let array = npy::read_at_most::<f32>(file, max_elems).map_err(failed)?;
        (array.shape, Values::F32(array.values))
    };
    if shape.len() + 1 == port.shape.len() {
        shape.insert(0, 1);
    }
    Ok(Tensor { shape, values })
}
