//! `check`: one error with every offender.

use kiln_compiler::weights::{Requirement, TensorSource, check, open};

use crate::fixtures::{self, Raw};

fn source(folder: &tempfile::TempDir) -> Box<dyn TensorSource> {
    let path = folder.path().join("small.safetensors");
    let tensors = [
        Raw::f32("block.0.conv.weight", &[2, 1], &[1.0, 2.0]),
        Raw::f32("block.0.conv_bias", &[2], &[1.0, 2.0]),
        Raw::f32("block.0.norm", &[2], &[1.0, 2.0]),
        Raw::new("quantized", "I8", &[2], vec![0; 2]),
    ];
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    open(&path).unwrap()
}

fn require(list: &[(&str, &[usize])]) -> Vec<Requirement> {
    let one = |(name, shape): &(&str, &[usize])| Requirement {
        name: (*name).to_owned(),
        shape: shape.to_vec(),
    };
    list.iter().map(one).collect()
}

#[test]
fn extra_tensors_are_fine() {
    let folder = tempfile::tempdir().unwrap();
    check(&*source(&folder), &require(&[("block.0.norm", &[2])])).unwrap();
    check(&*source(&folder), &[]).unwrap();
}

#[test]
fn every_offender_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let required = require(&[
        ("block.0.norm", &[2]),
        ("block.0.conv.weight", &[2, 1, 1, 1]),
        ("block.0.conv.bias", &[2]),
        ("quantized", &[2]),
        ("something.else", &[1]),
    ]);
    let e = check(&*source(&folder), &required).unwrap_err().to_string();
    let lines: Vec<&str> = e.lines().map(str::trim).collect();
    assert!(lines[0].ends_with("small.safetensors: 4 of 5 tensors cannot be used:"), "{e}");
    assert_eq!(
        lines[1..],
        [
            "block.0.conv.weight: shape [2, 1, 1, 1] expected, [2, 1] found",
            "block.0.conv.bias: missing (there is `block.0.conv_bias`)",
            "quantized: type I8 is not read, only F16, BF16, F32, F64",
            "something.else: missing",
        ]
    );
}

#[test]
fn a_checkpoint_of_another_model_is_recognized_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let e = check(&*source(&folder), &require(&[("a", &[1]), ("b", &[1])])).unwrap_err();
    let e = e.to_string();
    assert!(e.contains("is this a Stable Diffusion 2 model? It has `block.0.conv.weight`"), "{e}");
}

#[test]
fn the_shipped_model_satisfies_its_own_list() {
    let source = open(&fixtures::emoji_path()).unwrap();
    let all = fixtures::emoji().iter();
    let required: Vec<Requirement> =
        all.map(|t| Requirement { name: t.name.clone(), shape: t.shape.clone() }).collect();
    check(&*source, &required).unwrap();
}
