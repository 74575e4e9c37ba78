//! `kiln compile`: compiles a checkpoint into a bundle.

mod autoencoder;
mod checkpoint;
mod identify;
mod kernels;
mod sweep;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use kiln_bundle::BundleWriter;
use kiln_bundle::plan::Size;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::emit::{self, Overflow};
use kiln_compiler::plan::Planned;
use kiln_compiler::quantize::{self, Choices};
use kiln_compiler::request::PlanRequest;
use kiln_compiler::size::mib;
use kiln_compiler::storage::{Storage, Wide};
use kiln_compiler::weights::TensorSource;
use kiln_compiler::weights::lora::Lora;
use kiln_compiler::{Model, plan_model};
use kiln_graphs::config;
use kiln_runtime::cli::{CacheArgs, PrepareArgs};
use kiln_runtime::device::{self, DeviceFacts};
use kiln_runtime::report::process_peak_bytes;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{devices, files, key, print};
use crate::model::{self, ConfiguredModel};
use crate::size;

/// Compile a checkpoint into a bundle that runs inside a memory budget.
#[derive(clap::Args)]
#[command(override_usage = "kiln compile [OPTIONS] --weights <PATH> --output <FILE.kiln>
       kiln compile [OPTIONS] --model <MODEL> --output <FILE.kiln>
       kiln compile [OPTIONS] --model <MODEL> --budget-sweep <FROM..TO>")]
#[command(after_help = "Examples:
  kiln compile --model emoji-256 -o emoji.kiln
  kiln compile --model emoji-256 --with-encoder -o emoji.kiln
  kiln compile --model emoji-256 --size 256x320 -o tall.kiln
  kiln compile --weights dreamshaper-8/ --precision fp16 -o dreamshaper.kiln
  kiln compile --model sd21-base --decoder taesd_decoder.safetensors -o sd21.kiln
  kiln compile --model sd21-base --weights v2-1_512-ema-pruned.safetensors \\
      --budget 1GiB --device mali-g78 --precision fp16 -o sd21.kiln
  kiln compile --model sd21-base --budget-sweep 256MiB..4GiB --device mali-g78 --precision fp16")]
pub struct Args {
    #[arg(long, help = model_help())]
    pub model: Option<String>,
    /// Checkpoint: .safetensors, .safetensors.zst, a diffusers folder, or a folder of .npy files
    /// [default: the model's file in models/]
    #[arg(long)]
    pub weights: Option<PathBuf>,
    /// Width and height of the picture: multiples of 64 (of 32 for models of three levels). With
    /// several sizes, separated by commas, kiln run --size picks one; the first is the default, and
    /// weights are stored once [default: the model's]
    #[arg(long, value_name = "WIDTHxHEIGHT", value_delimiter = ',')]
    pub size: Vec<Size>,
    /// LoRA to merge with the checkpoint, in the names of PEFT, diffusers, Kohya or LyCORIS (LoCon,
    /// LoHa, LoKr, DoRA): a factor of its change may follow, as in style.safetensors:0.8. May be
    /// repeated
    #[arg(long, value_name = "FILE[:STRENGTH]")]
    pub lora: Vec<Lora>,
    /// Memory for LoRAs that runs switch on, on the device and as much on the host, inside the budget.
    /// kiln lora says how much a LoRA needs
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub lora_memory: Option<u64>,
    #[command(flatten)]
    pub autoencoder: autoencoder::Args,
    /// Storage of weights. With fp16 and int8, feature maps are also stored in FP16 if the device
    /// profits. Sums are FP32, except in the runs of half arithmetic (see --fp32-arithmetic)
    #[arg(long, value_enum, default_value = "fp32")]
    pub precision: Precision,
    /// Memory of the whole process when the bundle runs: 1GiB, 700MiB, 1.5GB, or bytes
    #[arg(long, default_value = "1GiB", value_parser = size::parse)]
    pub budget: u64,
    /// Print a plan summary for each of several budgets in this range. Needs no weights and writes
    /// nothing
    #[arg(long, value_name = "FROM..TO", value_parser = size::parse_range,
          conflicts_with_all = ["budget", "output"])]
    pub budget_sweep: Option<(u64, u64)>,
    /// With --budget-sweep: also write the OpenCL C of each kernel into this folder, and
    /// kernels.tsv, which lists the kernels. The last plan that fits counts
    #[arg(long, value_name = "FOLDER", requires = "budget_sweep")]
    pub kernels: Option<PathBuf>,
    /// Branches of guidance that the bundle has. With 1, it makes pictures without guidance and
    /// without a negative prompt, in less memory and time [default: 2, or 1 for a model that runs
    /// without guidance]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub guidance_branches: Option<u8>,
    /// Batch of a U-Net pass. 2 computes both branches of guidance together, 1 one after the other
    /// [default: 2 if the budget allows]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub guidance_batch: Option<u8>,
    /// Add variants of the U-Net for steps that cost less, which kiln run --fast takes: without
    /// guidance, and with the outer levels alone. They share weights and memory with the U-Net, and
    /// have kernels of their own. Both branches of guidance are then one batch
    #[arg(long)]
    pub fast: bool,
    #[arg(long, default_value = "auto", help = device_help())]
    pub device: String,
    /// Do all arithmetic in FP32, even if the profile has half arithmetic for FP16 values
    #[arg(long)]
    pub fp32_arithmetic: bool,
    /// List every tensor that a wrong checkpoint lacks, not ten
    #[arg(long)]
    pub verbose: bool,
    /// Leave the compilation of the kernels to the first run. Without this flag, they are compiled
    /// if the bundle is for this machine's OpenCL device (see kiln prepare)
    #[arg(long)]
    pub no_prepare: bool,
    /// Sign the bundle with this secret key, which kiln key makes
    #[arg(long, value_name = "FILE.pem", conflicts_with = "budget_sweep")]
    pub sign: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Bundle to write, such as sd21.kiln
    #[arg(short, long, value_name = "FILE.kiln", required_unless_present = "budget_sweep")]
    pub output: Option<PathBuf>,
}

