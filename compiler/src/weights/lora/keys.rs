//! The names of a LoRA's tensors: a layer, and the part of its change.
//!
//! | names | where from |
//! |---|---|
//! | `unet.<layer>.lora_A.weight`, `text_encoder.<layer>.lora_A.weight` | PEFT and diffusers |
//! | `unet.<layer>.lora.down.weight`, `...processor.to_q_lora.down.weight` | older diffusers |
//! | `lora_unet_<layer>.lora_down.weight`, `lora_te_<layer>.alpha`, `_` for `.` | Kohya, LyCORIS |
//!
//! A layer has diffusers' or transformers' name. Kohya's may also be of the single-file layout.

use std::collections::HashMap;

use super::super::names::{self, Form, TextLayout, UnetLayout};
use super::super::{TensorInfo, TensorSource};

/// Ends PEFT's name of a magnitude.
pub(super) const PEFT_MAGNITUDE: &str = ".lora_magnitude_vector";

/// What a tensor is of a layer's change. The names are those of LyCORIS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Part {
    /// One number: the scale times the rank.
    Alpha,
    /// Norms of the changed weight (DoRA).
    Magnitude,
    Down,
    Up,
    /// The core between `Down` and `Up` (LoCon's Tucker form).
    Mid,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
}

/// The ends of names. A longer one stands before its own end.
const ENDS: &[(&str, Part)] = &[
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Magnitude),
    (PEFT_MAGNITUDE, Part::Magnitude),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t1", Part::HadaT1),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
];

/// Words of layers' names that have a `_` of their own.
const WORDS: &[&str] = &[
    "down_blocks",
    "up_blocks",
    "mid_block",
    "transformer_blocks",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "linear_1",
    "linear_2",
    "text_model",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
];

/// The layer in the LoRA's own words, and the part of its change.
pub(super) fn split(name: &str) -> Option<(&str, Part)> {
    ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)))
}

/// A layer of the checkpoint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    /// Index of the tensor with its weight.
    pub tensor: usize,
    /// Query, key or value (0, 1, 2) of three in one tensor.
    pub third: Option<usize>,
}

/// How layers are named in a checkpoint.
pub(super) struct Keys {
    unet: UnetLayout,
    text: TextLayout,
    /// Layers of the U-Net in the single-file layout with `_` for `.`, and their tensors.
    underscored: HashMap<String, usize>,
}

impl Keys {
    pub fn of(base: &dyn TensorSource) -> Keys {
        let tensors = base.tensors();
        let is_clip = tensors.iter().any(|t| t.name.starts_with(names::CLIP));
        let layer = |(index, info): (usize, &TensorInfo)| {
            let layer = info.name.strip_prefix(names::UNET)?.strip_prefix('.')?;
            Some((layer.strip_suffix(".weight")?.replace('.', "_"), index))
        };
        Keys {
            unet: UnetLayout::of_single_file(tensors),
            text: if is_clip { TextLayout::Clip } else { TextLayout::OpenClip },
            underscored: tensors.iter().enumerate().filter_map(layer).collect(),
        }
    }

    /// The place of a layer among the checkpoint's tensors.
    pub fn place(&self, layer: &str, tensors: &[TensorInfo]) -> Option<Place> {
        let whole = |name: String| (name, Form::Whole);
        let (name, form) = if let Some(layer) = layer.strip_prefix("lora_unet_") {
            if let Some(tensor) = self.underscored.get(layer) {
                return Some(Place { tensor: *tensor, third: None });
            }
            whole(names::unet(&format!("{}.weight", dotted(layer)), &self.unet)?)
        } else if let Some(layer) =
            layer.strip_prefix("lora_te_").or_else(|| layer.strip_prefix("lora_te1_"))
        {
            self.of_text(&dotted(layer))?
        } else if let Some(layer) = layer.strip_prefix("text_encoder.") {
            self.of_text(layer)?
        } else {
            let layer = layer.strip_prefix("unet.").unwrap_or(layer);
            // An older diffusers names the processor of an attention, and the last linear layer
            // without its place.
            let mut layer = layer.replace(".processor.", ".");
            if layer.ends_with(".to_out") {
                layer += ".0";
            }
            whole(names::unet(&format!("{layer}.weight"), &self.unet)?)
        };
        let tensor = tensors.binary_search_by(|t| t.name.as_str().cmp(&name)).ok()?;
        let third = match form {
            Form::Whole => None,
            Form::Third(third) => Some(third),
        };
        Some(Place { tensor, third })
    }

    fn of_text(&self, layer: &str) -> Option<(String, Form)> {
        let name = format!("{layer}.weight");
        match self.text {
            TextLayout::Clip => Some((names::clip(&name)?, Form::Whole)),
            TextLayout::OpenClip => names::open_clip(&name).map(|t| (t.name, t.form)),
        }
    }
}

/// A name with dots in place of the `_` between its words.
fn dotted(name: &str) -> String {
    let mut words = vec![];
    let mut rest = name;
    while !rest.is_empty() {
        let fits = |word: &&&str| {
            rest.strip_prefix(**word).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
        };
        let len = match WORDS.iter().find(fits) {
            Some(word) => word.len(),
            None => rest.find('_').unwrap_or(rest.len()),
        };
        words.push(&rest[..len]);
        rest = rest[len..].strip_prefix('_').unwrap_or(&rest[len..]);
    }
    words.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parted_where_names_have_dots() {
        for name in [
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
            "mid_block.attentions.0.proj_in",
            "up_blocks.3.resnets.2.time_emb_proj",
            "up_blocks.1.upsamplers.0.conv",
            "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
            "time_embedding.linear_2",
            "text_model.encoder.layers.11.self_attn.q_proj",
            "text_model.encoder.layers.11.mlp.fc1",
        ] {
            assert_eq!(dotted(&name.replace('.', "_")), name);
        }
        assert_eq!(split("a.lokr_w1_b"), Some(("a", Part::LokrW1B)));
        assert_eq!(
            split("a.attn1.processor.to_q_lora.up.weight"),
            Some(("a.attn1.processor.to_q", Part::Up))
        );
        assert_eq!(split("a.weight"), None);
    }
}
