//! Two checkpoints as one: the second provides the tensors that the first lacks.

use std::path::Path;

use anyhow::{Context, Result};

use super::{TensorInfo, TensorSource, missing};

/// A checkpoint with its gaps filled from another.
#[derive(Debug)]
pub struct Joined {
    sources: [Box<dyn TensorSource>; 2],
    tensors: Vec<TensorInfo>,
}

impl Joined {
    /// Joins two checkpoints. A tensor in both is read from the first.
    pub fn new(first: Box<dyn TensorSource>, second: Box<dyn TensorSource>) -> Self {
        let mut tensors = first.tensors().to_vec();
        tensors.extend(second.tensors().iter().filter(|t| first.info(&t.name).is_none()).cloned());
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { sources: [first, second], tensors }
    }
}

impl TensorSource for Joined {
    fn path(&self) -> &Path {
        self.sources[0].path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let name = &self.tensors[index].name;
        let source = self.sources.iter().find(|source| source.info(name).is_some());
        let source = source.with_context(|| missing(self.path(), name))?;
        source.read_f32_into(name, start_elem, out)
    }
}