/// Help of `--model`, with the models that there are.
fn model_help() -> String {
    let names: Vec<_> = config::models().iter().map(|model| &*model.name).collect();
    format!(
        "Model: {}, or your own description, a .toml file [default: what --weights is]",
        names.join(", ")
    )
}

/// Help of `--device`, with the profiles that there are.
fn device_help() -> String {
    let profiles: Vec<_> = DeviceProfile::names().collect();
    format!(
        "Device to compile for: a profile ({}), your own .toml file, or auto for this machine's \
         OpenCL device",
        profiles.join(", ")
    )
}

impl Args {
    /// The model for pictures of each wanted size.
    fn sized(&self, model: ConfiguredModel) -> Result<Vec<ConfiguredModel>> {
        if self.size.is_empty() {
            return Ok(vec![model]);
        }
        let sized = self.size.iter().enumerate().map(|(index, size)| {
            if self.size[..index].contains(size) {
                bail!("--size {size} is given twice");
            }
            let [height, width] = size.axes();
            let sized = model.0.at_size(width, height);
            sized.map(ConfiguredModel).map_err(|error| anyhow!("--size {size}: {error}"))
        });
        sized.collect()
    }

    /// The device's profile and its name.
    fn profile(&self) -> Result<(String, DeviceProfile)> {
        let (name, mut profile) = super::devices::named_profile(&self.device)?;
        if self.fp32_arithmetic {
            profile.target.half_run = 0;
        }
        Ok((name, profile))
    }
}

/// Storage of weights.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    /// 4 bytes a weight
    Fp32,
    /// 2 bytes a weight
    Fp16,
    /// 1 byte a weight, plus scales. Tensors that lose too much in INT8 stay in FP16
    Int8,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }

    /// Storage types of this precision, with the choices for INT8.
    pub fn storage(self, choices: &Choices) -> Storage<'_> {
        match self {
            Precision::Fp32 => Storage::FP32,
            Precision::Fp16 => Storage::FP16,
            Precision::Int8 => Storage::int8(choices),
        }
    }
}

/// Compiles and writes the bundle.
pub fn run(args: Args) -> Result<()> {
    let named = args.model.as_deref().map(model::find).transpose()?;
    if (args.guidance_branches, args.guidance_batch) == (Some(1), Some(2)) {
        bail!(
            "--guidance-branches 1 leaves no second row for --guidance-batch 2; give one of them"
        );
    }
    if args.fast && args.guidance_batch == Some(1) {
        bail!("--fast computes both branches of guidance together; leave out --guidance-batch 1");
    }
    if args.lora_memory.is_some() && args.size.len() > 1 {
        bail!("--lora-memory is for bundles of one --size");
    }
    let output = match (&args.budget_sweep, &args.output) {
        (Some(range), _) => return sweep::run(&args, named, *range),
        (None, Some(output)) => output,
        (None, None) => bail!("no --output"),
    };
    let path = match (&args.weights, &named) {
        (Some(path), _) => path.clone(),
        (None, Some(named)) => model::default_weights(&named.0)?,
        (None, None) => bail!("neither --model nor --weights: give a checkpoint or a model"),
    };
    check_files(&args, &path, output)?;
    if let Some(key) = &args.sign {
        key::read(key)?;
    }
    let (name, profile) = args.profile()?;
    let (models, source) = checkpoint::open(&args, named, &path)?;
    let choices = match args.precision {
        Precision::Int8 => measure(models[0].as_ref(), source.as_ref())?,
        _ => Choices::default(),
    };
    let mut wide = Wide::new();
    let (planned, file_bytes) = loop {
        let request = PlanRequest {
            profile: &profile,
            storage: Storage { wide: &wide, ..args.precision.storage(&choices) },
            budget_bytes: args.budget,
            guidance_branches: args.guidance_branches.map(usize::from),
            guidance_batch: args.guidance_batch.map(usize::from),
            fast: args.fast,
            lora_bytes: args.lora_memory.unwrap_or(0),
        };
        let precision = args.precision.name();
        let plans = models.iter().map(|m| plan_model(m.as_ref(), &name, precision, &request));
        let planned = plans.collect::<Result<Vec<_>>>()?;
        match write(&planned, source.as_ref(), output, args.sign.as_deref()) {
            Ok(file_bytes) => break (planned, file_bytes),
            // Values are known when they are packed. The plan is made anew with these in FP32.
            Err(error) => match error.downcast::<Overflow>()? {
                Overflow(found) if found.is_subset(&wide) => bail!(Overflow(found)),
                Overflow(found) => wide.extend(found),
            },
        }
    };
    let path = output.display().to_string();
    print::printed(|out| {
        for name in &wide {
            writeln!(out, "stored in FP32, as FP16 cannot hold its values: {name}")?;
        }
        summarize(&planned, &path, file_bytes, out)
    })?;
    if !args.no_prepare && is_for_this_device(&args.device) {
        prepare(output, &args.cache);
    }
    Ok(())
}

