//! Truncated, damaged and malicious files: a one-line error with the file's name, never a panic.

use std::path::Path;

use arbtest::{arbitrary, arbtest};
use kiln_compiler::weights::{TensorSource, open};
use tempfile::TempDir;

use crate::fixtures::{self, Raw, header_from_text};

/// A place for one file, written again and again.
struct Bench {
    folder: TempDir,
    file: &'static str,
}

impl Bench {
    fn new(file: &'static str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), file }
    }

    /// Opens a file with these bytes and, if that succeeds, reads everything in it.
    fn read(&self, bytes: &[u8]) -> Result<Box<dyn TensorSource>, String> {
        let path = self.folder.path().join(self.file);
        fixtures::write(&path, bytes);
        let opened =
            if self.file.ends_with(".npy") { open(self.folder.path()) } else { open(&path) };
        match opened {
            Ok(source) => {
                for tensor in source.tensors() {
                    let values = source.read_f32(&tensor.name);
                    assert_eq!(values.is_ok(), tensor.dtype.size_bytes().is_some());
                }
                Ok(source)
            }
            Err(e) => {
                let e = format!("{e:#}");
                assert!(e.contains(self.file), "the file is not named: {e}");
                assert!(!e.contains('\n'), "not one line: {e}");
                Err(e)
            }
        }
    }

    fn refuse(&self, bytes: &[u8], what: &str) {
        let e = self.read(bytes).unwrap_err();
        assert!(e.contains(what), "`{what}` expected: {e}");
    }
}

fn small() -> Vec<u8> {
    fixtures::safetensors(&[
        Raw::f32("a.weight", &[2, 3], &[1.0; 6]),
        Raw::new("b", "F16", &[4], vec![0; 8]),
        Raw::new("c", "BF16", &[1, 1, 1, 2], vec![1; 4]),
    ])
}

/// Overwrites, flips, cuts and inserts.
fn damage(mut bytes: Vec<u8>, u: &mut arbitrary::Unstructured) -> arbitrary::Result<Vec<u8>> {
    for _ in 0..u.int_in_range(1..=4)? {
        if bytes.is_empty() {
            break;
        }
        let at = u.choose_index(bytes.len())?;
        match u.int_in_range(0..=4)? {
            0 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
            1 => bytes[at] = u.arbitrary()?,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, u.arbitrary()?),
            _ => bytes[at] = *u.choose(b"0123456789,:[]{}()\"'-eLx")?,
        }
    }
    Ok(bytes)
}

#[test]
fn safetensors_cut_anywhere_is_truncated() {
    let bench = Bench::new("cut.safetensors");
    let whole = small();
    for len in 0..whole.len() {
        bench.refuse(&whole[..len], "truncated");
    }
    bench.read(&whole).unwrap();
    let e = bench.read(&whole[..whole.len() - 3]).unwrap_err();
    let (all, cut) = (whole.len(), whole.len() - 3);
    assert!(e.contains(&format!("{all} bytes expected, {cut} found")), "{e}");
    bench.refuse(&[&whole[..], b"more"].concat(), "4 bytes follow its last tensor");
}

#[test]
fn safetensors_damaged_at_random() {
    let bench = Bench::new("damaged.safetensors");
    arbtest(|u| {
        let _ = bench.read(&damage(small(), u)?);
        Ok(())
    })
    .budget_ms(1_000);
}

