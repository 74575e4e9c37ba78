//! A random network under construction: single ops with the constants they own.

use arbtest::arbitrary::Unstructured;
use kiln_ir::ops::concat::Concat;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::geglu::Geglu;
use kiln_ir::ops::group_norm::GroupNorm;
use kiln_ir::ops::layer_norm::LayerNorm;
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::ops::pointwise::{Add, Gelu, Mul, QuickGelu, Relu, Silu};
use kiln_ir::ops::scale::Scale;
use kiln_ir::ops::upsample::Upsample;
use kiln_ir::{Graph, Op, TensorType, ValueId};

use crate::entropy::Entropy;

/// Extents that a network is made of.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// Channels of values between ops.
    pub channels: &'static [usize],
    /// Groups of a group normalization.
    pub groups: &'static [usize],
    /// Multiply-adds of one network at most for an entry of its batch, so that the reference takes
    /// a fraction of a second.
    pub multiply_adds: usize,
}

/// A network under construction. Constants are named by number under `prefix`.
pub struct Builder<'a> {
    /// The graph so far.
    pub graph: Graph,
    /// What decides.
    pub entropy: Entropy<'a>,
    /// The timestep, projected: `[1, C]`.
    pub row: Option<ValueId>,
    /// The embedding of the prompt: `[N, L, C]`.
    pub context: Option<ValueId>,
    /// Values that later ops may read again.
    pub pool: Vec<ValueId>,
    pub palette: Palette,
    prefix: &'static str,
    names: usize,
    multiply_adds: usize,
}

impl<'a> Builder<'a> {
    pub fn new(name: &'static str, palette: Palette, bytes: &'a [u8]) -> Self {
        Self {
            graph: Graph::new(name),
            entropy: Entropy(Unstructured::new(bytes)),
            row: None,
            context: None,
            pool: vec![],
            palette,
            prefix: name,
            names: 0,
            multiply_adds: 0,
        }
    }

    pub fn ty(&self, value: ValueId) -> TensorType {
        self.graph.ty(value).clone()
    }

    pub fn channels(&self, value: ValueId) -> usize {
        self.graph.ty(value).channels()
    }

    /// Height of a square feature map; `None` for rows of tokens.
    pub fn height(&self, value: ValueId) -> Option<usize> {
        self.graph.ty(value).nhwc().map(|[_, height, ..]| height)
    }

