//! Every form of a checkpoint gives the same tensors.

use std::path::Path;

use kiln_compiler::weights::{StoredType, TensorSource, open};

use crate::fixtures::{self, Listed, Raw, emoji, emoji_diffusers};

fn info(source: &dyn TensorSource, name: &str) -> (StoredType, Vec<usize>) {
    let info = source.info(name).unwrap();
    (info.dtype.clone(), info.shape.clone())
}

/// Every tensor of `source` has the name, shape and values of the shipped model; gives how many.
fn assert_is_emoji(source: &dyn TensorSource) -> usize {
    for tensor in source.tensors() {
        let at = emoji().binary_search_by(|t| t.name.cmp(&tensor.name));
        let want = &emoji()[at.unwrap_or_else(|_| panic!("{} is not in the model", tensor.name))];
        assert_eq!(tensor.shape, want.shape, "{}", tensor.name);
        // The values are finite, so equality of floats is equality of bits but for signed zeros.
        assert_eq!(source.read_f32(&tensor.name).unwrap(), want.values(), "{}", tensor.name);
    }
    source.tensors().len()
}

#[test]
fn every_float_type_is_upcast() {
    let values = [0.0f32, 1.0, -2.5, 65504.0, 6.1e-5, 3.0];
    let f16 = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bf16 = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let f64 = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let tensors = [
        Raw::f32("f32", &[2, 3], &values),
        Raw::new("f16", "F16", &[6], f16),
        Raw::new("bf16", "BF16", &[3, 2], bf16),
        Raw::new("f64", "F64", &[6, 1], f64),
        Raw::f32("scalar", &[], &[4.5]),
        Raw::f32("empty", &[0, 7], &[]),
        Raw::new("position_ids", "I64", &[1], vec![0; 8]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    fixtures::write(&path, &fixtures::safetensors(&tensors));
    let source = open(&path).unwrap();
    let names: Vec<&str> = source.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["bf16", "empty", "f16", "f32", "f64", "position_ids", "scalar"]);
    assert_eq!(source.read_f32("f32").unwrap(), values);
    assert_eq!(source.read_f32("f64").unwrap(), values);
    let rounded = values.map(|v| half::f16::from_f32(v).to_f32());
    assert_eq!(source.read_f32("f16").unwrap(), rounded);
    let rounded = values.map(|v| half::bf16::from_f32(v).to_f32());
    assert_eq!(source.read_f32("bf16").unwrap(), rounded);
    assert_eq!(source.read_f32("scalar").unwrap(), [4.5]);
    assert!(source.read_f32("empty").unwrap().is_empty());
    assert_eq!(info(&*source, "bf16"), (StoredType::Bf16, vec![3, 2]));
    let e = format!("{:#}", source.read_f32("position_ids").unwrap_err());
    assert!(e.contains("I64") && e.contains("position_ids") && !e.contains('\n'), "{e}");
}

#[test]
fn ranges_are_pieces_of_the_whole() {
    let source = open(&fixtures::emoji_path()).unwrap();
    let name = "cond_stage_model.model.token_embedding.weight";
    let whole = source.read_f32(name).unwrap();
    let mut pieces = Vec::new();
    while pieces.len() < whole.len() {
        let len = 777_777.min(whole.len() - pieces.len());
        pieces.extend(source.read_f32_range(name, pieces.len(), len).unwrap());
    }
    assert_eq!(pieces, whole);
    assert!(source.read_f32_range(name, whole.len(), 0).unwrap().is_empty());
    for (start, len) in [(whole.len(), 1), (0, usize::MAX), (usize::MAX, usize::MAX)] {
        let e = source.read_f32_range(name, start, len).unwrap_err().to_string();
        assert!(e.contains("emoji-256.safetensors.zst") && e.contains(name), "{e}");
    }
    let e = source.read_f32("nothing").unwrap_err().to_string();
    assert!(e.contains("no tensor `nothing`"), "{e}");
}

#[test]
fn compressed_single_file() {
    let source = open(&fixtures::emoji_path()).unwrap();
    assert_eq!(assert_is_emoji(&*source), 906);
    assert_eq!(info(&*source, "betas"), (StoredType::F32, vec![1000]));
}

#[test]
fn compressed_in_several_frames() {
    let file = fixtures::safetensors(&[Raw::f32("a", &[3], &[1.0, 2.0, 3.0])]);
    let (one, two) = file.split_at(20);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
    let bytes = [&fixtures::zst(one)[..], &skippable, &fixtures::zst(two)].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors.zst");
    fixtures::write(&path, &bytes);
    assert_eq!(open(&path).unwrap().read_f32("a").unwrap(), [1.0, 2.0, 3.0]);
}

/// What only the single file has: the block that is not used, the schedule, the text projection.
fn assert_only_unused_is_absent(source: &dyn TensorSource) {
    for tensor in emoji().iter().filter(|t| source.info(&t.name).is_none()) {
        let name = tensor.name.as_str();
        let unused = ["betas", "alphas_cumprod"].contains(&name)
            || name.ends_with("text_projection")
            || name.ends_with("logit_scale")
            || name.contains(".resblocks.5.");
        assert!(unused, "{name} is missing");
    }
}

/// Tensors in the listing; in the single file, 4 of each of 5 text layers are parts of another.
const LISTED_COUNT: usize = 910;

#[test]
fn diffusers_folder() {
    let folder = tempfile::tempdir().unwrap();
    fixtures::write_diffusers(folder.path(), &emoji_diffusers());
    let source = open(folder.path()).unwrap();
    assert_eq!(assert_is_emoji(&*source), LISTED_COUNT - 5 * 4);
    assert_only_unused_is_absent(&*source);
    let name = "cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight";
    let whole = source.read_f32(name).unwrap();
    // A range that begins in the query and ends in the value.
    let (start, len) = (192 * 192 - 5, 192 * 192 + 10);
    let range = source.read_f32_range(name, start, len).unwrap();
    assert_eq!(range, whole[start..start + len]);
}

#[test]
fn diffusers_shards_variants_and_older_names() {
    let mut listed = emoji_diffusers();
    let old_names =
        [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    for Listed { file, tensor } in &mut listed {
        if file == "vae/diffusion_pytorch_model.safetensors" {
            *file = "vae/diffusion_pytorch_model.fp16.safetensors".to_owned();
            for (new, old) in old_names {
                tensor.name = tensor.name.replace(&format!(".{new}."), &format!(".{old}."));
            }
        }
    }
    let (shards, files): (Vec<_>, Vec<_>) =
        listed.into_iter().partition(|l| !l.file.starts_with("vae/"));
    let folder = tempfile::tempdir().unwrap();
    fixtures::write_diffusers(folder.path(), &files);
    for (component, stem) in [("text_encoder", "model"), ("unet", "diffusion_pytorch_model")] {
        let tensors = fixtures::in_file(&shards, &format!("{component}/{stem}.safetensors"));
        fixtures::write_sharded(&folder.path().join(component), stem, &tensors, 3);
    }
    let source = open(folder.path()).unwrap();
    assert_eq!(assert_is_emoji(&*source), LISTED_COUNT - 5 * 4);
    let encoder = Raw::f32("encoder.down_blocks.1.resnets.0.conv_shortcut.bias", &[1], &[0.5]);
    let extra = folder.path().join("vae/encoder.safetensors");
    fixtures::write(&extra, &fixtures::safetensors(&[encoder]));
    let name = "first_stage_model.encoder.down.1.block.0.nin_shortcut.bias";
    assert_eq!(open(folder.path()).unwrap().read_f32(name).unwrap(), [0.5]);
}

#[test]
fn npy_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(format!("{name}.npy"));
    for tensor in emoji() {
        let descr = if tensor.dtype == "F16" { "<f2" } else { "<f4" };
        let bytes = fixtures::npy(descr, false, &tensor.shape, &tensor.bytes);
        fixtures::write(&path(&tensor.name), &bytes);
    }
    fixtures::write(&folder.path().join("README.txt"), b"not an array");
    let source = open(folder.path()).unwrap();
    assert_eq!(assert_is_emoji(&*source), 906);
}

#[test]
fn npy_types_and_orders() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| fixtures::write(&folder.path().join(name), &bytes);
    let f64: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    write("f8.npy", fixtures::npy("<f8", false, &[2], &f64));
    write("vector.npy", fixtures::npy("<f8", true, &[2], &f64));
    write("matrix.npy", fixtures::npy("<f8", true, &[2, 1], &f64));
    write("big.npy", fixtures::npy(">f8", false, &[2], &f64));
    write("ints.npy", fixtures::npy("<i8", false, &[2], &f64));
    let source = open(folder.path()).unwrap();
    assert_eq!(source.read_f32("f8").unwrap(), [1.5, -2.0]);
    assert_eq!(source.read_f32("vector").unwrap(), [1.5, -2.0]);
    let fortran = source.read_f32("matrix").unwrap_err().to_string();
    assert!(fortran.contains("ascontiguousarray") && fortran.contains("matrix.npy"), "{fortran}");
    for name in ["big", "ints"] {
        assert!(matches!(source.info(name).unwrap().dtype, StoredType::Unsupported(_)), "{name}");
        assert!(source.read_f32(name).is_err());
    }
}

#[test]
fn paths_that_are_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |path: &Path, what: &str| {
        let e = format!("{:#}", open(path).unwrap_err());
        assert!(e.contains(what) && e.contains(&*path.to_string_lossy()), "{e}");
        assert!(!e.contains('\n'), "{e}");
    };
    refuse(&folder.path().join("absent.safetensors"), "No such file");
    refuse(folder.path(), "neither a diffusers model");
    let ckpt = folder.path().join("model.ckpt");
    fixtures::write(&ckpt, b"PK\x03\x04 and so on");
    refuse(&ckpt, "damaged");
}
