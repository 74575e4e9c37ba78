//! The checkpoint and the inputs of a random model: values that follow from their names.

use anyhow::Result;
use kiln_compiler::weights::{StoredType, TensorInfo, TensorSource};
use kiln_ir::{DType, Graph, NodeKind, Tensor};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// Inputs of a network by name.
pub type Inputs = std::collections::HashMap<String, Tensor>;

/// Uniform values in [-1, 1).
pub fn uniform(name: &str, count: usize) -> Vec<f32> {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let mut rng = fastrand::Rng::with_seed(hasher.finish());
    (0..count).map(|_| 2.0 * rng.f32() - 1.0).collect()
}

/// Every tensor that some graphs read.
#[derive(Debug)]
pub struct Checkpoint {
    infos: Vec<TensorInfo>,
    values: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    pub fn of<'a>(graphs: impl Iterator<Item = &'a Graph>) -> Self {
        let mut values = BTreeMap::new();
        for graph in graphs {
            for id in graph.ids() {
                let NodeKind::Weight(expr) = &graph.node(id).kind else { continue };
                for (key, shape) in expr.tensors() {
                    values.entry(key.to_string()).or_insert_with(|| tensor(key, shape));
                }
            }
        }
        let info = |(name, tensor): (&String, &Tensor)| TensorInfo {
            name: name.clone(),
            dtype: StoredType::F32,
            shape: tensor.shape.clone(),
        };
        Self { infos: values.iter().map(info).collect(), values }
    }

    pub fn get(&self, key: &str) -> &Tensor {
        &self.values[key]
    }
}

/// Values that keep the variance of what a contraction reads: biases and scales are large enough to
/// show.
fn tensor(key: &str, shape: &[usize]) -> Tensor {
    let mut data = uniform(key, shape.iter().product());
    match shape {
        [_] => data.iter_mut().for_each(|v| *v = 0.6 + 0.5 * *v),
        _ if key.contains("embedding") => {}
        _ => {
            let gain = (3.0 / shape[1..].iter().product::<usize>() as f32).sqrt();
            data.iter_mut().for_each(|v| *v *= gain);
        }
    }
    Tensor::new(shape, data)
}

impl TensorSource for Checkpoint {
    fn path(&self) -> &Path {
        Path::new("random")
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_index(&self, index: usize, start: usize, out: &mut [f32]) -> Result<()> {
        let tensor = &self.values[&self.infos[index].name];
        out.copy_from_slice(&tensor.data[start..start + out.len()]);
        Ok(())
    }
}

/// Inputs for a network as its model builds it.
pub fn inputs(graph: &Graph, vocabulary: usize) -> Inputs {
    let value = |id| {
        let node = graph.node(id);
        let count = node.ty.elem_count();
        let mut data = uniform(&node.name, count);
        if node.ty.dtype == DType::I32 {
            let id = |v: &mut f32| *v = ((*v + 1.0) / 2.0 * vocabulary as f32).floor();
            data.iter_mut().for_each(id);
        } else if node.name == "timestep" {
            data.fill(501.0);
        } else {
            data.iter_mut().for_each(|v| *v *= 1.7);
        }
        (node.name.clone(), Tensor::new(&node.ty.shape, data))
    };
    graph.inputs().into_iter().map(value).collect()
}
