//! PyTorch's checkpoints, against what PyTorch wrote as safetensors (`tests/data/make_torch.py`).

use std::path::PathBuf;

use kiln_compiler::weights::{StoredType, open};

use crate::fixtures;

fn data(name: &str) -> PathBuf {
    fixtures::repository_path("compiler/tests/data/torch").join(name)
}

fn refused(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fixtures::write(&path, bytes);
    let error = format!("{:#}", open(&path).unwrap_err());
    assert!(error.contains(name) && !error.contains('\n'), "{error}");
    error
}

#[test]
fn every_tensor_has_its_values() {
    let (found, expected) = (open(&data("small.ckpt")).unwrap(), open(&data("small.safetensors")));
    let expected = expected.unwrap();
    for info in expected.tensors() {
        let name = &info.name;
        assert_eq!(found.info(name).unwrap().shape, info.shape, "{name}");
        assert_eq!(found.read_f32(name).unwrap(), expected.read_f32(name).unwrap(), "{name}");
    }
    let types = [
        ("half", StoredType::F16),
        ("bfloat", StoredType::Bf16),
        ("double", StoredType::F64),
        ("parameter", StoredType::F32),
    ];
    for (name, dtype) in types {
        assert_eq!(found.info(&format!("state_dict.layer.{name}")).unwrap().dtype, dtype);
    }
    // What is no float, or not in row-major order, is listed and not read.
    for (name, what) in [("numbers", "LongStorage"), ("flags", "Bool"), ("transposed", "order")] {
        let name = format!("state_dict.layer.{name}");
        let error = format!("{:#}", found.read_f32(&name).unwrap_err());
        assert!(error.contains(what) && error.contains(&name), "{error}");
    }
    assert_eq!(found.tensors().len(), expected.tensors().len() + 3);
}

#[test]
fn older_formats_are_refused_with_what_to_do() {
    let legacy = std::fs::read(data("legacy.ckpt")).unwrap();
    let error = refused("legacy.ckpt", &legacy);
    assert!(error.contains("before version 1.6") && error.contains("torch.save"), "{error}");
}

/// Files of another format have their own readers, whatever their names.
#[test]
fn a_safetensors_file_may_be_named_bin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.bin");
    std::fs::copy(data("small.safetensors"), &path).unwrap();
    assert_eq!(open(&path).unwrap().read_f32("state_dict.layer.scalar").unwrap(), [2.5]);
}

#[test]
fn damaged_archives_are_errors() {
    let whole = std::fs::read(data("small.ckpt")).unwrap();
    assert!(refused("short.ckpt", &whole[..40]).contains("damaged"));
    for cut in (100..whole.len()).step_by(331) {
        refused("cut.ckpt", &whole[..cut]);
    }
    // Each byte of the pickle and of the directory in turn; a few changes leave a valid file.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.ckpt");
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fixtures::write(&path, &bytes);
        let Ok(source) = open(&path) else { continue };
        for info in source.tensors() {
            let _ = source.read_f32(&info.name);
        }
    }
}

#[test]
fn all_finite_values_of_fp8() {
    let source = open(&data("f8.safetensors")).unwrap();
    for (name, dtype) in [("e4m3", StoredType::F8E4M3), ("e5m2", StoredType::F8E5M2)] {
        assert_eq!(source.info(name).unwrap().dtype, dtype);
        let expected = source.read_f32(&format!("{name}_f32")).unwrap();
        assert_eq!(source.read_f32(name).unwrap(), expected, "{name}");
        assert!(expected.len() > 240);
    }
}
