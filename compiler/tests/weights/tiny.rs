//! Tiny autoencoders in every layout have the same tensors.

use std::path::{Path, PathBuf};

use kiln_compiler::weights::TensorSource;
use kiln_compiler::weights::tiny::{Half, Shape, TinyWeights};

use crate::fixtures::{self, Raw};

/// An `AutoencoderTiny` with seeded values: 8 channels, 2 to 1 blocks a level.
fn stored() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/tests/data/tiny/small.safetensors")
}

/// Its tensors under other names; those without one are left out.
fn renamed(name: impl Fn(&str, usize, &str) -> Option<String>) -> Vec<Raw> {
    let file = std::fs::read(stored()).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let raw = |(own, view): (String, safetensors::tensor::TensorView)| {
        let mut parts = own.splitn(4, '.');
        let (half, _, layer) = (parts.next()?, parts.next()?, parts.next()?);
        let name = name(half, layer.parse().ok()?, parts.next()?)?;
        Some(Raw::new(&name, "F16", view.shape(), view.data().to_vec()))
    };
    file.tensors().into_iter().filter_map(raw).collect()
}

fn open(folder: &Path, tensors: &[Raw]) -> TinyWeights {
    let path = folder.join("tiny.safetensors");
    fixtures::write(&path, &fixtures::safetensors(tensors));
    TinyWeights::open(&path).unwrap().expect("it is one")
}

fn assert_equal(found: &TinyWeights, half: Half, expected: &TinyWeights) {
    let part = if half == Half::Decoder { "tiny.decoder." } else { "tiny.encoder." };
    let of_half = |tiny: &TinyWeights| -> Vec<String> {
        let names = tiny.tensors().iter().map(|t| t.name.clone());
        names.filter(|name| name.starts_with(part)).collect()
    };
    assert_eq!(of_half(found), of_half(expected));
    for name in of_half(expected) {
        assert_eq!(found.read_f32(&name).unwrap(), expected.read_f32(&name).unwrap(), "{name}");
    }
    assert_eq!(found.shape(half).unwrap(), expected.shape(half).unwrap());
}

#[test]
fn the_sizes_are_those_of_the_tensors() {
    let tiny = TinyWeights::open(&stored()).unwrap().unwrap();
    let shape = |in_channels, blocks: [usize; 4], out_channels| {
        Some(Shape { in_channels, channels: 8, blocks: blocks.to_vec(), out_channels })
    };
    assert_eq!(tiny.shape(Half::Decoder).unwrap(), shape(4, [2, 1, 1, 1], 3));
    assert_eq!(tiny.shape(Half::Encoder).unwrap(), shape(3, [1, 2, 1, 1], 4));
}

/// TAESD's own decoder counts its clamp as layer 0.
#[test]
fn official_names_give_the_same_tensors() {
    let expected = TinyWeights::open(&stored()).unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = |half: &str, layer| layer + usize::from(half == "decoder");
    for half in [Half::Decoder, Half::Encoder] {
        let word = if half == Half::Decoder { "decoder" } else { "encoder" };
        let alone =
            renamed(|of, layer, rest| (of == word).then(|| format!("{}.{rest}", own(of, layer))));
        assert_equal(&open(folder.path(), &alone), half, &expected);
        for prefix in ["", "taesd_"] {
            let both =
                renamed(|of, layer, rest| Some(format!("{prefix}{of}.{}.{rest}", own(of, layer))));
            assert_equal(&open(folder.path(), &both), half, &expected);
        }
    }
}

#[test]
fn a_diffusers_folder_is_read() {
    let expected = TinyWeights::open(&stored()).unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let vae = folder.path().join("vae");
    std::fs::create_dir(&vae).unwrap();
    std::fs::copy(stored(), vae.join("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    for path in [folder.path(), &vae] {
        let found = TinyWeights::open(path).unwrap().unwrap();
        assert_equal(&found, Half::Decoder, &expected);
    }
}

#[test]
fn other_files_are_none() {
    let folder = tempfile::tempdir().unwrap();
    assert!(TinyWeights::open(folder.path()).unwrap().is_none());
    let path = folder.path().join("vae.safetensors");
    let tensors = [Raw::f32("first_stage_model.decoder.conv_in.bias", &[1], &[0.0])];
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    assert!(TinyWeights::open(&path).unwrap().is_none());
    // A last layer that is no convolution.
    let cut = renamed(|half, layer, rest| {
        (half == "decoder" && layer < 4).then(|| format!("decoder.layers.{layer}.{rest}"))
    });
    let error = open(folder.path(), &cut).shape(Half::Decoder).unwrap_err().to_string();
    assert!(error.contains("last layer") && !error.contains('\n'), "{error}");
}
