//! A network under construction: single layers with their constants.

use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::group_norm::GroupNorm;
use kiln_ir::ops::layer_norm::LayerNorm;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::ops::pointwise::Add;
use kiln_ir::ops::pointwise::Silu;
use kiln_ir::{Graph, IrError, TensorType, ValueId};

/// Number of groups of every group normalization of the model family.
const NORM_GROUPS: usize = 32;
/// Addend of the variance in every layer normalization.
const LAYER_NORM_EPS: f32 = 1e-5;

/// A graph under construction. Layers are named by their path in the checkpoint after `prefix`: an
/// op has the path as its name, and a constant has `prefix` + path + `.weight` or `.bias` as its
/// key.
pub struct Layers {
    /// The graph so far.
    pub graph: Graph,
    prefix: &'static str,
}

impl Layers {
    /// An empty network. All its keys begin with `prefix`.
    pub fn new(name: &str, prefix: &'static str) -> Self {
        Self { graph: Graph::new(name), prefix }
    }

    /// Channels of a value.
    pub fn channels(&self, x: ValueId) -> usize {
        self.graph.ty(x).channels()
    }

    /// Adds an input of the network.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        self.graph.input(name, ty)
    }

    /// Makes `value` an output and returns the finished graph.
    pub fn finish(mut self, output: &str, value: ValueId) -> Graph {
        self.graph.output(output, value);
        self.graph
    }

    /// A tensor of the checkpoint by its key after the prefix.
    pub fn tensor(&mut self, path: &str, shape: &[usize]) -> ValueId {
        self.graph.tensor(&format!("{}{path}", self.prefix), shape, None)
    }

    /// `x + y`. `y` may repeat over leading axes.
    pub fn add(&mut self, name: &str, x: ValueId, y: ValueId) -> Result<ValueId, IrError> {
        self.graph.push(name, Add, &[x, y])
    }

    /// `x * sigmoid(x)`.
    pub fn silu(&mut self, name: &str, x: ValueId) -> Result<ValueId, IrError> {
        self.graph.push(name, Silu, &[x])
    }

    /// `x` by `weight` transposed.
    pub fn matmul(&mut self, name: &str, x: ValueId, weight: ValueId) -> Result<ValueId, IrError> {
        self.graph.push(name, Matmul::default(), &[x, weight])
    }

    /// Adds the `[C]` constant at `key` to every row.
    pub fn add_bias(&mut self, path: &str, key: &str, x: ValueId) -> Result<ValueId, IrError> {
        let bias = self.tensor(key, &[self.channels(x)]);
        self.add(&format!("{path}.add_bias"), x, bias)
    }

    /// Linear layer without bias: `x` by `{path}.weight`, `[out, C]`.
    pub fn linear_no_bias(
        &mut self,
        path: &str,
        x: ValueId,
        out: usize,
    ) -> Result<ValueId, IrError> {
        let weight = self.tensor(&format!("{path}.weight"), &[out, self.channels(x)]);
        self.matmul(path, x, weight)
    }

    /// Linear layer.
    pub fn linear(&mut self, path: &str, x: ValueId, out: usize) -> Result<ValueId, IrError> {
        let y = self.linear_no_bias(path, x, out)?;
        self.add_bias(path, &format!("{path}.bias"), y)
    }

    /// Convolution with a 1x1 window: a linear layer whose weights are stored as `[out, C, 1, 1]`.
    pub fn pointwise(&mut self, path: &str, x: ValueId, out: usize) -> Result<ValueId, IrError> {
        let (key, c) = (format!("{}{path}.weight", self.prefix), self.channels(x));
        let weight = self.graph.tensor(&key, &[out, c, 1, 1], Some(&[out, c]));
        let y = self.matmul(path, x, weight)?;
        self.add_bias(path, &format!("{path}.bias"), y)
    }

    /// Convolution with a 3x3 window and one zero of padding on each side.
    pub fn conv3x3(
        &mut self,
        path: &str,
        x: ValueId,
        out: usize,
        stride: usize,
    ) -> Result<ValueId, IrError> {
        let weight = self.tensor(&format!("{path}.weight"), &[out, self.channels(x), 3, 3]);
        let y = self.graph.push(path, Conv2d::new(3, stride), &[x, weight])?;
        self.add_bias(path, &format!("{path}.bias"), y)
    }

    /// Convolution with a 3x3 window that keeps the number of channels, without bias.
    pub fn conv3x3_no_bias(
        &mut self,
        path: &str,
        x: ValueId,
        stride: usize,
    ) -> Result<ValueId, IrError> {
        let channels = self.channels(x);
        let weight = self.tensor(&format!("{path}.weight"), &[channels, channels, 3, 3]);
        self.graph.push(path, Conv2d::new(3, stride), &[x, weight])
    }

    /// Convolution with a 3x3 window of stride 2 and one zero below and right, none above and left.
    pub fn conv3x3_to_end(&mut self, path: &str, x: ValueId) -> Result<ValueId, IrError> {
        let channels = self.channels(x);
        let weight = self.tensor(&format!("{path}.weight"), &[channels, channels, 3, 3]);
        let op = Conv2d { padding: 0, padding_end: 1, ..Conv2d::new(3, 2) };
        let y = self.graph.push(path, op, &[x, weight])?;
        self.add_bias(path, &format!("{path}.bias"), y)
    }

    /// Group normalization.
    pub fn group_norm(&mut self, path: &str, x: ValueId, eps: f32) -> Result<ValueId, IrError> {
        let [gamma, beta] = self.norm_tensors(path, x);
        let op = GroupNorm { sources: 1, groups: NORM_GROUPS, eps, activation: Activation::None };
        self.graph.push(path, op, &[x, gamma, beta])
    }

    /// Layer normalization.
    pub fn layer_norm(&mut self, path: &str, x: ValueId) -> Result<ValueId, IrError> {
        let [gamma, beta] = self.norm_tensors(path, x);
        self.graph.push(path, LayerNorm { eps: LAYER_NORM_EPS }, &[x, gamma, beta])
    }

    fn norm_tensors(&mut self, path: &str, x: ValueId) -> [ValueId; 2] {
        let c = self.channels(x);
        ["weight", "bias"].map(|leaf| self.tensor(&format!("{path}.{leaf}"), &[c]))
    }
}
