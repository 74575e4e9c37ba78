//! Checkpoints merged with LoRAs of every kind, against PEFT and LyCORIS (`make_lora.py`).
//! `tools/kiln/tests/lora.rs` holds the names of all layers of a U-Net to diffusers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use kiln_compiler::weights::lora::{self, Lora};
use kiln_compiler::weights::{TensorSource, open, safetensors};

use crate::fixtures::{self, Raw};

/// Both sides add products in f32, in other orders.
const TOLERANCE: f64 = 1e-6;
const LAYER: &str = "unet.down_blocks.0.resnets.0.conv1";
const WEIGHT: &str = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight";

/// The tensors of the script's file, by the folder before their names.
fn references() -> BTreeMap<String, Vec<Raw>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/lora.safetensors");
    let source = safetensors::open(&path).unwrap();
    let mut folders: BTreeMap<String, Vec<Raw>> = BTreeMap::new();
    for info in source.tensors() {
        let (folder, name) = info.name.split_once('/').unwrap();
        let raw = Raw::f32(name, &info.shape, &source.read_f32(&info.name).unwrap());
        folders.entry(folder.to_owned()).or_default().push(raw);
    }
    folders
}

fn write(folder: &Path, name: &str, tensors: &[Raw]) -> std::path::PathBuf {
    let path = folder.join(name);
    fixtures::write(&path, &fixtures::safetensors(tensors));
    path
}

fn merged(base: &[Raw], lora: &[Raw], strength: f32) -> Result<lora::Merge> {
    let folder = tempfile::tempdir().unwrap();
    let base = open(&write(folder.path(), "base.safetensors", base)).unwrap();
    let path = write(folder.path(), "lora.safetensors", lora);
    lora::merge(base, &[Lora { path, strength }])
}

fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    norm(&mut pairs.map(|(a, b)| f64::from(a - b)))
        / norm(&mut expected.iter().map(|v| f64::from(*v)))
}

#[test]
fn every_kind_equals_its_trainer() {
    let folders = references();
    let mut kinds = BTreeSet::new();
    for (folder, expected) in &folders {
        let Some((kind, strength)) = folder.split_once('=') else { continue };
        let (source, unmatched) =
            merged(&folders["base"], &folders[kind], strength.parse().unwrap()).unwrap();
        assert!(unmatched.is_empty(), "{kind}: {unmatched:?}");
        for raw in expected {
            let (name, values) = (raw.name.as_str(), raw.values());
            let error = relative_l2(&source.read_f32(name).unwrap(), &values);
            assert!(error <= TOLERANCE, "{kind}: {name}: {error:e}");
            // Part of one row, and over the ends of rows.
            for (start, len) in [(1, 2), (5, values.len() - 7)] {
                let part = source.read_f32_range(name, start, len).unwrap();
                let error = relative_l2(&part, &values[start..start + len]);
                assert!(error <= TOLERANCE, "{kind}: {name} from {start}: {error:e}");
            }
        }
        kinds.insert(kind);
    }
    assert_eq!(kinds.len(), folders.len() / 2, "{kinds:?}");
}

#[test]
fn loras_add_up_in_their_order() {
    let (folders, folder) = (references(), tempfile::tempdir().unwrap());
    let base = open(&write(folder.path(), "base.safetensors", &folders["base"])).unwrap();
    let lora = |kind: &str, strength| Lora {
        path: write(folder.path(), &format!("{kind}.safetensors"), &folders[kind]),
        strength,
    };
    let both = [lora("peft", 0.5), lora("kohya", 0.8)];
    let (source, _) = lora::merge(base, &both).unwrap();
    let value =
        |folder: &str| folders[folder].iter().find(|raw| raw.name == WEIGHT).unwrap().values();
    let (zero, one, two) = (value("base"), value("peft=0.5"), value("kohya=0.8"));
    let sum: Vec<f32> = (0..zero.len()).map(|i| one[i] + two[i] - zero[i]).collect();
    assert!(relative_l2(&source.read_f32(WEIGHT).unwrap(), &sum) <= TOLERANCE);
}

#[test]
fn layers_that_the_model_has_not_are_listed() {
    let folders = references();
    let other = |raw: &Raw| Raw { name: raw.name.replace("blocks.0", "blocks.7"), ..raw.clone() };
    let more: Vec<Raw> = folders["peft"].iter().flat_map(|raw| [raw.clone(), other(raw)]).collect();
    let more: BTreeMap<_, _> = more.into_iter().map(|raw| (raw.name.clone(), raw)).collect();
    let more: Vec<Raw> = more.into_values().collect();
    let (_, unmatched) = merged(&folders["base"], &more, 1.0).unwrap();
    let [(_, layers)] = &unmatched[..] else { panic!("{unmatched:?}") };
    let expected = [
        "unet.down_blocks.7.attentions.0.transformer_blocks.7.attn1.to_q",
        "unet.down_blocks.7.resnets.0.conv1",
    ];
    assert_eq!(layers[..], expected);
}

#[test]
fn what_does_not_fit_is_refused() {
    let folders = references();
    let refused = |tensors: &[Raw], what: &str| {
        let error = format!("{:#}", merged(&folders["base"], tensors, 1.0).unwrap_err());
        assert!(error.contains(what) && error.contains("lora.safetensors"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    };
    let values = |count: usize| vec![1.0; count];
    let down = Raw::f32(&format!("{LAYER}.lora_A.weight"), &[2, 4, 3, 3], &values(72));
    let up = Raw::f32(&format!("{LAYER}.lora_B.weight"), &[6, 2, 1, 1], &values(12));
    refused(std::slice::from_ref(&down), "it lacks a part");
    let narrow = Raw::f32(&down.name, &[2, 3, 3, 3], &values(54));
    refused(&[narrow, up.clone()], "is of 6 rows of 27 values, the layer of 6 of 36");
    let ranks = Raw::f32(&down.name, &[3, 4, 3, 3], &values(108));
    refused(&[ranks, up.clone()], "have no rank in common");
    let twice = Raw::f32(
        "lora_unet_down_blocks_0_resnets_0_conv1.lora_up.weight",
        &[6, 2, 1, 1],
        &values(12),
    );
    refused(&[twice, down, up.clone()], "under two names");
    let missing = Raw { name: up.name.replace("resnets.0", "resnets.7"), ..up };
    refused(&[missing], "has none of its layers");
    refused(&[], "has none of its layers");
}

#[test]
fn a_strength_stands_behind_the_name() {
    let lora = |path: &str, strength| Ok(Lora { path: path.into(), strength });
    assert_eq!("a.safetensors".parse(), lora("a.safetensors", 1.0));
    assert_eq!("a.safetensors:0.8".parse(), lora("a.safetensors", 0.8));
    assert_eq!("a.safetensors:-1".parse(), lora("a.safetensors", -1.0));
    assert_eq!("C:style.safetensors".parse(), lora("C:style.safetensors", 1.0));
    assert!(":0.8".parse::<Lora>().is_err() && "a:nan".parse::<Lora>().is_err());
}
