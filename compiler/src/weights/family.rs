//! Recognizes checkpoints of other models by the names and shapes of their tensors.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Requirement, TensorSource};

/// A weight whose first axis is the width of the U-Net and whose second is the text encoder's.
const CROSS_ATTENTION: &str =
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
/// The U-Net's first convolution. Its second axis is the channels that it reads.
const FIRST: &str = "model.diffusion_model.input_blocks.0.0.weight";

/// Parts of names that only one kind of checkpoint has.
const NAMES: [(&str, &str); 6] = [
    ("lora_", "a LoRA, which changes a model and is none"),
    (".lora.", "a LoRA, which changes a model and is none"),
    ("control_model.", "a ControlNet, which steers a model and is none"),
    ("controlnet_cond_embedding.", "a ControlNet, which steers a model and is none"),
    ("double_blocks.", "Flux"),
    ("joint_blocks.", "Stable Diffusion 3"),
];
/// Parts of names that tell only without a U-Net of known shape: programs of several models use
/// them.
const WEAK_NAMES: [(&str, &str); 4] = [
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("add_embedding.", "Stable Diffusion XL"),
    ("label_emb.", "Stable Diffusion XL"),
    ("cond_stage_model.transformer.text_model.", "Stable Diffusion 1"),
];

/// What a checkpoint is, if it is of a known kind.
pub fn kind(source: &dyn TensorSource) -> Option<&'static str> {
    recognize(source, &[])
}

/// Refuses a file in the format of llama.cpp.
pub(super) fn refuse_gguf(path: &Path) -> Result<()> {
    let mut magic = [0; 4];
    let is_read = File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok();
    if is_read && magic == *b"GGUF" {
        bail!(
            "{}: this is GGUF, the format of llama.cpp; get the .safetensors file of the model",
            path.display()
        );
    }
    Ok(())
}

/// What a checkpoint is, if it is of a known kind and not of the kind of the required tensors.
pub(super) fn recognize(
    source: &dyn TensorSource,
    required: &[Requirement],
) -> Option<&'static str> {
    let of_names = |names: &[(&str, &'static str)]| {
        let has = |part: &str| source.tensors().iter().any(|tensor| tensor.name.contains(part));
        names.iter().find(|(part, _)| has(part)).map(|(_, kind)| *kind)
    };
    let shape = |name: &str| source.info(name).map(|info| &info.shape[..]);
    let is_required = |name: &str| {
        let found = shape(name);
        required.iter().any(|r| r.name == name && Some(&r.shape[..]) == found)
    };
    let of_channels = match shape(FIRST).filter(|_| !is_required(FIRST)) {
        Some([_, 5, ..]) => Some("a model that reads a depth map"),
        Some([_, 7, ..]) => Some("an upscaler"),
        Some([_, 8, ..]) => Some("InstructPix2Pix"),
        Some([_, 9, ..]) => Some("a model for inpainting"),
        _ => None,
    };
    if let Some(kind) = of_names(&NAMES).or(of_channels) {
        return Some(kind);
    }
    let found = shape(CROSS_ATTENTION);
    match found {
        Some(_) if is_required(CROSS_ATTENTION) => None,
        Some([_, 768]) => Some("Stable Diffusion 1"),
        Some([_, 1024]) => Some("Stable Diffusion 2"),
        Some([_, 2048]) => Some("Stable Diffusion XL"),
        Some(_) => None,
        None => of_names(&WEAK_NAMES).or_else(|| of_parts(source)),
    }
}

/// What a checkpoint of one network is.
fn of_parts(source: &dyn TensorSource) -> Option<&'static str> {
    let all = |prefixes: &[&str]| {
        let begins = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let mut tensors = source.tensors().iter().peekable();
        tensors.peek().is_some() && tensors.all(|tensor| begins(&tensor.name))
    };
    let autoencoder =
        ["first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
    let unet = ["input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out."];
    let diffusers = ["down_blocks.", "mid_block.", "up_blocks.", "time_embedding.", "conv_"];
    match () {
        () if all(&unet) || all(&diffusers) => Some("a U-Net alone"),
        () if all(&autoencoder) => Some("an autoencoder alone"),
        () if all(&["cond_stage_model.", "text_model.", "text_projection."]) => {
            Some("a text encoder alone")
        }
        () => None,
    }
}
