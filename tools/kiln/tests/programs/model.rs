//! A random diffusion model: a text encoder, a denoiser, a decoder and perhaps an encoder.

use kiln_bundle::plan::{Manifest, Schedule, Size};
use kiln_compiler::Model;
use kiln_ir::ops::concat::Concat;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::embedding::Embedding;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::pointwise::Add;
use kiln_ir::ops::scale::Scale;
use kiln_ir::ops::slice::Slice;
use kiln_ir::ops::timestep_embedding::TimestepEmbedding;
use kiln_ir::{DType, Graph, TensorType, ValueId};
use std::fmt;

use crate::blocks::blocks;
use crate::builder::{Builder, Palette};
use crate::entropy::Entropy;

/// What CLIP's tokenizer is made from.
pub const CLIP_MERGES: &[u8] = include_bytes!("../../../../graphs/assets/clip_merges.txt");
/// Rows of the token table of CLIP's tokenizer, which pictures need.
pub const CLIP_VOCABULARY: usize = 49408;
/// Tokens of CLIP's prompts.
pub const CLIP_TOKENS: usize = 77;

/// Few extents, so that programs have kernels in common and drivers compile few.
const NARROW: Palette = Palette { channels: &[16, 32], groups: &[4], multiply_adds: 3_000_000 };
/// Extents that no tile divides, and weights of some hundred KiB.
const WIDE: Palette = Palette {
    channels: &[4, 6, 8, 12, 16, 20, 24, 32, 33, 40, 48, 64, 96, 128],
    groups: &[1, 2, 3, 4, 6, 8, 11, 16, 32],
    multiply_adds: 6_000_000,
};

/// Sizes, and the bytes that each network is made from: the same network for another batch.
pub struct RandomModel {
    pub latent_px: usize,
    pub latent_channels: usize,
    /// Pixels of the image for each of the latent, along one side.
    pub factor: usize,
    pub tokens: usize,
    pub vocabulary: usize,
    pub context_channels: usize,
    pub with_encoder: bool,
    palette: Palette,
    networks: [Vec<u8>; 4],
}

impl RandomModel {
    /// `networks` decides what they are made of. `narrow` has few extents, `picture` the prompts of
    /// CLIP's tokenizer.
    pub fn any(entropy: &mut Entropy, networks: &[u8], narrow: bool, picture: bool) -> Self {
        let palette = if narrow { NARROW } else { WIDE };
        let pick = |entropy: &mut Entropy, few: &[usize], many: &[usize]| {
            entropy.pick(if narrow { few } else { many })
        };
        let latent_px = pick(entropy, &[8], &[4, 5, 6, 8, 8, 12, 16]);
        let share = networks.len() / 4;
        Self {
            latent_px,
            latent_channels: pick(entropy, &[4], &[1, 3, 4, 8]),
            factor: pick(entropy, &[2], if latent_px > 8 { &[1, 2] } else { &[1, 2, 4] }),
            tokens: if picture { CLIP_TOKENS } else { pick(entropy, &[8], &[1, 3, 8, 17]) },
            vocabulary: if picture { CLIP_VOCABULARY } else { 100 },
            context_channels: pick(entropy, &[16], &[4, 12, 16, 48, 96]),
            with_encoder: entropy.chance(40),
            palette,
            networks: [0, 1, 2, 3].map(|i| networks[i * share..(i + 1) * share].to_vec()),
        }
    }

    pub fn image_px(&self) -> usize {
        self.latent_px * self.factor
    }

    fn text(&self, batch: usize) -> Graph {
        let mut net = Builder::new("text_encoder", self.palette, &self.networks[0]);
        let (tokens, channels) = (self.tokens, self.context_channels);
        let ids = net.graph.input("tokens", TensorType::new(DType::I32, &[batch, tokens]));
        let table = net.graph.tensor("token_embedding", &[self.vocabulary, channels], None);
        let x = net.op(Embedding, &[ids, table]);
        let positions = net.weight(&[tokens, channels]);
        let x = net.add(x, positions);
        let count = net.entropy.within(0..=4);
        let x = blocks(&mut net, x, count);
        let x = if net.channels(x) == channels { x } else { net.linear(x, channels) };
        let x = net.layer_norm(x);
        net.output("embedding", x)
    }

