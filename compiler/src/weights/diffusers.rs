//! A diffusers model folder: `text_encoder/`, `unet/` and `vae/`, each one safetensors file or
//! shards with an index.
//!
//! `names` maps each stored tensor to a tensor of the single-file layout, or to a part of one. This
//! module finds the files and reads the parts. Tensors without a counterpart in the single-file
//! layout are listed as `<component>/<name>`, so that messages can name them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;

use super::mapped::{Entry, Mapped};
use super::names::{self, Form, Target, TextLayout};
use super::{TensorInfo, TensorSource, one_line};

/// The largest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The largest shard index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A folder of the model, with the names of its weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Component {
    TextEncoder,
    Unet,
    Vae,
}

impl Component {
    const ALL: [Self; 3] = [Self::TextEncoder, Self::Unet, Self::Vae];

    fn folder(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Unet => "unet",
            Self::Vae => "vae",
        }
    }

    fn stem(self) -> &'static str {
        match self {
            Self::TextEncoder => "model",
            Self::Unet | Self::Vae => "diffusion_pytorch_model",
        }
    }

    /// [`Component::stem`] of PyTorch's files.
    fn bin_stem(self) -> &'static str {
        match self {
            Self::TextEncoder => "pytorch_model",
            Self::Unet | Self::Vae => "diffusion_pytorch_model",
        }
    }

    /// Other files that may lie beside the weights: text-to-image exports store the encoder
    /// separately.
    fn extra_files(self) -> &'static [&'static str] {
        match self {
            Self::Vae => &["encoder.safetensors"],
            Self::TextEncoder | Self::Unet => &[],
        }
    }
}

/// Whether a folder looks like a diffusers model.
pub fn is_folder(path: &Path) -> bool {
    Component::ALL.iter().any(|c| path.join(c.folder()).is_dir())
}

/// What the U-Net of a diffusers model predicts, in the words of its scheduler's configuration:
/// `epsilon` or `v_prediction`. `None` if the folder does not say.
///
/// Errors: the configuration cannot be read or is no JSON object.
pub fn prediction_type(folder: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Config {
        prediction_type: Option<String>,
    }
    let config: Option<Config> = config(&folder.join("scheduler/scheduler_config.json"))?;
    Ok(config.and_then(|config| config.prediction_type))
}

/// Whether a folder's text encoder is CLIP's and not OpenCLIP's: by the activation that its
/// configuration names, or, without one, by its width.
///
/// Errors: the configuration cannot be read or is no JSON object.
fn is_clip(folder: &Path, stored: &[Stored]) -> Result<bool> {
    #[derive(Deserialize)]
    struct Config {
        hidden_act: Option<String>,
    }
    let config: Option<Config> = config(&folder.join("text_encoder/config.json"))?;
    if let Some(activation) = config.and_then(|config| config.hidden_act) {
        return Ok(activation == "quick_gelu");
    }
    let table = stored.iter().find(|s| s.name.ends_with("embeddings.token_embedding.weight"));
    Ok(names::text_layout(table.map(|table| table.shape.as_slice())) == TextLayout::Clip)
}

/// A configuration. `None` if the file is not there.
fn config<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    let config = serde_json::from_reader(file.take(MAX_CONFIG_BYTES));
    config.with_context(|| format!("{}: not a configuration", path.display())).map(Some)
}

/// A tensor of a file.
struct Stored {
    /// Index of the file.
    source: usize,
    /// Index of the tensor in the file.
    tensor: usize,
    name: String,
    shape: Vec<usize>,
}

/// Opens the weight files of all three components of a diffusers model.
///
/// Errors: a component or a shard is missing; a file is damaged; a shard's index names files
/// outside its folder; parts of one tensor are missing or do not fit together.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>> {
    let (mut sources, mut entries) = (Vec::new(), Vec::new());
    for component in Component::ALL {
        let stored = open_component(path, component, &mut sources)?;
        let named: Vec<&str> = stored.iter().map(|s| s.name.as_str()).collect();
        let layout = if is_clip(path, &stored)? { TextLayout::Clip } else { TextLayout::OpenClip };
        let targets = names::targets(component, &named, layout);
        for (Stored { source, tensor, name, .. }, target) in stored.into_iter().zip(targets) {
            let unknown =
                || Target { name: format!("{}/{name}", component.folder()), form: Form::Whole };
            let target = target.unwrap_or_else(unknown);
            entries.push(Entry { source, tensor, target });
        }
    }
    Ok(Box::new(Mapped::new(path, sources, entries)?))
}

