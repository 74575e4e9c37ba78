//! From diffusers' tensor names to the keys of the single-file layout.
//!
//! diffusers numbers blocks and the layers in them. The single-file layout numbers all layers of
//! the U-Net in sequence, and the levels of the decoder from the image down. Both numberings are
//! derived from the names, so the model's channels, levels and layers need not be known.

use std::collections::BTreeMap;

use super::TensorInfo;
use super::diffusers::Component;

pub(super) const UNET: &str = "model.diffusion_model";
const VAE: &str = "first_stage_model";
const TINY: &str = "tiny";
const OPEN_CLIP: &str = "cond_stage_model.model";
pub(super) const CLIP: &str = "cond_stage_model.transformer.text_model";

/// The single-file layouts of text encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextLayout {
    /// OpenCLIP's, of Stable Diffusion 2.
    OpenClip,
    /// transformers' own, of Stable Diffusion 1.
    Clip,
}

/// The counterpart of a stored tensor in the single-file layout.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub name: String,
    pub form: Form,
}

/// The part of the target that a stored tensor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The whole target.
    Whole,
    /// Query, key or value (0, 1, 2) of three stacked along the first dimension.
    Third(usize),
}

/// The layout of a text encoder by the shape of its token table. CLIP ViT-L/14 has a width of 768,
/// and no OpenCLIP text encoder of the family has.
pub(super) fn text_layout(table: Option<&[usize]>) -> TextLayout {
    match table {
        Some([_, 768]) => TextLayout::Clip,
        _ => TextLayout::OpenClip,
    }
}

/// The target of each name of a component. `None` if the single-file layout has no such tensor.
/// `layout` is the text encoder's.
pub(super) fn targets(
    component: Component,
    names: &[&str],
    layout: TextLayout,
) -> Vec<Option<Target>> {
    let whole = |name: Option<String>| name.map(|name| Target { name, form: Form::Whole });
    match component {
        Component::TextEncoder => match layout {
            TextLayout::OpenClip => names.iter().map(|name| open_clip(name)).collect(),
            TextLayout::Clip => names.iter().map(|name| whole(clip(name))).collect(),
        },
        Component::Unet => {
            let layout = UnetLayout::of(names);
            names.iter().map(|name| whole(unet(name, &layout))).collect()
        }
        Component::Vae => {
            let level_count = Blocks::of(names, &["decoder", "up_blocks"]).count();
            names.iter().map(|name| whole(vae(name, level_count))).collect()
        }
    }
}

/// The shape of a tensor in the single-file layout. There, the VAE's attention projections are 1x1
/// convolutions, `[C, C, 1, 1]`.
pub(super) fn single_file_shape(name: &str, mut shape: Vec<usize>) -> Vec<usize> {
    let in_attention = name.starts_with(VAE) && name.contains(".attn_1.");
    if in_attention && name.ends_with(".weight") && shape.len() == 2 {
        shape.extend([1, 1]);
    }
    shape
}

/// The layers of consecutive blocks, by block number.
struct Blocks(BTreeMap<usize, Block>);

#[derive(Default, Clone, Copy)]
struct Block {
    resnet_count: usize,
    has_attention: bool,
    has_downsampler: bool,
}

impl Blocks {
    /// Counts the layers after `prefix` in the names.
    fn of(names: &[&str], prefix: &[&str]) -> Self {
        let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
        for name in names {
            let parts: Vec<&str> = name.split('.').collect();
            let Some([block, kind, layer, ..]) = parts.strip_prefix(prefix) else {
                continue;
            };
            let (Some(block), Some(layer)) = (number(block), number(layer)) else {
                continue;
            };
            let block = blocks.entry(block).or_default();
            match *kind {
                "resnets" => block.resnet_count = block.resnet_count.max(layer + 1),
                "attentions" => block.has_attention = true,
                "downsamplers" => block.has_downsampler = true,
                _ => {}
            }
        }
        Self(blocks)
    }

    fn get(&self, block: usize) -> Block {
        self.0.get(&block).copied().unwrap_or_default()
    }

    fn count(&self) -> usize {
        self.0.keys().next_back().map_or(0, |last| last + 1)
    }

    /// Number of layers in all blocks before `block`. A downsampler counts as a layer.
    fn layers_before(&self, block: usize) -> usize {
        self.0.range(..block).map(|(_, b)| b.resnet_count + usize::from(b.has_downsampler)).sum()
    }
}

/// The blocks of a U-Net on the way down and up.
pub(super) struct UnetLayout {
    down: Blocks,
    up: Blocks,
}

impl UnetLayout {
    fn of(names: &[&str]) -> Self {
        Self { down: Blocks::of(names, &["down_blocks"]), up: Blocks::of(names, &["up_blocks"]) }
    }