    fn denoiser(&self, batch: usize) -> Graph {
        let mut net = Builder::new("unet", self.palette, &self.networks[1]);
        let (px, channels) = (self.latent_px, self.latent_channels);
        let latent = net.graph.input("latent", TensorType::f32(&[batch, px, px, channels]));
        let timestep = net.graph.input("timestep", TensorType::f32(&[1]));
        let context = [batch, self.tokens, self.context_channels];
        let context = net.graph.input("context", TensorType::f32(&context));
        if net.entropy.chance(85) {
            net.row = Some(timestep_row(&mut net, timestep));
        }
        if net.entropy.chance(85) {
            let few = net.entropy.below(2);
            let context = blocks(&mut net, context, few);
            net.pool.clear();
            net.context = Some(context);
        }
        let out = net.any_channels();
        let x = net.conv(latent, out, Conv2d::new(3, 1));
        let count = net.entropy.within(1..=9);
        let x = blocks(&mut net, x, count);
        let x = net.finish(x, px, channels);
        net.output("eps", x)
    }

    fn image_decoder(&self) -> Graph {
        let mut net = Builder::new("decoder", self.palette, &self.networks[2]);
        let (px, channels) = (self.latent_px, self.latent_channels);
        let latent = net.graph.input("latent", TensorType::f32(&[1, px, px, channels]));
        let x = net.op(Scale { factor: 1.5 }, &[latent]);
        let out = net.any_channels();
        let x = net.linear(x, out);
        let count = net.entropy.within(0..=7);
        let x = blocks(&mut net, x, count);
        let x = net.finish(x, self.image_px(), 3);
        net.output("image", x)
    }

    fn image_encoder(&self) -> Graph {
        let mut net = Builder::new("encoder", self.palette, &self.networks[3]);
        let px = self.image_px();
        let image = net.graph.input("image", TensorType::f32(&[1, px, px, 3]));
        let out = net.any_channels();
        let x = net.conv(image, out, Conv2d::new(3, 1));
        let count = net.entropy.within(0..=4);
        let x = blocks(&mut net, x, count);
        let moments = net.finish(x, self.latent_px, 2 * self.latent_channels);
        let mean = net.op(Slice { start: 0, len: self.latent_channels }, &[moments]);
        let mean = net.op(Scale { factor: 0.5 }, &[mean]);
        net.output("mean", mean)
    }
}

fn square(px: usize) -> Size {
    Size { width_px: px as u32, height_px: px as u32 }
}

/// The timestep as a row of channels, which later blocks project.
fn timestep_row(net: &mut Builder, timestep: ValueId) -> ValueId {
    let channels = net.entropy.pick(&[16, 32]);
    let op = TimestepEmbedding { channels, max_period: 10_000.0 };
    let mut x = net.op(op, &[timestep]);
    let wide = net.entropy.pick(&[32, 32, 64]);
    if net.entropy.chance(10) {
        let bias = net.weight(&[channels]);
        x = net.op(Add, &[x, bias]);
        x = net.op(Concat, &[x, x]);
    }
    for _ in 0..net.entropy.within(1..=2) {
        x = net.linear(x, wide);
        x = net.activate(x, Activation::Silu);
    }
    x
}

impl Model for RandomModel {
    fn text_encoder(&self, batch: usize) -> anyhow::Result<Graph> {
        Ok(self.text(batch))
    }

    fn unet(&self, batch: usize) -> anyhow::Result<Graph> {
        Ok(self.denoiser(batch))
    }

    fn decoder(&self) -> anyhow::Result<Graph> {
        Ok(self.image_decoder())
    }

    fn encoder(&self) -> anyhow::Result<Option<Graph>> {
        Ok(self.with_encoder.then(|| self.image_encoder()))
    }

    fn manifest(&self) -> Manifest {
        Manifest {
            model: "random".into(),
            precision: String::new(),
            profile: String::new(),
            adapted: vec![],
            compiler: String::new(),
            image: square(self.image_px()),
            latent: square(self.latent_px),
            latent_channels: self.latent_channels as u32,
            context_tokens: self.tokens as u32,
            context_channels: self.context_channels as u32,
            schedule: Schedule::default(),
            guidance_branches: 0,
            guidance_batch: 0,
            fast: false,
            guidance_channels: 0,
            condition_channels: 0,
            timestep_rows: 0,
        }
    }
}

impl fmt::Display for RandomModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoder = self.with_encoder.then(|| self.image_encoder());
        let graphs = [self.text(2), self.denoiser(2), self.image_decoder()];
        for graph in graphs.iter().chain(&encoder) {
            writeln!(f, "{}", kiln_ir::text::dump(graph).unwrap_or_else(|e| e.to_string()))?;
        }
        Ok(())
    }
}