/// Packs the weights and writes the bundle. Returns its length in bytes.
fn write(
    planned: &[Planned],
    source: &dyn TensorSource,
    output: &Path,
    key: Option<&Path>,
) -> Result<u64> {
    let largest = planned.iter().map(|p| emit::weight_bytes(std::slice::from_ref(p))).max();
    files::check_room(output, largest.unwrap_or(0))?;
    let bar = super::byte_bar(emit::weight_bytes(planned), "packing weights")?;
    let key = key.map(key::read).transpose()?;
    let writer = BundleWriter::create(output)?.signed(key);
    let written =
        emit::emit(planned, source, model::MERGES, writer, &mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    let compiling =
        || format!("compiling {} to {}", planned[0].plan.manifest.model, output.display());
    let (_, file_bytes) = written.with_context(compiling)?;
    Ok(file_bytes)
}

/// Checks that the bundle can be written and replaces nothing that is read.
fn check_files(args: &Args, weights: &Path, output: &Path) -> Result<()> {
    let weights = files::all(weights).into_iter().map(|path| ("--weights", path));
    let lora = args.lora.iter().map(|lora| ("--lora", lora.path.clone()));
    let key = args.sign.iter().map(|path| ("--sign", path.clone()));
    let device = [("--device", (&args.device).into())];
    let other = args.autoencoder.files().chain(lora).chain(key).chain(device);
    let inputs: Vec<_> = weights.chain(other).collect();
    let inputs = inputs.iter().map(|(name, path)| (*name, path.as_path()));
    files::check(inputs, "--output", output, Some("kiln"))
}

/// Whether a bundle compiled with `--device` is for the device that `auto` means.
fn is_for_this_device(wanted: &str) -> bool {
    let is_its_profile = |device: &DeviceFacts| devices::profile(device) == wanted;
    wanted == "auto" || device::select("auto").is_ok_and(|device| is_its_profile(&device))
}

/// Compiles the kernels. The bundle is written, so that a failure is a warning.
fn prepare(bundle: &Path, cache: &CacheArgs) {
    let (bundle, device) = (bundle.to_owned(), "auto".into());
    let args = PrepareArgs { bundle, device, cache: cache.clone(), trust: None, worker: false };
    if let Err(error) = kiln_runtime::cli::prepare(&args, &[super::prepare::NAME]) {
        let _ = writeln!(io::stderr(), "warning: the kernels are left to the first run: {error}");
    }
}

/// Chooses the storage of each weight tensor by its own values.
fn measure(model: &dyn Model, source: &dyn TensorSource) -> Result<Choices> {
    let graphs = quantize::weight_graphs(model)?;
    let bar = super::byte_bar(quantize::measured_bytes(&graphs), "measuring weights")?;
    let choices = quantize::measure(&graphs, source, &mut |bytes| bar.set_position(bytes))?;
    bar.finish_and_clear();
    Ok(choices)
}

fn summarize(
    planned: &[Planned],
    path: &str,
    file_bytes: u64,
    out: &mut dyn Write,
) -> io::Result<()> {
    for (index, Planned { plan, .. }) in planned.iter().enumerate() {
        let manifest = &plan.manifest;
        if index == 0 {
            let (model, precision, profile) =
                (&manifest.model, &manifest.precision, &manifest.profile);
            writeln!(
                out,
                "{path}: {model} {precision} for {profile}, {} on disk",
                mib(file_bytes)
            )?;
        }
        if planned.len() > 1 {
            write!(out, "{}: ", manifest.image)?;
        }
        writeln!(
            out,
            "planned peak {} of a budget of {}; {} kernels, {} networks",
            mib(plan.memory.peak_bytes()),
            mib(plan.memory.budget_bytes),
            plan.kernels.len(),
            plan.networks.len()
        )?;
    }
    if let Some(peak_bytes) = process_peak_bytes() {
        writeln!(out, "peak memory of this compilation {}", mib(peak_bytes))?;
    }
    Ok(())
}
