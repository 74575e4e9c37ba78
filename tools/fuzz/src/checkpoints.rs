//! Weights in each format, and LoRAs over them.

use std::fs;
use std::path::Path;

use kiln_compiler::weights::lora::{self, Lora};
use kiln_compiler::weights::{TensorSource, open};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::{Target, expect_line, file, stored};

/// One safetensors file.
pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    seeds: || {
        let small = "compiler/tests/data/torch/small.safetensors";
        vec![stored(small), stored("compiler/tests/data/torch/f8.safetensors"), tiny()]
    },
    run: |folder, bytes| read(&file(folder, "x.safetensors", bytes)),
};

/// PyTorch's archive with a pickle, and its older form.
pub const CKPT: Target = Target {
    name: "ckpt",
    seeds: || {
        ["small", "legacy"].map(|n| stored(&format!("compiler/tests/data/torch/{n}.ckpt"))).into()
    },
    run: |folder, bytes| read(&file(folder, "x.ckpt", bytes)),
};

/// A folder with an array a tensor.
pub const NPY_FOLDER: Target = Target {
    name: "npy-folder",
    seeds: || {
        let header = "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }";
        let header = format!("{header:<117}\n");
        vec![[b"\x93NUMPY\x01\0\x76\0", header.as_bytes(), &[0; 12]].concat()]
    },
    run: |folder, bytes| {
        let arrays = folder.join("arrays");
        fs::create_dir_all(&arrays).expect("a temporary folder can be written");
        file(&arrays, "a.weight.npy", bytes);
        read(&arrays);
    },
};

/// A compressed safetensors file.
pub const ZST: Target = Target {
    name: "zst",
    seeds: || vec![compress_to_vec(&tiny()[..], CompressionLevel::Fastest)],
    run: |folder, bytes| read(&file(folder, "x.safetensors.zst", bytes)),
};

/// A LoRA, merged with a checkpoint of two layers.
pub const LORA: Target = Target {
    name: "lora",
    seeds: || {
        let pairs = [("lora_down", [2, 4]), ("lora_up", [4, 2])];
        let layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q";
        let tensors = pairs.map(|(part, shape)| (format!("{layer}.{part}.weight"), shape));
        vec![safetensors(&tensors), tiny()]
    },
    run: |folder, bytes| {
        let base = file(folder, "base.safetensors", &base());
        let base = open(&base).expect("it is valid");
        let path = file(folder, "lora.safetensors", bytes);
        match lora::merge(base, &[Lora { path, strength: 0.5 }]) {
            Ok((merged, _)) => read_all(merged.as_ref()),
            Err(error) => expect_line(&format!("{error:#}")),
        }
    },
};

fn read(path: &Path) {
    match open(path) {
        Ok(source) => read_all(source.as_ref()),
        Err(error) => expect_line(&format!("{error:#}")),
    }
}

/// Reads all tensors of a source, of which each is refused or whole.
fn read_all(source: &dyn TensorSource) {
    for tensor in source.tensors() {
        match source.read_f32(&tensor.name) {
            Ok(values) => assert_eq!(values.len(), tensor.elem_count(), "{}", tensor.name),
            Err(error) => expect_line(&format!("{error:#}")),
        }
    }
}

/// A safetensors file of zeros in FP32.
fn safetensors(tensors: &[(String, [usize; 2])]) -> Vec<u8> {
    let mut end = 0;
    let entry = |(name, [rows, columns]): &(String, [usize; 2])| {
        let begin = end;
        end += rows * columns * 4;
        format!(
            "\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{rows},{columns}],\"data_offsets\":[{begin},{end}]}}"
        )
    };
    let header = format!("{{{}}}", tensors.iter().map(entry).collect::<Vec<_>>().join(","));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat()
}

fn tiny() -> Vec<u8> {
    safetensors(&[("a.weight".into(), [2, 3]), ("b".into(), [1, 4])])
}

/// A U-Net's layer under the name of single files.
fn base() -> Vec<u8> {
    let layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1";
    let tensor = |part: &str| (format!("{layer}.{part}.weight"), [4, 4]);
    safetensors(&[tensor("to_q"), tensor("to_k")])
}