    /// Whether the network may do so much more work for each entry of its batch; it is counted if
    /// so.
    pub fn afford(&mut self, multiply_adds: usize) -> bool {
        let fits = self.multiply_adds + multiply_adds <= self.palette.multiply_adds;
        self.multiply_adds += if fits { multiply_adds } else { 0 };
        fits
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{}.{}.{what}", self.prefix, self.names)
    }

    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        let op = op.into();
        let name = self.name(op.name());
        self.graph.push(&name, op, inputs).expect("the generators keep every op's rules")
    }

    /// A constant of the checkpoint; sometimes one that is computed from others.
    pub fn weight(&mut self, shape: &[usize]) -> ValueId {
        let first = self.tensor(shape);
        if !self.entropy.chance(8) {
            return first;
        }
        match self.entropy.below(3) {
            0 => self.op(Scale { factor: -0.75 }, &[first]),
            1 => {
                let second = self.tensor(shape);
                let both = self.op(Add, &[first, second]);
                self.op(Scale { factor: 0.75 }, &[both])
            }
            _ if shape[shape.len() - 1] > 1 => {
                let columns = shape[shape.len() - 1];
                let first = self.tensor(&[&shape[..shape.len() - 1], &[1]].concat());
                let rest = self.tensor(&[&shape[..shape.len() - 1], &[columns - 1]].concat());
                self.op(Concat, &[first, rest])
            }
            _ => first,
        }
    }

    fn tensor(&mut self, shape: &[usize]) -> ValueId {
        let key = self.name("tensor");
        self.graph.tensor(&key, shape, None)
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.op(Add, &[a, b])
    }

    pub fn add_bias(&mut self, x: ValueId) -> ValueId {
        let bias = self.weight(&[self.channels(x)]);
        self.add(x, bias)
    }

    pub fn activate(&mut self, x: ValueId, activation: Activation) -> ValueId {
        match activation {
            Activation::None => x,
            Activation::Silu => self.op(Silu, &[x]),
            Activation::Gelu => self.op(Gelu, &[x]),
            Activation::QuickGelu => self.op(QuickGelu, &[x]),
            Activation::Geglu => self.op(Geglu, &[x]),
            Activation::Relu => self.op(Relu, &[x]),
        }
    }

    /// A linear layer without bias. A 1x1 filter of a checkpoint is a view, as in the autoencoder.
    pub fn linear_no_bias(&mut self, x: ValueId, out: usize) -> ValueId {
        let c = self.channels(x);
        let weight = if self.entropy.chance(20) {
            let key = self.name("filter");
            self.graph.tensor(&key, &[out, c, 1, 1], Some(&[out, c]))
        } else {
            self.weight(&[out, c])
        };
        self.op(Matmul::default(), &[x, weight])
    }

    pub fn linear(&mut self, x: ValueId, out: usize) -> ValueId {
        let y = self.linear_no_bias(x, out);
        if self.entropy.chance(80) { self.add_bias(y) } else { y }
    }

    /// Rows of one entry of the batch: a network for another batch is decided alike.
    pub fn rows(&self, value: ValueId) -> usize {
        self.graph.ty(value).rows() / self.graph.ty(value).batch()
    }

    /// Multiply-adds of [`Self::linear`] for one entry of the batch.
    pub fn linear_work(&self, x: ValueId, out: usize) -> usize {
        self.rows(x) * self.channels(x) * out
    }

    /// A convolution, mostly with a bias.
    pub fn conv(&mut self, x: ValueId, out: usize, op: Conv2d) -> ValueId {
        let weight = self.weight(&[out, self.channels(x), op.kernel, op.kernel]);
        let y = self.op(op, &[x, weight]);
        if self.entropy.chance(80) { self.add_bias(y) } else { y }
    }

    /// Multiply-adds of a convolution of stride 1 for one entry of the batch.
    pub fn conv_work(&self, x: ValueId, out: usize, kernel: usize) -> usize {
        self.linear_work(x, out) * kernel * kernel
    }

    pub fn group_norm(&mut self, x: ValueId) -> ValueId {
        let c = self.channels(x);
        let fitting = self.palette.groups.iter().copied().filter(|g| c.is_multiple_of(*g));
        let groups = self.entropy.pick(&fitting.chain([1]).collect::<Vec<_>>());
        let [gamma, beta] = [(); 2].map(|()| self.weight(&[c]));
        let op = GroupNorm { sources: 1, groups, eps: 1e-5, activation: Activation::None };
        self.op(op, &[x, gamma, beta])
    }

    pub fn layer_norm(&mut self, x: ValueId) -> ValueId {
        let c = self.channels(x);
        let [gamma, beta] = [(); 2].map(|()| self.weight(&[c]));
        self.op(LayerNorm { eps: 1e-5 }, &[x, gamma, beta])
    }

    /// The timestep's projection to the channels of `x`, added or, rarely, multiplied.
    pub fn with_timestep(&mut self, x: ValueId) -> ValueId {
        let Some(row) = self.row else { return x };
        let row = self.linear(row, self.channels(x));
        if self.entropy.chance(90) { self.add(x, row) } else { self.op(Mul, &[x, row]) }
    }

    /// A value of the pool of the same shape; `x` itself at times.
    pub fn same_shape(&mut self, x: ValueId) -> Option<ValueId> {
        let ty = self.ty(x);
        let fitting: Vec<_> =
            self.pool.iter().copied().filter(|v| self.graph.ty(*v) == &ty).collect();
        (!fitting.is_empty()).then(|| self.entropy.pick(&fitting))
    }

    /// A value of the pool that can be concatenated with `x`.
    pub fn beside(&mut self, x: ValueId) -> Option<ValueId> {
        let shape = self.ty(x).with_channels(1).shape;
        let fits = |v: &ValueId| self.graph.ty(*v).with_channels(1).shape == shape;
        let fitting: Vec<_> = self.pool.iter().copied().filter(fits).collect();
        (!fitting.is_empty()).then(|| self.entropy.pick(&fitting))
    }

    /// Channels for a next value.
    pub fn any_channels(&mut self) -> usize {
        self.entropy.pick(self.palette.channels)
    }

    /// Brings a feature map to an extent and channels.
    pub fn finish(&mut self, mut x: ValueId, height: usize, channels: usize) -> ValueId {
        while let Some(found) = self.height(x).filter(|found| *found != height) {
            x = if found < height {
                let doubled = self.op(Upsample, &[x]);
                self.conv(doubled, channels, Conv2d::new(3, 1))
            } else {
                self.conv(x, channels, Conv2d::new(3, 2))
            };
        }
        if self.entropy.chance(60) {
            x = self.group_norm(x);
            x = self.op(Silu, &[x]);
        }
        self.conv(x, channels, Conv2d::new(3, 1))
    }

    /// The graph, with its only output.
    pub fn output(mut self, name: &str, value: ValueId) -> Graph {
        self.graph.output(name, value);
        self.graph
    }
}
