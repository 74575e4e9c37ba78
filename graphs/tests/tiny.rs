//! The tiny autoencoder against diffusers' `AutoencoderTiny`, with seeded values
//! (`models/make_tiny.py`).

use kiln_graphs::{ModelConfig, TINY_PREFIX, TinyConfig, model, tiny_decoder, tiny_encoder};
use kiln_ir::{Graph, Tensor, reference};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny").join(name)
}

/// The stored FP16 values of `[C, H, W]` or of a tensor, as `[1, H, W, C]` for the first.
fn picture(name: &str) -> Tensor {
    let bytes = std::fs::read(data(name)).unwrap();
    let array = npyz::NpyFile::new(&bytes[..]).unwrap();
    let shape: Vec<usize> = array.shape().iter().map(|d| *d as usize).collect();
    let values: Vec<f32> = array.into_vec().unwrap();
    let (c, pixels) = (shape[0], shape[1] * shape[2]);
    let last = (0..pixels).flat_map(|p| (0..c).map(move |i| i * pixels + p));
    Tensor::new(&[1, shape[1], shape[2], c], last.map(|i| values[i]).collect())
}

/// The relative L2 error of a graph of one input and one output.
fn error(graph: &Graph, (input, value): (&str, &str), expected: &str) -> f64 {
    let file = std::fs::read(data("small.safetensors")).unwrap();
    let checkpoint = SafeTensors::deserialize(&file).unwrap();
    let weight = |key: &str| {
        let view = checkpoint.tensor(key.strip_prefix(TINY_PREFIX).unwrap())?;
        let halves = view.data().chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]));
        Ok(Tensor::new(view.shape(), halves.map(half::f16::to_f32).collect()))
    };
    let inputs = [(input.to_string(), picture(value))].into();
    let outputs = reference::evaluate(graph, &inputs, &weight).unwrap();
    let [(_, found)] = <[_; 1]>::try_from(outputs).unwrap();
    let expected = picture(expected);
    assert_eq!(found.shape, expected.shape);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = found.data.iter().zip(&expected.data);
    let difference = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut expected.data.iter().map(|v| f64::from(*v)))
}

fn config() -> ModelConfig {
    ModelConfig { width_px: 32, height_px: 32, ..model("emoji-256").unwrap().clone() }
}

#[test]
fn the_tiny_decoder_agrees() {
    let sizes = TinyConfig { channels: 8, blocks: vec![2, 1, 1, 1] };
    assert_eq!(sizes.factor(), 8);
    let error =
        error(&tiny_decoder(&config(), &sizes).unwrap(), ("latent", "latent.npy"), "image.npy");
    assert!(error <= 1e-6, "relative L2 error {error:e}");
}

#[test]
fn the_tiny_encoder_agrees() {
    let sizes = TinyConfig { channels: 8, blocks: vec![1, 2, 1, 1] };
    let error =
        error(&tiny_encoder(&config(), &sizes).unwrap(), ("image", "image.npy"), "mean.npy");
    assert!(error <= 1e-6, "relative L2 error {error:e}");
}