#[test]
fn safetensors_with_lying_headers() {
    let bench = Bench::new("liar.safetensors");
    let one = |shape: &str, offsets: &str| {
        let info = format!(r#""dtype":"F32","shape":{shape},"data_offsets":{offsets}"#);
        header_from_text(&format!(r#"{{"a":{{{info}}}}}"#))
    };
    // The length of the header.
    bench.refuse(&[0xff; 64], "claims a header of 18446744073709551615 bytes");
    bench.refuse(&[&99_999_999u64.to_le_bytes()[..], b"{}"].concat(), "truncated");
    // Offsets and shapes.
    bench.refuse(&one("[1]", "[0,18446744073709551615]"), "damaged safetensors header");
    bench.refuse(&one("[4611686018427387904]", "[0,0]"), "damaged safetensors header");
    bench.refuse(&one("[4294967296,4294967296,4294967296]", "[0,0]"), "overflow");
    bench.refuse(&one("[2]", "[0,4]"), "invalid shape, data type, or offset");
    bench.refuse(&one("[1]", "[4,8]"), "invalid offset for tensor `a`");
    bench.refuse(&one("[1]", "[8,4]"), "invalid offset");
    bench.refuse(&one("[-1]", "[0,4]"), "damaged safetensors header");
    bench.refuse(&one("[4611686018427387903]", "[0,18446744073709551612]"), "overflow");
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    bench.refuse(&[&header_from_text(overlap)[..], &[0; 12]].concat(), "invalid offset");
    // Text.
    bench.refuse(&header_from_text("not json"), "damaged safetensors header");
    bench.refuse(&header_from_text(&"[".repeat(100_000)), "damaged safetensors header");
    bench.refuse(&header_from_text(r#"{"a\nb":{"dtype":"F\n32"}}"#), "damaged");
    let line_break = r#"{"x\ny":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    bench.refuse(&header_from_text(line_break), "x\\ny");
}

#[test]
fn what_people_mistake_for_safetensors() {
    let bench = Bench::new("model.safetensors");
    bench.refuse(b"", "truncated");
    bench.refuse(b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull");
    bench.refuse(b"PK\x03\x04\x00\x00\x08\x08 archive", "zip archive");
    bench.refuse(b"\x80\x02}q\x00(X\x05\x00\x00", "pickle");
    bench.refuse(b"<!DOCTYPE html><html>", "web page");
    bench.refuse(&fixtures::zst(&small()), "safetensors.zst");
}

#[test]
fn zst_cut_anywhere_is_truncated() {
    let bench = Bench::new("cut.safetensors.zst");
    let whole = fixtures::zst(&small());
    for len in 0..whole.len() {
        bench.refuse(&whole[..len], "truncated");
    }
    bench.read(&whole).unwrap();
    let mut shipped = std::fs::read(fixtures::emoji_path()).unwrap();
    shipped.truncate(20_000_000);
    bench.refuse(&shipped, "the zstd stream breaks off");
}

#[test]
fn zst_with_changed_bytes_is_corrupt() {
    let bench = Bench::new("corrupt.safetensors.zst");
    let mut shipped = std::fs::read(fixtures::emoji_path()).unwrap();
    let last = shipped.len() - 1;
    shipped[last] ^= 1;
    bench.refuse(&shipped, "checksum");
    bench.refuse(&small(), "corrupt");
    bench.refuse(&fixtures::zst(&[&small()[..], b"more"].concat()), "more than the 36 bytes");
}

#[test]
fn zst_damaged_at_random() {
    let bench = Bench::new("damaged.safetensors.zst");
    let whole = fixtures::zst(&small());
    arbtest(|u| {
        let _ = bench.read(&damage(whole.clone(), u)?);
        Ok(())
    })
    .budget_ms(1_000);
}

#[test]
fn zst_that_would_fill_the_disk_is_refused() {
    let bench = Bench::new("bomb.safetensors.zst");
    // A header of a gigabyte of data, of which little follows.
    let entry = "\"a\":{\"dtype\":\"F32\",\"shape\":[268435456],\"data_offsets\":[0,1073741824]}";
    let header = format!("{{{entry}}}");
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + 4096, 0);
    bench.refuse(&fixtures::zst(&file), "declares 1073741824 bytes of data, over 100 times");
}

#[test]
fn zst_with_an_absurd_window_is_refused() {
    let bench = Bench::new("window.safetensors.zst");
    // A frame header with a window of 256 MiB, then of the largest exponent and mantissa.
    let header = |window| [0x28, 0xb5, 0x2f, 0xfd, 0x00, window, 0x01, 0x00, 0x00];
    bench.refuse(&header(0x90), "--long=31");
    bench.refuse(&header(0xff), "WindowTooBig");
}

#[test]
fn npy_damaged_at_random() {
    let bench = Bench::new("damaged.npy");
    let whole = fixtures::npy("<f4", false, &[2, 3], &[0; 24]);
    arbtest(|u| {
        let _ = bench.read(&damage(whole.clone(), u)?);
        Ok(())
    })
    .budget_ms(1_000);
}

#[test]
fn npy_with_lying_headers() {
    let bench = Bench::new("liar.npy");
    bench.refuse(b"", "not a .npy file");
    bench.refuse(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "truncated or too long");
    bench.refuse(&fixtures::npy("<f4", false, &[usize::MAX, usize::MAX], &[]), "refused");
    bench.refuse(&fixtures::npy("<f4", false, &[1 << 40], &[0; 8]), "truncated");
    bench.refuse(&fixtures::npy("<f4", false, &[usize::MAX / 8], &[]), "bytes");
    bench.refuse(&fixtures::npy("<f4", false, &[1], &[0; 8]), "damaged");
    let whole = fixtures::npy("<f4", false, &[2, 3], &[0; 24]);
    for len in 0..whole.len() {
        bench.read(&whole[..len]).unwrap_err();
    }
}

fn refuse_folder(folder: &Path, what: &str) {
    let e = format!("{:#}", open(folder).unwrap_err());
    assert!(e.contains(what) && e.contains(&*folder.to_string_lossy()), "`{what}`: {e}");
    assert!(!e.contains('\n'), "{e}");
}

#[test]
fn diffusers_folders_with_parts_missing() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let text = folder.join("text_encoder/model.safetensors");
    let layer = "text_model.encoder.layers.0.self_attn";
    let proj = |p: &str, n: usize| Raw::f32(&format!("{layer}.{p}_proj.bias"), &[n], &vec![1.0; n]);
    fixtures::write(&text, &fixtures::safetensors(&[proj("q", 2)]));
    refuse_folder(folder, "no folder unet/");
    std::fs::create_dir_all(folder.join("unet")).unwrap();
    refuse_folder(folder, "no weights; looked for diffusion_pytorch_model.safetensors");
    fixtures::write(&folder.join("unet/diffusion_pytorch_model.bin"), b"\x80\x02");
    refuse_folder(folder, "before version 1.6");
    for component in ["unet", "vae"] {
        let file = folder.join(component).join("diffusion_pytorch_model.safetensors");
        fixtures::write(&file, &fixtures::safetensors(&[Raw::f32("conv_in.bias", &[1], &[0.0])]));
    }
    refuse_folder(folder, "query, key and value belong together");
    let mismatched =
        [proj("q", 2), proj("k", 2), Raw::f32(&format!("{layer}.v_proj.bias"), &[], &[0.])];
    fixtures::write(&text, &fixtures::safetensors(&mismatched));
    refuse_folder(folder, "do not fit");
    let three = [proj("q", 2), proj("k", 2), proj("v", 2)];
    fixtures::write(&text, &fixtures::safetensors(&three));
    let source = open(folder).unwrap();
    let joined = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias";
    assert_eq!(source.info(joined).unwrap().shape, [6]);
    // What has no place in the single-file layout stays visible.
    assert_eq!(source.read_f32("vae/conv_in.bias").unwrap(), [0.0]);
    let twice = [proj("q", 2), proj("k", 2), proj("v", 2), {
        let mut q = proj("q", 2);
        q.name = q.name.replace("text_model.", "");
        q
    }];
    fixtures::write(&text, &fixtures::safetensors(&twice));
    refuse_folder(folder, "under two names");
}

#[test]
fn shard_indexes_that_lie() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path();
    let tensor = Raw::f32("a", &[1], &[0.0]);
    for file in
        ["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    {
        fixtures::write(&folder.join(file), &fixtures::safetensors(std::slice::from_ref(&tensor)));
    }
    let index = folder.join("text_encoder/model.safetensors.index.json");
    let with = |text: &str, what: &str| {
        fixtures::write(&index, text.as_bytes());
        refuse_folder(folder, what);
    };
    with("{", "damaged shard index");
    with("{\"weight_map\": {\"a\": 3}}", "damaged shard index");
    with(
        r#"{"weight_map": {"a": "../unet/diffusion_pytorch_model.safetensors"}}"#,
        "not in its folder",
    );
    with(r#"{"weight_map": {"a": "/etc/passwd"}}"#, "not in its folder");
    with(r#"{"weight_map": {"a": ".."}}"#, "not in its folder");
    with(r#"{"weight_map": {"a": ""}}"#, "not in its folder");
    with(r#"{"weight_map": {"a": "absent.safetensors"}}"#, "absent.safetensors");
    fixtures::write(&folder.join("text_encoder/b.safetensors"), &fixtures::safetensors(&[tensor]));
    with(r#"{"weight_map": {"b": "b.safetensors"}}"#, "no tensor `b`, which the index lists");
}
