//! Which model a checkpoint is, without `--model` and against it.

use super::checkpoint::write;
use super::empty;
use super::harness::{arg, kiln_err, kiln_ok};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const PARTS: [(&str, &str); 3] = [
    ("text_encoder", "model.safetensors"),
    ("unet", "diffusion_pytorch_model.safetensors"),
    ("vae", "diffusion_pytorch_model.safetensors"),
];

/// A diffusers folder without tensors, of two levels that no known model has.
fn folder(name: &str, unet: &Value) -> PathBuf {
    let folder = empty(name);
    for (part, file) in PARTS {
        fs::create_dir(folder.join(part)).expect("the target folder can be written");
        write(&folder.join(part).join(file), &[]);
    }
    let config = |part: &str, config: &Value| {
        fs::write(folder.join(part), config.to_string()).expect("the target folder can be written");
    };
    let text = json!({
        "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2,
        "num_hidden_layers": 2, "hidden_act": "quick_gelu",
    });
    config("text_encoder/config.json", &text);
    config("unet/config.json", unet);
    config("vae/config.json", &json!({"block_out_channels": [32, 64]}));
    folder
}

fn unet() -> Value {
    json!({
        "block_out_channels": [32, 64], "cross_attention_dim": 64, "sample_size": 32,
        "attention_head_dim": 4, "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    })
}

fn sweep(weights: &Path, options: &[&str]) -> Vec<String> {
    let fixed = ["compile", "--weights", arg(weights), "--device", "cpu-avx2"];
    let fixed = [&fixed[..], &["--budget-sweep", "1GiB..1GiB"], options].concat();
    fixed.into_iter().map(String::from).collect()
}

#[test]
fn a_folder_describes_its_model() {
    let folder = folder("described", &unet());
    let args = sweep(&folder, &[]);
    let text = kiln_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(text.starts_with("described fp32 for cpu-avx2"), "{text}");
}

#[test]
fn a_folder_may_have_a_tiny_autoencoder_alone() {
    let folder = folder("own-tiny", &unet());
    let tiny =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-256-tiny.safetensors");
    fs::copy(&tiny, folder.join("vae").join(PARTS[2].1)).expect("the target folder can be written");
    let config = json!({"_class_name": "AutoencoderTiny"}).to_string();
    fs::write(folder.join("vae/config.json"), config).expect("the target folder can be written");
    let plan = |options: &[&str]| sweep(&folder, options);
    let text = kiln_ok(&plan(&[]).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(text.starts_with("own-tiny fp32 for cpu-avx2"), "{text}");
    let args = plan(&["--tiny-decoder", arg(&tiny)]);
    let line = kiln_err(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    assert!(line.contains("the checkpoint's own autoencoder is tiny"), "{line}");
}

#[test]
fn what_a_folder_describes_is_refused_by_its_field() {
    for (field, value, expected) in [
        ("act_fn", json!("gelu"), "unet/config.json: act_fn is \"gelu\""),
        ("addition_embed_type", json!("text_time"), "this is Stable Diffusion XL"),
        ("attention_head_dim", json!([1, 2, 3]), "attention_head_dim is [1,2,3]"),
        ("up_block_types", json!(["A", "B"]), "up_block_types: A is not built"),
        ("cross_attention_dim", json!(768), "unet.context_width: 768, but text.width is 64"),
        ("num_class_embeds", json!(10), "reads a class"),
    ] {
        let mut unet = unet();
        unet[field] = value;
        let args = sweep(&folder("refused", &unet), &[]);
        let line = kiln_err(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2);
        assert!(line.contains(expected), "{field}: {line}");
    }
}

#[test]
fn a_folder_that_contradicts_the_model_is_refused() {
    let folder = folder("contradicts", &unet());
    let args = sweep(&folder, &["--model", "sd15"]);
    let line = kiln_err(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2);
    assert!(line.contains("text.heads is 2, of sd15 it is 12; leave --model out"), "{line}");
}

#[test]
fn files_of_other_kinds_are_named() {
    let folder = empty("kinds");
    let (file, output) = (folder.join("other.safetensors"), folder.join("x.kiln"));
    let compile = ["compile", "--weights", arg(&file), "-o", arg(&output)];
    fs::write(&file, b"GGUF\x03\0\0\0").expect("the target folder can be written");
    let line = kiln_err(&compile, 2);
    assert!(line.contains("other.safetensors: this is GGUF, the format of llama.cpp"), "{line}");
    for (tensor, kind) in [
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora.up.weight", "a LoRA"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("conditioner.embedders.1.model.ln_final.weight", "Stable Diffusion XL"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
    ] {
        write(&file, &[(tensor, &[1])]);
        let line = kiln_err(&compile, 2);
        assert!(line.contains(&format!("other.safetensors: this is {kind}")), "{line}");
    }
    write(&file, &[("some.weight", &[1])]);
    let line = kiln_err(&compile, 2);
    assert!(line.contains("no model that Kiln compiles has these tensors"), "{line}");
    fs::write(folder.join("model_index.json"), r#"{"_class_name":"FluxPipeline"}"#)
        .expect("written");
    let line = kiln_err(&["compile", "--weights", arg(&folder), "-o", arg(&output)], 2);
    assert!(line.contains("this is for FluxPipeline"), "{line}");
}

#[test]
fn the_shipped_model_is_recognized() {
    let weights = Path::new("models/emoji-256.safetensors.zst");
    let args = sweep(weights, &[]);
    let text = kiln_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(text.starts_with("emoji-256 fp32 for cpu-avx2"), "{text}");
}
