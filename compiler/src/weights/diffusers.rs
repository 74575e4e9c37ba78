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

use super::safetensors::SafetensorsFile;
use super::stored::StoredType;
use super::{TensorInfo, TensorSource, checked_elem_count, one_line};

mod names;

use names::{Form, Target, TextLayout};

/// The largest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The largest shard index that is read, in bytes.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// A folder of the model, with the names of its weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Component {
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
    /// Width of CLIP ViT-L/14.
    const CLIP_WIDTH: usize = 768;
    #[derive(Deserialize)]
    struct Config {
        hidden_act: Option<String>,
    }
    let config: Option<Config> = config(&folder.join("text_encoder/config.json"))?;
    if let Some(activation) = config.and_then(|config| config.hidden_act) {
        return Ok(activation == "quick_gelu");
    }
    let table = stored.iter().find(|s| s.name.ends_with("embeddings.token_embedding.weight"));
    Ok(table.is_some_and(|table| table.shape.get(1) == Some(&CLIP_WIDTH)))
}

/// A configuration. `None` if the file is not there.
fn config<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    let config = serde_json::from_reader(file.take(MAX_CONFIG_BYTES));
    config.with_context(|| format!("{}: not a configuration", path.display())).map(Some)
}

/// An open diffusers model.
#[derive(Debug)]
pub struct DiffusersFolder {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: Vec<TensorInfo>,
    /// Stored tensors of each entry of `tensors`, in order.
    pieces: Vec<Vec<Piece>>,
}

/// A stored tensor: a whole tensor of the single-file layout, or leading rows of one.
#[derive(Debug, Clone)]
struct Piece {
    /// Index into [`DiffusersFolder::files`].
    file: usize,
    /// Index into this file's tensors.
    tensor: usize,
    elem_count: usize,
}

impl DiffusersFolder {
    /// Opens the weight files of all three components.
    ///
    /// Errors: a component or a shard is missing; a file is damaged; a shard's index names files
    /// outside its folder; parts of one tensor are missing or do not fit together.
    pub fn open(path: &Path) -> Result<Self> {
        let mut folder = Self {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: Vec::new(),
            pieces: Vec::new(),
        };
        let mut entries: BTreeMap<String, Vec<Option<Stored>>> = BTreeMap::new();
        for component in Component::ALL {
            let stored = folder.open_component(component)?;
            let named: Vec<&str> = stored.iter().map(|s| s.name.as_str()).collect();
            let layout =
                if is_clip(path, &stored)? { TextLayout::Clip } else { TextLayout::OpenClip };
            let targets = names::targets(component, &named, layout);
            for (stored, target) in stored.into_iter().zip(targets) {
                let (target, slot, slot_count) = match target {
                    Some(Target { name, form: Form::Third(slot) }) => (name, slot, 3),
                    Some(Target { name, .. }) => (name, 0, 1),
                    None => (format!("{}/{}", component.folder(), stored.name), 0, 1),
                };
                let slots = entries.entry(target).or_insert_with(|| vec![None; slot_count]);
                let stored_name = stored.name.clone();
                if slots[slot].replace(stored).is_some() {
                    bail!(
                        "{}: `{}` is there twice, or under two names",
                        path.join(component.folder()).display(),
                        one_line(&stored_name)
                    );
                }
            }
        }
        for (name, slots) in entries {
            folder.add(name, slots)?;
        }
        Ok(folder)
    }

    /// Opens the files of one component and lists their tensors.
    fn open_component(&mut self, component: Component) -> Result<Vec<Stored>> {
        let folder = self.path.join(component.folder());
        if !folder.is_dir() {
            bail!(
                "{}: no folder {}/; a diffusers model has text_encoder/, unet/ and vae/",
                self.path.display(),
                component.folder()
            );
        }
        let mut stored = match find_weights(&folder, component.stem())? {
            Weights::File(path) => self.open_file(component, &path)?,
            Weights::Index(path) => self.open_shards(component, &folder, &path)?,
        };
        for extra in component.extra_files() {
            let path = folder.join(extra);
            if path.is_file() {
                stored.extend(self.open_file(component, &path)?);
            }
        }
        Ok(stored)
    }

