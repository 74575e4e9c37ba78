//! What random networks are made of: the patterns that passes look for, and patterns close to them
//! that they must leave alone.

use kiln_ir::ops::attention::{Attention, Columns};
use kiln_ir::ops::concat::Concat;
use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::ops::permute::Permute;
use kiln_ir::ops::pointwise::{Add, Mul};
use kiln_ir::ops::reductions::{Mean, Softmax, Variance};
use kiln_ir::ops::scale::Scale;
use kiln_ir::ops::slice::Slice;
use kiln_ir::ops::upsample::Upsample;
use kiln_ir::{Op, ValueId};

use crate::builder::Builder;

/// A pattern: from a value to the next.
type Block = fn(&mut Builder, ValueId) -> ValueId;

/// Patterns over rows of channels, whatever the rows are.
const ROWS: &[Block] = &[
    linear,
    attention,
    attention,
    attention,
    feed_forward,
    norm,
    pointwise,
    concat,
    concat,
    statistics,
    mixer,
    twins,
    scaled,
];
/// Patterns over feature maps.
const MAPS: &[Block] =
    &[conv, conv, resnet, conv_chain, conv_chain, resample, doubled, conv_norm, attention];

/// So many random blocks after one another.
pub fn blocks(net: &mut Builder, mut x: ValueId, count: usize) -> ValueId {
    net.pool.push(x);
    for _ in 0..count {
        let on_maps = net.height(x).is_some() && net.entropy.chance(65);
        let block = net.entropy.pick(if on_maps { MAPS } else { ROWS });
        x = block(net, x);
        net.pool.push(x);
    }
    x
}

fn activation(net: &mut Builder) -> Activation {
    use Activation::{Geglu, Gelu, None, Relu, Silu};
    net.entropy.pick(&[None, Silu, Gelu, Geglu, Relu])
}

/// Adds a value of the same shape, on either side.
fn with_residual(net: &mut Builder, x: ValueId) -> ValueId {
    match net.same_shape(x) {
        Some(other) if net.entropy.chance(70) => net.add(x, other),
        Some(other) => net.add(other, x),
        None => x,
    }
}

fn linear(net: &mut Builder, x: ValueId) -> ValueId {
    let activation = activation(net);
    let out = net.any_channels();
    let columns = if activation == Activation::Geglu { 2 * out } else { out };
    if !net.afford(net.linear_work(x, columns)) {
        return x;
    }
    let y = net.linear(x, columns);
    let y = net.activate(y, activation);
    if net.entropy.chance(50) { with_residual(net, y) } else { y }
}

/// Queries, keys and values in one of the ways in which networks make them.
fn attention(net: &mut Builder, x: ValueId) -> ValueId {
    let c = net.channels(x);
    let batch = net.ty(x).batch();
    let context = net.context.filter(|v| *v != x && net.entropy.chance(50));
    let source = context.filter(|v| net.ty(*v).batch() == batch).unwrap_or(x);
    let (rows, keys) = (net.rows(x), net.rows(source));
    if c < 4 || !net.afford(4 * rows * c * c + 2 * rows * keys * c) {
        return x;
    }
    let h = if net.entropy.chance(60) { net.layer_norm(x) } else { x };
    let source = if source == x { h } else { source };
    let heads = [1, 2, 4].into_iter().filter(|heads| c.is_multiple_of(4 * heads));
    let heads = net.entropy.pick(&heads.chain([1]).collect::<Vec<_>>());
    let causal = source == h && net.entropy.chance(30);
    let y = match net.entropy.below(4) {
        0 if source == h => {
            let qkv = net.linear(h, 3 * c);
            let [q, k, v] = [0, 1, 2].map(|i| Columns { input: 0, start: i * c });
            net.op(Attention { channels: c, heads, causal, q, k, v }, &[qkv])
        }
        1 => {
            let (q, k) = (net.linear_no_bias(h, c), net.linear_no_bias(source, c));
            let (q_at, k_at) = (Columns { input: 0, start: 0 }, Columns { input: 1, start: 0 });
            let op = Attention { channels: c, heads, causal, q: q_at, k: k_at, v: k_at };
            net.op(op, &[q, k])
        }
        2 => {
            let [q, k, v] = [h, source, source].map(|from| net.linear_no_bias(from, c));
            net.op(Attention::separate(c, heads, causal), &[q, k, v])
        }
        _ => {
            let [q, k, v] = [h, source, source].map(|from| net.linear(from, c));
            net.op(Attention::separate(c, heads, causal), &[q, k, v])
        }
    };
    let y = net.linear(y, c);
    if net.entropy.chance(80) { net.add(y, x) } else { y }
}

