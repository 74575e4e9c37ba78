//! A checkpoint merged with LoRAs: changes of few parameters to linear layers and convolutions of
//! the U-Net and the text encoder.
//!
//! A layer's weight becomes `W + strength * alpha / rank * D`. [`keys`] reads the names that are in
//! use, [`product`] makes `D`. With a magnitude (DoRA), rows or columns of the sum are scaled to
//! it. The sum is computed when a tensor is read, so that a merged checkpoint takes no more memory.
//!
//! Sources: LoRA, Hu et al. 2021 (arXiv:2106.09685); LoHa, LoKr and LoCon, Yeh et al. 2023
//! (arXiv:2309.14859, LyCORIS); DoRA, Liu et al. 2024 (arXiv:2402.09353).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::{TensorInfo, TensorSource, one_line};
use keys::{Keys, Part, Place};
use product::{Parts, Product};

mod keys;
mod product;
mod switch;

pub use switch::{StepCost, step_cost, switch};

/// A LoRA to merge.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Its file.
    pub path: PathBuf,
    /// Factor of its change; 1 is the change as it was trained.
    pub strength: f32,
}

impl FromStr for Lora {
    type Err = String;

    /// Reads `FILE` or `FILE:STRENGTH`.
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.rsplit_once(':').and_then(|(path, strength)| {
            let strength: f32 = strength.parse().ok()?;
            Some((path, strength))
        });
        let (path, strength) = parsed.unwrap_or((text, 1.0));
        if path.is_empty() || !strength.is_finite() {
            return Err("FILE or FILE:STRENGTH, for example style.safetensors:0.8".into());
        }
        Ok(Lora { path: path.into(), strength })
    }
}

/// A checkpoint with the changes of its tensors.
#[derive(Debug)]
struct Merged {
    base: Box<dyn TensorSource>,
    loras: Vec<Box<dyn TensorSource>>,
    /// The changes of each tensor of `base`, by index, in the order of the LoRAs.
    changes: BTreeMap<usize, Vec<Change>>,
}

/// A LoRA's change of rows of a tensor.
#[derive(Debug)]
struct Change {
    /// Index of the LoRA.
    lora: usize,
    strength: f32,
    /// The rows of the tensor that are the layer's.
    first_row: usize,
    rows: usize,
    parts: Parts,
}

/// A checkpoint merged with LoRAs, and the layers of each LoRA that the checkpoint has not.
pub type Merge = (Box<dyn TensorSource>, Vec<(PathBuf, Vec<String>)>);

/// Merges a checkpoint with LoRAs.
///
/// Errors: a file cannot be read, has no layer of the checkpoint, lacks a part of a change, or has
/// a change of another shape than its layer.
pub fn merge(base: Box<dyn TensorSource>, wanted: &[Lora]) -> Result<Merge> {
    let keys = Keys::of(base.as_ref());
    let mut merged = Merged { base, loras: vec![], changes: BTreeMap::new() };
    let mut unmatched = vec![];
    for Lora { path, strength } in wanted {
        let lora = super::open_file(path)?;
        let (layers, others) = layers(lora.as_ref(), &keys, merged.base.tensors())?;
        if layers.is_empty() {
            bail!(
                "{}: {} has none of its layers; it is a LoRA of another model, or none",
                path.display(),
                merged.base.path().display()
            );
        }
        merged.loras.push(lora);
        for (place, parts) in layers {
            merged.add(place, parts, *strength)?;
        }
        if !others.is_empty() {
            unmatched.push((path.clone(), others));
        }
    }
    Ok((Box::new(merged), unmatched))
}

/// The parts of each layer that the checkpoint has, and the names of all others.
fn layers(
    lora: &dyn TensorSource,
    keys: &Keys,
    tensors: &[TensorInfo],
) -> Result<(BTreeMap<Place, Parts>, Vec<String>)> {
    let (mut layers, mut others) = (BTreeMap::<Place, Parts>::new(), vec![]);
    for (index, info) in lora.tensors().iter().enumerate() {
        let read = keys::split(&info.name);
        let place = read.and_then(|(layer, part)| Some((keys.place(layer, tensors)?, part)));
        match place {
            Some((place, part)) => {
                if layers.entry(place).or_default().insert(part, index).is_some() {
                    let name = one_line(&info.name);
                    bail!("{}: `{name}` is there under two names", lora.path().display());
                }
            }
            None => {
                let name = one_line(read.map_or(&*info.name, |(layer, _)| layer));
                if others.last() != Some(&name) {
                    others.push(name);
                }
            }
        }
    }
    Ok((layers, others))
}

