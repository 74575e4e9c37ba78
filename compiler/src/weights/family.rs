//! Recognizes checkpoints of other models by the names and shapes of their tensors.

use super::TensorSource;

/// A weight whose first axis is the width of the U-Net and whose second is the text encoder's.
const CROSS_ATTENTION: &str =
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
/// The U-Net's first convolution. Its second axis is the channels that it reads.
const FIRST: &str = "model.diffusion_model.input_blocks.0.0.weight";

/// Parts of names that only one kind of checkpoint has, the most telling first.
const NAMES: [(&str, &str); 9] = [
    ("lora_", "a LoRA, which changes a model and is none"),
    ("control_model.", "a ControlNet, which steers a model and is none"),
    ("controlnet_cond_embedding.", "a ControlNet, which steers a model and is none"),
    ("double_blocks.", "Flux"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("add_embedding.", "Stable Diffusion XL"),
    ("label_emb.", "Stable Diffusion XL"),
    ("cond_stage_model.transformer.text_model.", "Stable Diffusion 1"),
];

/// What a checkpoint is, if it is of a known kind.
pub(super) fn recognize(source: &dyn TensorSource) -> Option<&'static str> {
    let axis = |name: &str| source.info(name).and_then(|info| info.shape.get(1).copied());
    let of_names = NAMES
        .iter()
        .find(|(part, _)| source.tensors().iter().any(|tensor| tensor.name.contains(part)));
    if let Some((_, kind)) = of_names {
        return Some(kind);
    }
    match (axis(CROSS_ATTENTION), axis(FIRST)) {
        (_, Some(5)) => Some("a model that reads a depth map"),
        (_, Some(7)) => Some("an upscaler"),
        (_, Some(8)) => Some("InstructPix2Pix"),
        (_, Some(9)) => Some("a model for inpainting"),
        (Some(768), _) => Some("Stable Diffusion 1"),
        (Some(1024), Some(4)) => Some("Stable Diffusion 2"),
        (Some(2048), _) => Some("Stable Diffusion XL"),
        (None, None) => of_parts(source),
        _ => None,
    }
}

/// What a checkpoint without a U-Net is.
fn of_parts(source: &dyn TensorSource) -> Option<&'static str> {
    let all = |prefixes: &[&str]| {
        let begins = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let mut tensors = source.tensors().iter().peekable();
        tensors.peek().is_some() && tensors.all(|tensor| begins(&tensor.name))
    };
    let autoencoder =
        ["first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv."];
    match () {
        () if all(&autoencoder) => Some("an autoencoder alone"),
        () if all(&["cond_stage_model.", "text_model.", "text_projection."]) => {
            Some("a text encoder alone")
        }
        () => None,
    }
}