fn feed_forward(net: &mut Builder, x: ValueId) -> ValueId {
    let c = net.channels(x);
    let wide = 2 * c;
    if !net.afford(4 * net.linear_work(x, wide)) {
        return x;
    }
    let h = if net.entropy.chance(60) { net.layer_norm(x) } else { x };
    let h = if net.entropy.chance(60) {
        let h = net.linear(h, 2 * wide);
        net.activate(h, Activation::Geglu)
    } else {
        let h = net.linear(h, wide);
        net.activate(h, Activation::Gelu)
    };
    let y = net.linear(h, c);
    net.add(y, x)
}

fn norm(net: &mut Builder, x: ValueId) -> ValueId {
    if net.entropy.chance(40) {
        return net.layer_norm(x);
    }
    let y = net.group_norm(x);
    if net.entropy.chance(50) { net.activate(y, Activation::Silu) } else { y }
}

fn pointwise(net: &mut Builder, x: ValueId) -> ValueId {
    match net.entropy.below(5) {
        0 => net.activate(x, Activation::Silu),
        1 => net.activate(x, Activation::Gelu),
        2 => net.with_timestep(x),
        3 => {
            let gate = net.weight(&[net.channels(x)]);
            net.op(Mul, &[x, gate])
        }
        _ => with_residual(net, x),
    }
}

/// A concatenation with one or two readers, of which some read it with something else.
fn concat(net: &mut Builder, x: ValueId) -> ValueId {
    let Some(other) = net.beside(x) else { return x };
    let mut parts = vec![x, other];
    if net.entropy.chance(20) {
        parts.extend(net.beside(x));
    }
    let channels: usize = parts.iter().map(|v| net.channels(*v)).sum();
    let out = net.any_channels();
    let rows = net.rows(x);
    if channels > 128 || !net.afford(11 * rows * channels * out) {
        return x;
    }
    let y = net.op(Concat, &parts);
    match net.entropy.below(4) {
        0 if net.height(x).is_some() => net.conv(y, out, Conv2d::new(3, 1)),
        1 if net.height(x).is_some() => {
            let normal = net.group_norm(y);
            let normal = net.activate(normal, Activation::Silu);
            let h = net.conv(normal, out, Conv2d::new(3, 1));
            let shortcut = net.linear(y, out);
            net.add(h, shortcut)
        }
        2 => {
            let normal = net.group_norm(y);
            net.linear(normal, out)
        }
        _ => net.linear(y, out),
    }
}

/// What no network of the family has, and the runtime's library of kernels does.
fn statistics(net: &mut Builder, x: ValueId) -> ValueId {
    let c = net.channels(x);
    match net.entropy.below(3) {
        0 => {
            let weights = net.op(Softmax, &[x]);
            let weighted = net.op(Mul, &[x, weights]);
            net.op(Scale { factor: 3.0 }, &[weighted])
        }
        which => {
            let op: Op = if which == 1 { Mean.into() } else { Variance.into() };
            let column = net.op(op, &[x]);
            let both = net.op(Concat, &[x, column]);
            if net.afford(net.linear_work(both, c)) { net.linear(both, c) } else { x }
        }
    }
}

/// Permutations there and back, and a slice.
fn mixer(net: &mut Builder, x: ValueId) -> ValueId {
    let (shape, c) = (net.ty(x).shape, net.channels(x));
    let order = match shape.len() {
        4 => vec![0, 2, 1, 3],
        3 if shape[1] <= 32 => vec![0, 2, 1],
        _ => return x,
    };
    let turned = net.op(Permute { order: order.clone() }, &[x]);
    let width = net.channels(turned);
    let turned =
        if net.afford(net.linear_work(turned, width)) { net.linear(turned, width) } else { turned };
    let back = net.op(Permute { order }, &[turned]);
    let y = net.add(back, x);
    if c >= 8 && net.entropy.chance(40) {
        let parts = [Slice { start: c / 4, len: c - c / 4 }, Slice { start: 0, len: c / 4 }];
        let [a, b] = parts.map(|part| net.op(part, &[y]));
        return net.op(Concat, &[a, b]);
    }
    y
}

/// Equal subgraphs, which are one after CSE.
fn twins(net: &mut Builder, x: ValueId) -> ValueId {
    let c = net.channels(x);
    if !net.afford(2 * net.linear_work(x, c)) {
        return x;
    }
    let weight = net.weight(&[c, c]);
    let [a, b] = [(); 2].map(|()| {
        let y = net.op(kiln_ir::ops::matmul::Matmul::default(), &[x, weight]);
        net.activate(y, Activation::Silu)
    });
    let b = if net.entropy.chance(50) { b } else { net.op(Scale { factor: 0.5 }, &[b]) };
    net.add(a, b)
}