impl Merged {
    fn add(&mut self, place: Place, parts: Parts, strength: f32) -> Result<()> {
        let lora = self.loras.len() - 1;
        let info = &self.base.tensors()[place.tensor];
        let all_rows = info.shape.first().copied().unwrap_or(1);
        let (first_row, rows) = match place.third {
            Some(third) => (third * (all_rows / 3), all_rows / 3),
            None => (0, all_rows),
        };
        let change = Change { lora, strength, first_row, rows, parts };
        let source = self.loras[lora].as_ref();
        let fit = product::check(source, &change.parts, rows, row_elems(info));
        fit.with_context(|| {
            format!("{}: its change of {}", source.path().display(), one_line(&info.name))
        })?;
        self.changes.entry(place.tensor).or_default().push(change);
        Ok(())
    }

    /// Changes whole rows of a tensor from `first_row` on.
    fn change(
        &self,
        index: usize,
        change: &Change,
        first_row: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let row_elems = row_elems(&self.base.tensors()[index]);
        let product = Product::read(self.loras[change.lora].as_ref(), &change.parts)?;
        let scale = product.scale;
        let magnitude = match change.parts.get(&Part::Magnitude) {
            Some(at) => Some(Magnitude::of(self, index, change, &product, *at)?),
            None => None,
        };
        let mut difference = vec![0.0; row_elems];
        for (at, values) in out.chunks_exact_mut(row_elems).enumerate() {
            let Some(row) = (first_row + at).checked_sub(change.first_row) else { continue };
            if row >= change.rows {
                break;
            }
            product.row(row, &mut difference);
            let factor = if magnitude.is_some() { scale } else { scale * change.strength };
            values.iter_mut().zip(&difference).for_each(|(value, d)| *value += factor * d);
            if let Some(magnitude) = &magnitude {
                magnitude.apply(row, change.strength, values);
            }
        }
        Ok(())
    }
}

/// Values of a row: of all dimensions but the first.
fn row_elems(info: &TensorInfo) -> usize {
    info.shape.iter().skip(1).product::<usize>().max(1)
}

/// The magnitude to which the rows or the columns of a changed weight are scaled.
enum Magnitude {
    /// Of each row: as PEFT has it, and LyCORIS for outputs.
    Rows(Vec<f32>),
    /// Of each input channel, and its present norm.
    Columns { factors: Vec<f32>, window: usize },
}

impl Magnitude {
    fn of(
        merged: &Merged,
        index: usize,
        change: &Change,
        product: &Product,
        part: usize,
    ) -> Result<Magnitude> {
        let lora = merged.loras[change.lora].as_ref();
        let (values, shape) = (product::read(lora, part)?, &lora.tensors()[part].shape);
        let info = &merged.base.tensors()[index];
        // LyCORIS writes [out, 1, ...] or [1, in, ...]; PEFT [out] or [1, out, 1, 1].
        let by_columns = shape.first() == Some(&1)
            && shape.len() > 1
            && change.rows > 1
            && !lora.tensors()[part].name.ends_with(keys::PEFT_MAGNITUDE);
        if !by_columns {
            return Ok(Magnitude::Rows(values));
        }
        let row_elems = row_elems(info);
        let window = row_elems / values.len();
        let mut squares = vec![0.0f64; values.len()];
        let (mut row, mut difference) = (vec![0.0; row_elems], vec![0.0; row_elems]);
        for at in 0..change.rows {
            merged.base.read_index(index, (change.first_row + at) * row_elems, &mut row)?;
            product.row(at, &mut difference);
            for (column, (value, d)) in row.iter().zip(&difference).enumerate() {
                squares[column / window] += f64::from(value + product.scale * d).powi(2);
            }
        }
        let factor = |(wanted, square): (f32, f64)| wanted / (square.sqrt() as f32 + f32::EPSILON);
        Ok(Magnitude::Columns {
            factors: values.into_iter().zip(squares).map(factor).collect(),
            window,
        })
    }

    /// Scales a row. At a strength under 1, a part of the way.
    fn apply(&self, row: usize, strength: f32, values: &mut [f32]) {
        let part = |factor: f32| strength * (factor - 1.0) + 1.0;
        match self {
            Magnitude::Rows(wanted) => {
                let square: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
                let factor = part(wanted[row] / (square.sqrt() as f32 + f32::EPSILON));
                values.iter_mut().for_each(|value| *value *= factor);
            }
            Magnitude::Columns { factors, window } => {
                for (chunk, factor) in values.chunks_exact_mut(*window).zip(factors) {
                    chunk.iter_mut().for_each(|value| *value *= part(*factor));
                }
            }
        }
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
        let Some(changes) = self.changes.get(&index) else {
            return self.base.read_index(index, start_elem, out);
        };
        let row_elems = row_elems(&self.base.tensors()[index]);
        // Whole rows: a magnitude is of a row.
        let (first_row, skip) = (start_elem / row_elems, start_elem % row_elems);
        let rows = (skip + out.len()).div_ceil(row_elems);
        let mut values = vec![0.0; rows * row_elems];
        self.base.read_index(index, first_row * row_elems, &mut values)?;
        for change in changes {
            self.change(index, change, first_row, &mut values)?;
        }
        out.copy_from_slice(&values[skip..skip + out.len()]);
        Ok(())
    }
}