    /// The blocks of a U-Net in the single-file layout. `tensors` is sorted by name.
    pub fn of_single_file(tensors: &[TensorInfo]) -> Self {
        let has = |path: String| {
            let prefix = format!("{UNET}.{path}.");
            let first = tensors.partition_point(|t| t.name.as_str() < prefix.as_str());
            tensors.get(first).is_some_and(|t| t.name.starts_with(&prefix))
        };
        let (mut down, mut up) = (vec![Block::default()], vec![Block::default()]);
        // The first input layer is conv_in. A downsampler ends a block.
        for at in (1..).take_while(|at| has(format!("input_blocks.{at}.0"))) {
            let block = down.last_mut().expect("there is one");
            if has(format!("input_blocks.{at}.0.op")) {
                block.has_downsampler = true;
                down.push(Block::default());
            } else {
                block.resnet_count += 1;
                block.has_attention |= has(format!("input_blocks.{at}.1"));
            }
        }
        // An upsampler ends a block's last layer.
        for at in (0..).take_while(|at| has(format!("output_blocks.{at}.0"))) {
            let block = up.last_mut().expect("there is one");
            block.resnet_count += 1;
            block.has_attention |= has(format!("output_blocks.{at}.1.proj_in"));
            if [1, 2].iter().any(|part| has(format!("output_blocks.{at}.{part}.conv"))) {
                up.push(Block::default());
            }
        }
        let numbered = |blocks: Vec<Block>| Blocks(blocks.into_iter().enumerate().collect());
        Self { down: numbered(down), up: numbered(up) }
    }
}

