//! A checkpoint merged with a LoRA: a low-rank change of the U-Net's linear layers and convolutions.
//!
//! A layer's weight becomes `W + alpha / rank * B A`. Names are those of PEFT and diffusers:
//! `unet.<layer>.lora_A.weight` (`A`, `[rank, in, ...]`), `unet.<layer>.lora_B.weight` (`B`,
//! `[out, rank, ...]`) and, if it is not the rank, `unet.<layer>.alpha`. The sum is computed when a
//! tensor is read.
//! Source: Hu et al. 2021 (arXiv:2106.09685).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::names::{UnetLayout, unet};
use super::{TensorInfo, TensorSource, one_line};

/// A checkpoint with the tensors of a LoRA.
#[derive(Debug)]
struct Merged {
    base: Box<dyn TensorSource>,
    lora: Box<dyn TensorSource>,
    /// The change of each tensor of `base`, by index.
    changes: BTreeMap<usize, Change>,
}

/// The change of one tensor.
#[derive(Debug, Default, Clone, Copy)]
struct Change {
    /// Indices of `A` and `B` in the LoRA.
    down: Option<usize>,
    up: Option<usize>,
    /// Index of `alpha`.
    alpha: Option<usize>,
}

/// The part of a change that a tensor of a LoRA is.
enum Part {
    Down,
    Up,
    Alpha,
}

/// Merges a checkpoint with the LoRA in a file.
///
/// Errors: the file cannot be read, has other names, changes a layer that the U-Net has not, or
/// does not fit.
pub fn merge(base: Box<dyn TensorSource>, path: &Path) -> Result<Box<dyn TensorSource>> {
    let lora = super::open_file(path)?;
    let layout = UnetLayout::of_single_file(base.tensors());
    let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
    for (index, info) in lora.tensors().iter().enumerate() {
        let shown = || format!("{}: `{}`", path.display(), one_line(&info.name));
        let Some((layer, part)) = part(&info.name) else {
            bail!(
                "{} is no LoRA of a U-Net in the names of PEFT or diffusers \
                 (unet.<layer>.lora_A.weight)",
                shown()
            )
        };
        let name = unet(&format!("{layer}.weight"), &layout);
        let tensors = base.tensors();
        let found = name.and_then(|name| tensors.binary_search_by(|t| t.name.cmp(&name)).ok());
        let change = changes.entry(found.with_context(|| {
            format!("{} changes a layer that {} has not", shown(), base.path().display())
        })?);
        let change = change.or_default();
        let slot = match part {
            Part::Down => &mut change.down,
            Part::Up => &mut change.up,
            Part::Alpha => &mut change.alpha,
        };
        if slot.replace(index).is_some() {
            bail!("{} is there twice", shown());
        }
    }
    if changes.is_empty() {
        bail!("{}: it has no tensors", path.display());
    }
    let merged = Merged { base, lora, changes };
    merged.changes.keys().try_for_each(|index| merged.check(*index))?;
    Ok(Box::new(merged))
}

/// The layer in diffusers' names, and the part of its change.
fn part(name: &str) -> Option<(&str, Part)> {
    let name = name.strip_prefix("unet.").unwrap_or(name);
    let parts =
        [(".lora_A.weight", Part::Down), (".lora_B.weight", Part::Up), (".alpha", Part::Alpha)];
    parts.into_iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, part)))
}

impl Merged {
    /// Checks that a change has both factors, of shapes that make the tensor's.
    fn check(&self, index: usize) -> Result<()> {
        let (info, lora) = (&self.base.tensors()[index], self.lora.tensors());
        let change = self.changes[&index];
        let shown = || {
            let (path, name) = (self.lora.path().display(), one_line(&info.name));
            format!("{path}: its change of {name}")
        };
        let (Some(down), Some(up)) = (change.down, change.up) else {
            bail!("{} lacks lora_A or lora_B", shown())
        };
        let (down, up) = (&lora[down], &lora[up]);
        let fits = match (down.shape.first(), info.shape.first()) {
            (Some(&rank), Some(&rows)) if rank > 0 && rows > 0 => {
                down.elem_count() / rank == info.elem_count() / rows
                    && down.elem_count().is_multiple_of(rank)
                    && up.shape.first() == Some(&rows)
                    && up.elem_count() == rows.saturating_mul(rank)
            }
            _ => false,
        };
        if !fits {
            let shapes = (&up.shape, &down.shape, &info.shape);
            bail!(
                "{} has shapes {:?} and {:?}, the layer {:?}",
                shown(),
                shapes.0,
                shapes.1,
                shapes.2
            );
        }
        if change.alpha.is_some_and(|alpha| lora[alpha].elem_count() != 1) {
            bail!("{} has an alpha of several values", shown());
        }
        Ok(())
    }

    fn read(&self, index: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.lora.tensors()[index].elem_count()];
        self.lora.read_index(index, 0, &mut values)?;
        Ok(values)
    }
}

impl TensorSource for Merged {
    fn path(&self) -> &Path {
        self.base.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.base.tensors()
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        self.base.read_index(index, start_elem, out)?;
        let change = self.changes.get(&index);
        let Some(&Change { down: Some(down), up: Some(up), alpha }) = change else { return Ok(()) };
        let rank = self.lora.tensors()[down].shape[0];
        let (down, up) = (self.read(down)?, self.read(up)?);
        let alpha = alpha.map(|alpha| self.read(alpha)).transpose()?;
        let scale = alpha.map_or(1.0, |alpha| alpha[0] / rank as f32);
        let row_elems = down.len() / rank;
        let mut at = start_elem;
        let mut rest = out;
        while !rest.is_empty() {
            let (row, column) = (at / row_elems, at % row_elems);
            let len = rest.len().min(row_elems - column);
            let (now, later) = rest.split_at_mut(len);
            for (k, factors) in down.chunks_exact(row_elems).enumerate() {
                let factor = scale * up[row * rank + k];
                let terms = &factors[column..column + len];
                now.iter_mut().zip(terms).for_each(|(value, term)| *value += factor * term);
            }
            rest = later;
            at += len;
        }
        Ok(())
    }
}
