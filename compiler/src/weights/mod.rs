//! Checkpoint readers.
//!
//! Every format has the interface [`TensorSource`]: named tensors in the key layout of Stability's
//! single-file checkpoints (`model.diffusion_model.*`, `first_stage_model.*`,
//! `cond_stage_model.model.*`), read as f32, one tensor or a range of one at a time. No reader
//! holds a checkpoint in memory, and none trusts a file's statements about itself: a damaged or
//! hostile file is a one-line error that names it.
//!
//! | form | module |
//! |---|---|
//! | single file `.safetensors` | [`safetensors`] |
//! | the same compressed, `.safetensors.zst` | [`zst`] |
//! | PyTorch's `.ckpt`, `.pt`, `.pth`, `.bin` | `torch`, `pickle` |
//! | single files in other layouts | `single` |
//! | diffusers folder: `text_encoder/`, `unet/`, `vae/` | [`diffusers`] |
//! | folder of `<key>.npy` | [`npy`] |
//! | one of these, and another for its missing tensors | [`joined`] |
//! | one of these, merged with a LoRA | [`lora`] |
//! | tiny autoencoders in names of their own | [`tiny`] |
//!
//! [`check`] compares the tensors that a graph needs with those of a checkpoint.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

mod check;
pub mod diffusers;
mod family;
pub mod joined;
pub mod lora;
mod mapped;
mod names;
pub mod npy;
mod pickle;
pub mod safetensors;
mod single;
mod stored;
pub mod tiny;
mod torch;
pub mod zst;

pub use check::{Mismatch, Requirement, check};
pub use family::kind;
pub use stored::StoredType;

/// A tensor of a checkpoint, without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Key in the single-file layout.
    pub name: String,
    /// Type of the stored values.
    pub dtype: StoredType,
    /// Dimensions, slowest first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of values. Readers guarantee that it does not overflow.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A checkpoint: tensors by name, read from disk on demand.
pub trait TensorSource: Send + Sync + fmt::Debug {
    /// The file or folder, as the user named it. For messages.
    fn path(&self) -> &Path;

    /// All tensors, sorted by name.
    fn tensors(&self) -> &[TensorInfo];

    /// Fills `out` with the values of `tensors()[index]` from `start_elem` on, in row-major order,
    /// as f32. The range must be inside the tensor.
    ///
    /// Errors: a dtype that is no float; a failed read.
    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()>;

    /// [`TensorSource::read_index`] by name.
    ///
    /// Errors: no such tensor; a range outside the tensor; a dtype that is no float; a failed read.
    fn read_f32_into(&self, name: &str, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let tensors = self.tensors();
        let index = position(tensors, name).with_context(|| missing(self.path(), name))?;
        check_range(self.path(), &tensors[index], start_elem, out.len())?;
        self.read_index(index, start_elem, out)
    }

    /// The tensor with a name.
    fn info(&self, name: &str) -> Option<&TensorInfo> {
        let at = position(self.tensors(), name)?;
        self.tensors().get(at)
    }

    /// All values of one tensor. Errors: as [`TensorSource::read_f32_into`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name).with_context(|| missing(self.path(), name))?;
        self.read_f32_range(name, 0, info.elem_count())
    }

    /// `len` values of one tensor from `start_elem` on, so that a large tensor can be streamed.
    ///
    /// Errors: as [`TensorSource::read_f32_into`], before anything is allocated.
    fn read_f32_range(&self, name: &str, start_elem: usize, len: usize) -> Result<Vec<f32>> {
        let info = self.info(name).with_context(|| missing(self.path(), name))?;
        check_range(self.path(), info, start_elem, len)?;
        // An unknown dtype has any shape, as no length of a file contradicts it.
        self.read_f32_into(name, start_elem, &mut [])?;
        let mut values = vec![0.0; len];
        self.read_f32_into(name, start_elem, &mut values)?;
        Ok(values)
    }
}

/// Opens a checkpoint of any form.
///
/// Errors: the path does not exist or has none of the forms; an error of the reader.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>> {
    let kind = std::fs::metadata(path)
        .map_err(|error| anyhow!("cannot open {}: {error}; check the path", path.display()))?;
    if kind.is_dir() {
        return open_folder(path);
    }
    single::normalize(open_file(path)?)
}

/// Opens a file, under its own names.
fn open_file(path: &Path) -> Result<Box<dyn TensorSource>> {
    match path.extension().and_then(OsStr::to_str) {
        Some("zst") => Ok(Box::new(zst::open(path)?)),
        Some("ckpt" | "pt" | "pth" | "bin") if torch::begins(path)? != torch::Begins::Other => {
            Ok(Box::new(torch::open(path)?))
        }
        Some("npy" | "npz") => {
            bail!("{}: give the folder that holds one <key>.npy for each tensor", path.display())
        }
        _ => {
            family::refuse_gguf(path)?;
            Ok(Box::new(safetensors::open(path)?))
        }
    }
}

fn open_folder(path: &Path) -> Result<Box<dyn TensorSource>> {
    if diffusers::is_folder(path) {
        return diffusers::open(path);
    }
    if npy::is_folder(path)? {
        return Ok(Box::new(npy::NpyFolder::open(path)?));
    }
    bail!(
        "{}: neither a diffusers model (text_encoder/, unet/, vae/) nor a folder of .npy files; \
         for a single-file checkpoint give the file itself",
        path.display()
    )
}

/// Index of a name in a list of tensors sorted by name.
fn position(tensors: &[TensorInfo], name: &str) -> Option<usize> {
    tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()
}

fn missing(path: &Path, name: &str) -> String {
    format!("{}: no tensor `{}`", path.display(), one_line(name))
}

/// Refuses a range outside the tensor.
fn check_range(path: &Path, info: &TensorInfo, start_elem: usize, len: usize) -> Result<()> {
    let count = info.elem_count();
    match start_elem.checked_add(len) {
        Some(end) if end <= count => Ok(()),
        _ => bail!(
            "{}: asked for {len} values from {start_elem} on of `{}`, which has {count}",
            path.display(),
            one_line(&info.name)
        ),
    }
}

/// Product of the dimensions; `None` if it overflows.
fn checked_elem_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Text of a file, made fit for a one-line message.
fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 240;
    let mut line: String = text
        .chars()
        .take(MAX_CHARS)
        .flat_map(|c| {
            let escape = c.is_control().then(|| c.escape_default());
            let plain = escape.is_none().then_some(c);
            escape.into_iter().flatten().chain(plain)
        })
        .collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        line.push('…');
    }
    line
}