/// The single-file name of a tensor of a U-Net in diffusers' names.
pub(super) fn unet(name: &str, layout: &UnetLayout) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let key = match parts.as_slice() {
        ["conv_in", leaf] => format!("input_blocks.0.0.{leaf}"),
        ["conv_norm_out", leaf] => format!("out.0.{leaf}"),
        ["conv_out", leaf] => format!("out.2.{leaf}"),
        ["time_embedding", "cond_proj", leaf] => format!("time_embed.cond_proj.{leaf}"),
        ["class_embedding", "weight"] => "label_emb.weight".to_owned(),
        ["time_embedding", "linear_1", leaf] => format!("time_embed.0.{leaf}"),
        ["time_embedding", "linear_2", leaf] => format!("time_embed.2.{leaf}"),
        ["mid_block", "resnets", layer, rest @ ..] => {
            format!("middle_block.{}.{}", 2 * number(layer)?, unet_resnet(rest)?)
        }
        ["mid_block", "attentions", layer, rest @ ..] => {
            format!("middle_block.{}.{}", 2 * number(layer)? + 1, rest.join("."))
        }
        ["down_blocks", block, kind, layer, rest @ ..] => {
            // The first input layer is conv_in.
            let block = number(block)?;
            let first = 1 + layout.down.layers_before(block);
            let at = first + number(layer)?;
            match (*kind, rest) {
                ("resnets", rest) => format!("input_blocks.{at}.0.{}", unet_resnet(rest)?),
                ("attentions", rest) => format!("input_blocks.{at}.1.{}", rest.join(".")),
                ("downsamplers", ["conv", leaf]) => {
                    let at = first + layout.down.get(block).resnet_count;
                    format!("input_blocks.{at}.0.op.{leaf}")
                }
                _ => return None,
            }
        }
        ["up_blocks", block, kind, layer, rest @ ..] => {
            let block = number(block)?;
            let first = layout.up.layers_before(block);
            let at = first + number(layer)?;
            match (*kind, rest) {
                ("resnets", rest) => format!("output_blocks.{at}.0.{}", unet_resnet(rest)?),
                ("attentions", rest) => format!("output_blocks.{at}.1.{}", rest.join(".")),
                ("upsamplers", ["conv", leaf]) => {
                    // The upsampler ends the block's last layer, after its attention if it has one.
                    let Block { resnet_count, has_attention, .. } = layout.up.get(block);
                    let at = (first + resnet_count).checked_sub(1)?;
                    format!("output_blocks.{at}.{}.conv.{leaf}", 1 + usize::from(has_attention))
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(format!("{UNET}.{key}"))
}

fn unet_resnet(rest: &[&str]) -> Option<String> {
    let [module, leaf] = rest else { return None };
    let module = match *module {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    };
    Some(format!("{module}.{leaf}"))
}

fn vae(name: &str, level_count: usize) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    let key = match parts.as_slice() {
        // A tiny autoencoder keeps diffusers' names.
        [half @ ("encoder" | "decoder"), "layers", layer, ..] if number(layer).is_some() => {
            return Some(format!("{TINY}.{half}.{}", parts[1..].join(".")));
        }
        [conv @ ("quant_conv" | "post_quant_conv"), leaf] => format!("{conv}.{leaf}"),
        [half @ ("encoder" | "decoder"), rest @ ..] => {
            format!("{half}.{}", vae_half(rest, level_count)?)
        }
        _ => return None,
    };
    Some(format!("{VAE}.{key}"))
}

fn vae_half(parts: &[&str], level_count: usize) -> Option<String> {
    Some(match parts {
        [conv @ ("conv_in" | "conv_out"), leaf] => format!("{conv}.{leaf}"),
        ["conv_norm_out", leaf] => format!("norm_out.{leaf}"),
        ["mid_block", "resnets", layer, rest @ ..] => {
            format!("mid.block_{}.{}", number(layer)? + 1, vae_resnet(rest)?)
        }
        ["mid_block", "attentions", layer, rest @ ..] => {
            format!("mid.attn_{}.{}", number(layer)? + 1, vae_attention(rest)?)
        }
        ["down_blocks", level, "resnets", layer, rest @ ..] => {
            format!("down.{}.block.{}.{}", number(level)?, number(layer)?, vae_resnet(rest)?)
        }
        ["down_blocks", level, "downsamplers", "0", "conv", leaf] => {
            format!("down.{}.downsample.conv.{leaf}", number(level)?)
        }
        ["up_blocks", block, "resnets", layer, rest @ ..] => {
            let level = level_count.checked_sub(number(block)? + 1)?;
            format!("up.{level}.block.{}.{}", number(layer)?, vae_resnet(rest)?)
        }
        ["up_blocks", block, "upsamplers", "0", "conv", leaf] => {
            let level = level_count.checked_sub(number(block)? + 1)?;
            format!("up.{level}.upsample.conv.{leaf}")
        }
        _ => return None,
    })
}

fn vae_resnet(rest: &[&str]) -> Option<String> {
    let [module, leaf] = rest else { return None };
    let module = match *module {
        same @ ("norm1" | "conv1" | "norm2" | "conv2") => same,
        "conv_shortcut" => "nin_shortcut",
        _ => return None,
    };
    Some(format!("{module}.{leaf}"))
}

/// Maps both spellings: diffusers renamed its attention layers in 0.15.
pub(super) fn vae_attention(rest: &[&str]) -> Option<String> {
    let (module, leaf) = match rest {
        ["group_norm", leaf] => ("norm", leaf),
        ["to_q" | "query", leaf] => ("q", leaf),
        ["to_k" | "key", leaf] => ("k", leaf),
        ["to_v" | "value", leaf] => ("v", leaf),
        ["to_out", "0", leaf] | ["proj_attn", leaf] => ("proj_out", leaf),
        _ => return None,
    };
    Some(format!("{module}.{leaf}"))
}

/// CLIP's text encoder keeps transformers' names. Early releases of transformers stored the
/// positions' numbers beside them.
pub(super) fn clip(name: &str) -> Option<String> {
    let name = name.strip_prefix("text_model.").unwrap_or(name);
    let known = ["embeddings.", "encoder.layers.", "final_layer_norm."];
    let is_known = known.iter().any(|prefix| name.starts_with(prefix));
    (is_known && !name.ends_with("position_ids")).then(|| format!("{CLIP}.{name}"))
}

/// The OpenCLIP name of a tensor of a text encoder in transformers' names.
pub(super) fn open_clip(name: &str) -> Option<Target> {
    let parts: Vec<&str> = name.strip_prefix("text_model.").unwrap_or(name).split('.').collect();
    let (key, form) = match parts.as_slice() {
        ["embeddings", "token_embedding", "weight"] => {
            ("token_embedding.weight".to_owned(), Form::Whole)
        }
        ["embeddings", "position_embedding", "weight"] => {
            ("positional_embedding".to_owned(), Form::Whole)
        }
        ["final_layer_norm", leaf] => (format!("ln_final.{leaf}"), Form::Whole),
        ["encoder", "layers", layer, rest @ ..] => {
            let (key, form) = text_layer(rest)?;
            (format!("transformer.resblocks.{}.{key}", number(layer)?), form)
        }
        _ => return None,
    };
    Some(Target { name: format!("{OPEN_CLIP}.{key}"), form })
}

fn text_layer(rest: &[&str]) -> Option<(String, Form)> {
    let (module, leaf) = match rest {
        ["self_attn", proj @ ("q_proj" | "k_proj" | "v_proj"), leaf @ ("weight" | "bias")] => {
            let slot = ["q_proj", "k_proj", "v_proj"].iter().position(|p| p == proj)?;
            return Some((format!("attn.in_proj_{leaf}"), Form::Third(slot)));
        }
        ["self_attn", "out_proj", leaf] => ("attn.out_proj", leaf),
        ["mlp", "fc1", leaf] => ("mlp.c_fc", leaf),
        ["mlp", "fc2", leaf] => ("mlp.c_proj", leaf),
        ["layer_norm1", leaf] => ("ln_1", leaf),
        ["layer_norm2", leaf] => ("ln_2", leaf),
        _ => return None,
    };
    Some((format!("{module}.{leaf}"), Form::Whole))
}

/// A block or layer number. No model has larger numbers.
fn number(text: &str) -> Option<usize> {
    let plain = (1..=3).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    let canonical = text == "0" || !text.starts_with('0');
    if plain && canonical { text.parse().ok() } else { None }
}
