//! Sources under the names of the single-file layout: each tensor is one of another source, or
//! several of them joined along the first dimension.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use super::names::{Form, Target, single_file_shape};
use super::stored::StoredType;
use super::{TensorInfo, TensorSource, checked_elem_count, one_line};

/// A tensor of a source, and what it is in the single-file layout.
#[derive(Debug)]
pub(super) struct Entry {
    /// Index of the source.
    pub source: usize,
    /// Index of the tensor in the source.
    pub tensor: usize,
    /// Its name, or the part that it is of a name.
    pub target: Target,
}

/// Sources under other names.
#[derive(Debug)]
pub(super) struct Mapped {
    path: PathBuf,
    sources: Vec<Box<dyn TensorSource>>,
    tensors: Vec<TensorInfo>,
    /// Source and index of the parts of each entry of `tensors`, in order.
    parts: Vec<Vec<(usize, usize)>>,
}

impl Mapped {
    /// Gives tensors their names.
    ///
    /// Errors: two tensors have one name; parts of a tensor are missing or do not fit together.
    pub fn new(
        path: &Path,
        sources: Vec<Box<dyn TensorSource>>,
        entries: Vec<Entry>,
    ) -> Result<Self> {
        let mut by_name: BTreeMap<String, Vec<Option<(usize, usize)>>> = BTreeMap::new();
        for Entry { source, tensor, target: Target { name, form } } in entries {
            let (slot, count) = match form {
                Form::Third(slot) => (slot, 3),
                Form::Whole => (0, 1),
            };
            let slots = by_name.entry(name).or_insert_with(|| vec![None; count]);
            let is_free = slots.len() == count && slots[slot].is_none();
            if !is_free {
                let source = &sources[source];
                bail!(
                    "{}: `{}` is there twice, or under two names",
                    source.path().display(),
                    one_line(&source.tensors()[tensor].name)
                );
            }
            slots[slot] = Some((source, tensor));
        }
        let path = path.to_path_buf();
        let mut this = Self { path, sources, tensors: Vec::new(), parts: Vec::new() };
        for (name, slots) in by_name {
            this.add(name, slots)?;
        }
        Ok(this)
    }

    fn stored(&self, (source, tensor): (usize, usize)) -> &TensorInfo {
        &self.sources[source].tensors()[tensor]
    }

    /// Adds a tensor of some parts.
    fn add(&mut self, name: String, slots: Vec<Option<(usize, usize)>>) -> Result<()> {
        let parts: Vec<(usize, usize)> = slots.iter().flatten().copied().collect();
        let path = parts.first().map_or(self.path(), |part| self.sources[part.0].path());
        if parts.len() < slots.len() {
            let found = parts.iter().map(|part| one_line(&self.stored(*part).name));
            bail!(
                "{}: query, key and value belong together, but there is only `{}`",
                path.display(),
                found.collect::<Vec<_>>().join("`, `")
            );
        }
        let stored: Vec<&TensorInfo> = parts.iter().map(|part| self.stored(*part)).collect();
        let (dtype, shape) = join(&stored).map_err(|what| {
            anyhow!("{}: parts of `{}` do not fit: {what}", path.display(), one_line(&name))
        })?;
        let shape = single_file_shape(&name, shape);
        self.tensors.push(TensorInfo { name, dtype, shape });
        self.parts.push(parts);
        Ok(())
    }
}

impl TensorSource for Mapped {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let mut skip = start_elem;
        let mut rest = out;
        for part in &self.parts[index] {
            let elem_count = self.stored(*part).elem_count();
            let from = skip.min(elem_count);
            skip -= from;
            let len = rest.len().min(elem_count - from);
            let (now, later) = rest.split_at_mut(len);
            if !now.is_empty() {
                self.sources[part.0].read_index(part.1, from, now)?;
            }
            rest = later;
        }
        Ok(())
    }
}

/// Type and shape of parts that are joined along the first dimension.
fn join(parts: &[&TensorInfo]) -> Result<(StoredType, Vec<usize>), String> {
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