/// A scaling before a contraction, which may have another reader.
fn scaled(net: &mut Builder, x: ValueId) -> ValueId {
    let out = net.any_channels();
    if !net.afford(9 * net.linear_work(x, out)) {
        return x;
    }
    let y = net.op(Scale { factor: 1.25 }, &[x]);
    if net.entropy.chance(30) {
        net.pool.push(y);
    }
    if net.height(x).is_some() && net.entropy.chance(50) {
        return net.conv(y, out, Conv2d::new(3, 1));
    }
    net.linear(y, out)
}

/// A convolution with an epilogue, in the order in which passes fuse it and in others.
fn conv(net: &mut Builder, x: ValueId) -> ValueId {
    let activation = activation(net);
    let out = net.any_channels();
    let columns = if activation == Activation::Geglu { 2 * out } else { out };
    let kernel = net.entropy.pick(&[3, 3, 1, 5]);
    if !net.afford(net.conv_work(x, columns, kernel)) {
        return x;
    }
    let mut y = net.conv(x, columns, Conv2d::new(kernel, 1));
    if net.entropy.chance(40) {
        y = net.with_timestep(y);
    }
    let early = net.entropy.chance(20);
    if early {
        y = with_residual(net, y);
    }
    y = net.activate(y, activation);
    if !early && net.entropy.chance(50) { with_residual(net, y) } else { y }
}

/// The residual block of the U-Net and the autoencoder, or one like it.
fn resnet(net: &mut Builder, x: ValueId) -> ValueId {
    let out = net.any_channels();
    if !net.afford(net.conv_work(x, out, 4) + net.rows(x) * out * out * 9) {
        return x;
    }
    let h = net.group_norm(x);
    let h = net.activate(h, Activation::Silu);
    let h = net.conv(h, out, Conv2d::new(3, 1));
    let h = if net.entropy.chance(70) { net.with_timestep(h) } else { h };
    let h = net.group_norm(h);
    let h = if net.entropy.chance(80) { net.activate(h, Activation::Silu) } else { h };
    let h = net.conv(h, out, Conv2d::new(3, 1));
    let shortcut = if net.channels(x) == out { x } else { net.linear(x, out) };
    if net.entropy.chance(80) { net.add(h, shortcut) } else { net.add(shortcut, h) }
}

/// Convolutions with nothing between them but biases and normalizations, on a map that is likely
/// the largest: what is computed by stripes where memory is short.
fn conv_chain(net: &mut Builder, x: ValueId) -> ValueId {
    let (wide, out) = (net.any_channels(), net.any_channels());
    if !net.afford(net.conv_work(x, wide, 3) + net.rows(x) * wide * out * 10) {
        return x;
    }
    let first = net.conv(x, wide, Conv2d::new(3, 1));
    let normal = if net.entropy.chance(70) { net.group_norm(first) } else { first };
    let normal =
        if net.entropy.chance(50) { net.activate(normal, Activation::Silu) } else { normal };
    let second = net.conv(normal, out, Conv2d::new(3, 1));
    match net.entropy.below(3) {
        0 => second,
        1 => {
            let shortcut = net.linear(first, out);
            net.add(second, shortcut)
        }
        _ => with_residual(net, second),
    }
}

/// Half the extent, or twice.
fn resample(net: &mut Builder, x: ValueId) -> ValueId {
    let height = net.height(x).unwrap_or(1);
    let out = net.any_channels();
    let down = net.entropy.chance(50) || height > 16;
    let work = net.conv_work(x, out, 3) * if down { 1 } else { 4 };
    if height < 4 || !height.is_multiple_of(2) || !net.afford(work) {
        return x;
    }
    if !down {
        let doubled = net.op(Upsample, &[x]);
        let kernel = net.entropy.pick(&[3, 1]);
        return net.conv(doubled, out, Conv2d::new(kernel, 1));
    }
    let to_end = Conv2d { padding: 0, padding_end: 1, ..Conv2d::new(3, 2) };
    let op = net.entropy.pick(&[0, 1]);
    net.conv(x, out, [Conv2d::new(3, 2), to_end][op].clone())
}

/// An upsampled map with two readers, of which one is no convolution.
fn doubled(net: &mut Builder, x: ValueId) -> ValueId {
    let height = net.height(x).unwrap_or(1);
    let c = net.channels(x);
    if height > 8 || !net.afford(4 * net.conv_work(x, c, 3)) {
        return x;
    }
    let y = net.op(Upsample, &[x]);
    let h = net.conv(y, c, Conv2d::new(3, 1));
    net.op(Add, &[h, y])
}

/// A normalization with two readers.
fn conv_norm(net: &mut Builder, x: ValueId) -> ValueId {
    let out = net.any_channels();
    if !net.afford(2 * net.conv_work(x, out, 3)) {
        return x;
    }
    let normal = net.group_norm(x);
    let [a, b] = [(); 2].map(|()| net.conv(normal, out, Conv2d::new(3, 1)));
    if net.entropy.chance(50) { net.add(a, b) } else { net.op(Mul, &[a, b]) }
}