    fn open_shards(
        &mut self,
        component: Component,
        folder: &Path,
        index_path: &Path,
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
            let in_shard = self.open_file(component, &folder.join(&file))?;
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

    fn open_file(&mut self, component: Component, path: &Path) -> Result<Vec<Stored>> {
        let file = SafetensorsFile::open(path)?;
        let at = self.files.len();
        let stored = file.tensors().iter().enumerate().map(|(tensor, info)| Stored {
            component,
            name: info.name.clone(),
            dtype: info.dtype.clone(),
            shape: info.shape.clone(),
            piece: Piece { file: at, tensor, elem_count: info.elem_count() },
        });
        let stored = stored.collect();
        self.files.push(file);
        Ok(stored)
    }

    /// Adds the tensor `name`, joined from its parts along the first dimension.
    fn add(&mut self, name: String, slots: Vec<Option<Stored>>) -> Result<()> {
        let parts: Vec<&Stored> = slots.iter().flatten().collect();
        let component = parts.first().map_or("", |s| s.component.folder());
        let folder = self.path.join(component);
        if parts.len() < slots.len() {
            let found: Vec<String> = parts.iter().map(|s| one_line(&s.name)).collect();
            bail!(
                "{}: query, key and value belong together, but there is only `{}`",
                folder.display(),
                found.join("`, `")
            );
        }
        let (dtype, shape) = join(&parts).map_err(|what| {
            anyhow!("{}: parts of `{}` do not fit: {what}", folder.display(), one_line(&name))
        })?;
        let shape = names::single_file_shape(&name, shape);
        self.tensors.push(TensorInfo { name, dtype, shape });
        self.pieces.push(slots.into_iter().flatten().map(|s| s.piece).collect());
        Ok(())
    }
}

impl TensorSource for DiffusersFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let mut skip = start_elem;
        let mut rest = out;
        for piece in &self.pieces[index] {
            let from = skip.min(piece.elem_count);
            skip -= from;
            let len = rest.len().min(piece.elem_count - from);
            let (now, later) = rest.split_at_mut(len);
            if !now.is_empty() {
                self.files[piece.file].read_index(piece.tensor, from, now)?;
            }
            rest = later;
        }
        Ok(())
    }
}

/// A tensor of a file.
#[derive(Debug, Clone)]
struct Stored {
    component: Component,
    name: String,
    dtype: StoredType,
    shape: Vec<usize>,
    piece: Piece,
}

/// Type and shape of parts that are joined along the first dimension.
fn join(parts: &[&Stored]) -> Result<(StoredType, Vec<usize>), String> {
    let [first, others @ ..] = parts else {
        return Err("none".to_owned());
    };
    let mut shape = first.shape.clone();
    let mut dtype = first.dtype.clone();
    for part in others {
        let fits = shape.get(1..).is_some_and(|row| part.shape.get(1..) == Some(row));
        if !fits {
            return Err(format!("shapes {:?} and {:?}", first.shape, part.shape));
        }
        shape[0] = shape[0].checked_add(part.shape[0]).ok_or("too large")?;
        if let StoredType::Unsupported(_) = part.dtype {
            dtype = part.dtype.clone();
        }
    }
    checked_elem_count(&shape).ok_or("too large")?;
    Ok((dtype, shape))
}

/// The weight files of a component.
enum Weights {
    File(PathBuf),
    Index(PathBuf),
}

/// Full precision is preferred to the fp16 variant, and a single file to shards.
fn find_weights(folder: &Path, stem: &str) -> Result<Weights> {
    for variant in ["", ".fp16"] {
        let file = folder.join(format!("{stem}{variant}.safetensors"));
        if file.is_file() {
            return Ok(Weights::File(file));
        }
        let index = folder.join(format!("{stem}.safetensors.index{variant}.json"));
        if index.is_file() {
            return Ok(Weights::Index(index));
        }
    }
    let pickled = folder.join(if stem == "model" {
        "pytorch_model.bin"
    } else {
        "diffusion_pytorch_model.bin"
    });
    if pickled.is_file() {
        bail!(
            "{}: PyTorch pickles are not read, they can run code; save the model again with \
             save_pretrained(..., safe_serialization=True)",
            pickled.display()
        );
    }
    bail!(
        "{}: no weights; looked for {stem}.safetensors, {stem}.fp16.safetensors and \
         {stem}.safetensors.index.json",
        folder.display()
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
