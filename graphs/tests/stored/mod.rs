//! The shipped model's weights and reference tensors, from their files.

use half::f16;
use kiln_ir::Tensor;
use safetensors::{Dtype, SafeTensors};
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::sync::LazyLock;

fn path(relative: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative)
}

/// The shipped checkpoint, unpacked.
static CHECKPOINT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let file = File::open(path("../models/emoji-256.safetensors.zst")).unwrap();
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file)).unwrap();
    decoder.read_to_end(&mut bytes).unwrap();
    bytes
});

/// The file with the encoder, which the checkpoint lacks.
static ENCODER: LazyLock<Vec<u8>> =
    LazyLock::new(|| std::fs::read(path("../models/emoji-256-encoder.safetensors")).unwrap());

/// A tensor of the shipped checkpoint in f32.
pub fn weight(key: &str) -> Result<Tensor, Box<dyn Error + Send + Sync>> {
    let of_encoder = [".encoder.", ".quant_conv."].iter().any(|part| key.contains(part));
    let file = if of_encoder { &ENCODER } else { &CHECKPOINT };
    let checkpoint = SafeTensors::deserialize(file)?;
    let view = checkpoint.tensor(key)?;
    assert_eq!(view.dtype(), Dtype::F16, "{key}");
    let halves = view.data().chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]));
    Ok(Tensor::new(view.shape(), halves.map(f16::to_f32).collect()))
}

fn npy<T: npyz::Deserialize>(name: &str) -> (Vec<usize>, Vec<T>) {
    let file =
        File::open(path("../models/emoji-256-golden").join(name).with_extension("npy")).unwrap();
    let array = npyz::NpyFile::new(BufReader::new(file)).unwrap();
    let shape = array.shape().iter().map(|d| *d as usize).collect();
    (shape, array.into_vec().unwrap())
}

/// Reference token ids as a batch of one.
pub fn ids(name: &str) -> Tensor {
    let (shape, ids) = npy::<i32>(name);
    Tensor::new(&[1, shape[0]], ids.into_iter().map(|i| i as f32).collect())
}

/// Reference rows `[L, C]` as a batch of one.
pub fn rows(name: &str) -> Tensor {
    let (shape, data) = npy::<f32>(name);
    Tensor::new(&[1, shape[0], shape[1]], data)
}

/// A reference picture, stored `[C, H, W]`, as `[1, H, W, C]`.
pub fn picture(name: &str) -> Tensor {
    let (shape, data) = npy::<f32>(name);
    let (c, pixels) = (shape[0], shape[1] * shape[2]);
    let last = (0..pixels).flat_map(|p| (0..c).map(move |i| i * pixels + p));
    Tensor::new(&[1, shape[1], shape[2], c], last.map(|i| data[i]).collect())
}
