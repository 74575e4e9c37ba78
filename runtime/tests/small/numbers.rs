//! What the small model computes, in plain loops.

use super::{DECODE, LATENT, LAYERS, RESIDENT_BLOCK, WIDTH};

/// Value `index` of block `block`.
pub fn weight(block: usize, index: usize) -> f32 {
    0.5 + ((block * 37 + index * 11) % 64) as f32 / 64.0
}

/// Value `column` of row `row` of the embedding table.
pub fn table(row: usize, column: usize) -> f32 {
    ((row * 7 + column * 3) % 101) as f32 / 101.0 - 0.5
}

/// What the weights in a launch's arguments begin with.
pub fn used_weight(block: usize, index: usize) -> f32 {
    weight(block, 1024 + index)
}

/// The embedding of two rows of tokens.
pub fn embedding(tokens: &[i32]) -> Vec<f32> {
    let at = |i: usize| table(tokens[i / WIDTH] as usize, i % WIDTH) * used_weight(0, i % WIDTH);
    (0..tokens.len() * WIDTH).map(at).collect()
}

/// The U-Net's output for one batch row, channels last, from one row of an embedding.
pub fn unet(latent: &[f32], context: &[f32], timestep: f32) -> Vec<f32> {
    unet_of(latent, context, |i| timestep * used_weight(2, i % WIDTH))
}

/// [`unet`] with the value that it takes at each element for the timestep.
pub fn unet_of(latent: &[f32], context: &[f32], time: impl Fn(usize) -> f32) -> Vec<f32> {
    let kv: Vec<f32> =
        context.iter().enumerate().map(|(i, x)| x * used_weight(1, i % WIDTH)).collect();
    let mean = kv.iter().sum::<f32>() / kv.len() as f32;
    let hidden = |i: usize| (0..LAYERS).fold(latent[i], |x, l| x * used_weight(3 + l, i % 4));
    (0..LATENT)
        .map(|i| hidden(i) + 0.25 * mean + time(i) * used_weight(RESIDENT_BLOCK, i % 4))
        .collect()
}

/// The decoder's output, channels last.
pub fn decode(latent: &[f32]) -> Vec<f32> {
    let at = |i: usize| {
        let (c, px, py) = (i % 3, i / 3 % 16, i / 48);
        latent[(py / 4 * 4 + px / 4) * 4 + c] * used_weight(DECODE as usize, c)
    };
    (0..768).map(at).collect()
}
