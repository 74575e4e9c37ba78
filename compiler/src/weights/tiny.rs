//! Tiny autoencoders (TAESD), in the layouts in which they are published.
//!
//! | names | where from |
//! |---|---|
//! | `decoder.layers.N.*`, `encoder.layers.N.*` | diffusers' `AutoencoderTiny`, a file or a folder |
//! | `N.*` | `taesd_decoder`, `taesd_encoder`: the decoder counts its clamp as layer 0 |
//! | `decoder.N.*`, `taesd_decoder.N.*` | both halves of the former in one file |
//!
//! The tensors are given diffusers' names behind `tiny.`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::diffusers::{Component, weight_file};
use super::{TensorInfo, TensorSource};

/// Begins the name of every tensor.
const PREFIX: &str = "tiny";
/// Most levels of an encoder or decoder.
const MAX_LEVELS: usize = 8;

/// Half of an autoencoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// Image to latent.
    Encoder,
    /// Latent to image.
    Decoder,
}

impl Half {
    fn name(self) -> &'static str {
        match self {
            Half::Encoder => "encoder",
            Half::Decoder => "decoder",
        }
    }
}

/// Sizes of an encoder or a decoder, as its tensors have them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Channels of what it reads.
    pub in_channels: usize,
    /// Channels of every feature map.
    pub channels: usize,
    /// Residual blocks of each level, in execution order.
    pub blocks: Vec<usize>,
    /// Channels of its result.
    pub out_channels: usize,
}

/// The tensors of a tiny autoencoder.
#[derive(Debug)]
pub struct TinyWeights {
    source: Box<dyn TensorSource>,
    tensors: Vec<TensorInfo>,
    /// Index in `source` of each entry of `tensors`.
    indices: Vec<usize>,
}

impl TinyWeights {
    /// Opens a tiny autoencoder. `None` if the file or folder holds something else.
    ///
    /// Errors: those of the readers.
    pub fn open(path: &Path) -> Result<Option<TinyWeights>> {
        let Some(file) = file(path)? else { return Ok(None) };
        let source = super::open(&file)?;
        let has = |name: &str| source.info(name).is_some();
        let bare = if has("0.weight") { Half::Encoder } else { Half::Decoder };
        let mut entries: Vec<(TensorInfo, usize)> = Vec::new();
        for (index, info) in source.tensors().iter().enumerate() {
            if let Some(name) = name(&info.name, bare) {
                entries.push((TensorInfo { name, ..info.clone() }, index));
            }
        }
        entries.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        if entries.windows(2).any(|pair| pair[0].0.name == pair[1].0.name) {
            bail!("{}: a layer is there under two names", file.display());
        }
        let (tensors, indices) = entries.into_iter().unzip();
        let found = TinyWeights { source, tensors, indices };
        let halves = [Half::Encoder, Half::Decoder];
        let is_tiny = halves.iter().any(|half| found.layer(*half, 0, "weight").is_some());
        Ok(is_tiny.then_some(found))
    }

    /// The sizes of a half. `None` if it is not there.
    ///
    /// Errors: its layers are not those of a tiny autoencoder.
    pub fn shape(&self, half: Half) -> Result<Option<Shape>> {
        let Some(first) = self.layer(half, 0, "weight") else { return Ok(None) };
        let what = || format!("{}: no tiny {}", self.path().display(), half.name());
        let &[channels, in_channels, 3, 3] = &first.shape[..] else {
            bail!("{}: layer 0 is no 3x3 convolution", what());
        };
        // A decoder has its first ReLU as layer 1.
        let begin = if half == Half::Decoder { 2 } else { 1 };
        let last = self.tensors.iter().filter_map(|t| layer_of(&t.name, half)).max().unwrap_or(0);
        let mut blocks = vec![0];
        let mut out_channels = None;
        for layer in begin..=last {
            if self.layer(half, layer, "conv.0.weight").is_some() {
                *blocks.last_mut().with_context(what)? += 1;
            } else if let Some(weight) = self.layer(half, layer, "weight") {
                match layer == last {
                    true => out_channels = weight.shape.first().copied(),
                    false => blocks.push(0),
                }
            }
        }
        match out_channels {
            Some(out_channels) if blocks.len() <= MAX_LEVELS => {
                Ok(Some(Shape { in_channels, channels, blocks, out_channels }))
            }
            _ => bail!("{}: its last layer is no convolution, or it has too many", what()),
        }
    }

    fn layer(&self, half: Half, layer: usize, rest: &str) -> Option<&TensorInfo> {
        self.info(&format!("{PREFIX}.{}.layers.{layer}.{rest}", half.name()))
    }
}

impl TensorSource for TinyWeights {
    fn path(&self) -> &Path {
        self.source.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        self.source.read_index(self.indices[index], start_elem, out)
    }
}

/// The file with the weights: itself, or that of a folder or of its `vae/`.
fn file(path: &Path) -> Result<Option<PathBuf>> {
    if !path.is_dir() {
        return Ok(Some(path.to_owned()));
    }
    let folders = [path.to_owned(), path.join("vae")];
    Ok(folders.iter().find_map(|folder| weight_file(folder, Component::Vae)))
}

/// The name of a stored tensor here. `bare` is the half of names that say none.
fn name(stored: &str, bare: Half) -> Option<String> {
    let parts: Vec<&str> = stored.strip_prefix("taesd_").unwrap_or(stored).split('.').collect();
    let half_of = |name: &str| match name {
        "encoder" => Some(Half::Encoder),
        "decoder" => Some(Half::Decoder),
        _ => None,
    };
    let (half, layer, rest) = match parts.as_slice() {
        [half, "layers", layer, rest @ ..] => (half_of(half)?, layer.parse().ok()?, rest),
        [half, layer, rest @ ..] if half_of(half).is_some() => {
            let half = half_of(half)?;
            (half, own_layer(half, layer)?, rest)
        }
        [layer, rest @ ..] => (bare, own_layer(bare, layer)?, rest),
        [] => return None,
    };
    Some(format!("{PREFIX}.{}.layers.{layer}.{}", half.name(), rest.join(".")))
}

/// A layer's number in diffusers, which leaves the decoder's clamp out.
fn own_layer(half: Half, layer: &str) -> Option<usize> {
    let layer: usize = layer.parse().ok()?;
    layer.checked_sub(usize::from(half == Half::Decoder))
}

/// The number of a tensor's layer. No autoencoder has over three digits of them.
fn layer_of(name: &str, half: Half) -> Option<usize> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('.')?.strip_prefix(half.name())?;
    let number = rest.strip_prefix(".layers.")?.split('.').next()?;
    if number.len() <= 3 { number.parse().ok() } else { None }
}