/// Opens the files of one component, adds them to `sources` and lists their tensors.
fn open_component(
    path: &Path,
    component: Component,
    sources: &mut Vec<Box<dyn TensorSource>>,
) -> Result<Vec<Stored>> {
    let folder = path.join(component.folder());
    if !folder.is_dir() {
        bail!(
            "{}: no folder {}/; a diffusers model has text_encoder/, unet/ and vae/",
            path.display(),
            component.folder()
        );
    }
    let mut stored = match find_weights(&folder, component)? {
        Weights::File(path) => open_file(&path, sources)?,
        Weights::Index(path) => open_shards(&folder, &path, sources)?,
    };
    for extra in component.extra_files() {
        let path = folder.join(extra);
        if path.is_file() {
            stored.extend(open_file(&path, sources)?);
        }
    }
    Ok(stored)
}

fn open_shards(
    folder: &Path,
    index_path: &Path,
    sources: &mut Vec<Box<dyn TensorSource>>,
) -> Result<Vec<Stored>> {
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in read_index(index_path)?.weight_map {
        by_file.entry(file).or_default().push(tensor);
    }
    let mut stored = Vec::new();
    for (file, tensors) in by_file {
        let plain_name = Path::new(&file).file_name().is_some_and(|n| *n == *file);
        if !plain_name {
            let file = one_line(&file);
            bail!("{}: shard `{file}` is not in its folder", index_path.display());
        }
        let in_shard = open_file(&folder.join(&file), sources)?;
        let mut in_shard: HashMap<String, Stored> =
            in_shard.into_iter().map(|s| (s.name.clone(), s)).collect();
        for tensor in tensors {
            let entry = in_shard.remove(&tensor).with_context(|| {
                let path = folder.join(&file);
                let tensor = one_line(&tensor);
                format!("{}: no tensor `{tensor}`, which the index lists", path.display())
            })?;
            stored.push(entry);
        }
    }
    Ok(stored)
}

fn open_file(path: &Path, sources: &mut Vec<Box<dyn TensorSource>>) -> Result<Vec<Stored>> {
    let file = super::open_file(path)?;
    let source = sources.len();
    let stored = |(tensor, info): (usize, &TensorInfo)| Stored {
        source,
        tensor,
        name: info.name.clone(),
        shape: info.shape.clone(),
    };
    let stored = file.tensors().iter().enumerate().map(stored).collect();
    sources.push(file);
    Ok(stored)
}

/// The weight files of a component.
enum Weights {
    File(PathBuf),
    Index(PathBuf),
}

/// The single weight file of a component's folder, in full precision or as the fp16 variant.
pub(super) fn weight_file(folder: &Path, component: Component) -> Option<PathBuf> {
    let (stem, bin) = (component.stem(), component.bin_stem());
    let files = [(stem, "", "safetensors"), (stem, ".fp16", "safetensors"), (bin, "", "bin")];
    let file = |(stem, variant, kind)| folder.join(format!("{stem}{variant}.{kind}"));
    files.map(file).into_iter().find(|file| file.is_file())
}

/// Full precision is preferred to the fp16 variant, a single file to shards, and safetensors to
/// PyTorch's files. Releases of diffusers have put the variant at three places of an index's name.
fn find_weights(folder: &Path, component: Component) -> Result<Weights> {
    let formats = [(component.stem(), "safetensors"), (component.bin_stem(), "bin")];
    for (stem, kind) in formats {
        for variant in ["", ".fp16"] {
            let file = folder.join(format!("{stem}{variant}.{kind}"));
            if file.is_file() {
                return Ok(Weights::File(file));
            }
            let indices = [
                format!("{stem}.{kind}.index{variant}.json"),
                format!("{stem}.{kind}{variant}.index.json"),
                format!("{stem}{variant}.{kind}.index.json"),
            ];
            let found = indices.iter().map(|name| folder.join(name)).find(|index| index.is_file());
            if let Some(index) = found {
                return Ok(Weights::Index(index));
            }
        }
    }
    bail!(
        "{}: no weights; looked for {stem}.safetensors, {stem}.fp16.safetensors, \
         {stem}.safetensors.index.json and {}.bin",
        folder.display(),
        component.bin_stem(),
        stem = component.stem()
    )
}

/// A shard index: the file of each tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<ShardIndex> {
    let shown = path.display();
    let file = File::open(path).with_context(|| shown.to_string())?;
    let mut text = Vec::new();
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text).with_context(|| shown.to_string())?;
    if text.len() as u64 > MAX_INDEX_BYTES {
        bail!("{shown}: too large for a shard index");
    }
    serde_json::from_slice(&text)
        .map_err(|e| anyhow!("{shown}: damaged shard index: {}", one_line(&e.to_string())))
}
