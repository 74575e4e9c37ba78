//! A description from the configurations of a diffusers folder.

use super::{ConfigError, ModelConfig, TextConfig, TextTower, UnetConfig, VaeConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};

mod schedule;

/// The texts of the configurations of a folder.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// `unet/config.json`.
    pub unet: String,
    /// `text_encoder/config.json`.
    pub text_encoder: String,
    /// `vae/config.json`.
    pub vae: String,
    /// `scheduler/scheduler_config.json`, if it is there.
    pub scheduler: Option<String>,
}

/// Reads a folder's configurations. Fields that they leave out have diffusers' and transformers'
/// defaults.
///
/// Errors: the networks have parts that are not built, or sizes that contradict each other. The
/// error names file and field.
pub fn from_diffusers(name: &str, folder: &Folder) -> Result<ModelConfig, ConfigError> {
    let fault = |what| ConfigError { name: name.to_string(), what };
    describe(name, folder).map_err(fault)
}

fn describe(name: &str, folder: &Folder) -> Result<ModelConfig, String> {
    let unet = File::parse("unet/config.json", &folder.unet)?;
    if unet.get("addition_embed_type") == json!("text_time") {
        return Err(unet.fault("this is Stable Diffusion XL, which Kiln does not compile"));
    }
    unet.expect(UNET)?;
    let text = File::parse("text_encoder/config.json", &folder.text_encoder)?;
    text.expect(TEXT)?;
    let vae = File::parse("vae/config.json", &folder.vae)?;
    let latent_channels = vae.number("latent_channels", 4)?;
    let (vae_config, scaling_factor) = vae_config(&vae)?;
    let side_px = unet.number("sample_size", 64)?.saturating_mul(vae_config.factor());
    let config = ModelConfig {
        name: name.to_string(),
        weights_file: String::new(),
        encoder_file: None,
        width_px: side_px,
        height_px: side_px,
        latent_channels,
        context_tokens: text.number("max_position_embeddings", 77)?,
        schedule: schedule::schedule(folder)?,
        scaling_factor,
        text: text_config(&text)?,
        unet: unet_config(&unet, latent_channels)?,
        vae: vae_config,
    };
    config.check()?;
    Ok(config)
}

/// A field, and the only value, as JSON, that is built. It is the default as well.
type Fixed = (&'static str, &'static str);

/// Fields of a U-Net's configuration. A field that is left out has the only value that is built.
const UNET: &[Fixed] = &[
    ("_class_name", r#""UNet2DConditionModel""#),
    ("act_fn", r#""silu""#),
    ("addition_embed_type", "null"),
    ("attention_type", r#""default""#),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("flip_sin_to_cos", "true"),
    ("freq_shift", "0"),
    ("mid_block_only_cross_attention", "null"),
    ("mid_block_scale_factor", "1"),
    ("norm_eps", "1e-5"),
    ("norm_num_groups", "32"),
    ("resnet_out_scale_factor", "1.0"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", r#""default""#),
    ("reverse_transformer_layers_per_block", "null"),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", r#""positional""#),
    ("timestep_post_act", "null"),
    ("transformer_layers_per_block", "1"),
];
/// Fields of a text encoder's configuration.
const TEXT: &[Fixed] = &[("layer_norm_eps", "1e-5"), ("model_type", r#""clip_text_model""#)];
/// Fields of an autoencoder's configuration.
const VAE: &[Fixed] = &[
    ("_class_name", r#""AutoencoderKL""#),
    ("act_fn", r#""silu""#),
    ("latents_mean", "null"),
    ("latents_std", "null"),
    ("mid_block_add_attention", "true"),
    ("norm_num_groups", "32"),
    ("out_channels", "3"),
    ("shift_factor", "null"),
    ("use_post_quant_conv", "true"),
    ("use_quant_conv", "true"),
];

/// An autoencoder, and the factor of its latents. A tiny one has its sizes from its tensors and
/// takes the sampler's latents: the family's autoencoder is described, whose place it takes.
fn vae_config(vae: &File) -> Result<(VaeConfig, f32), String> {
    if vae.get("_class_name") == json!("AutoencoderTiny") {
        let sd15 = super::model("sd15").ok_or_else(|| vae.fault("there is no model sd15"))?;
        return Ok((sd15.vae.clone(), sd15.scaling_factor));
    }
    vae.expect(VAE)?;
    let config = VaeConfig {
        channels: vae.list("block_out_channels", json!([64]), None)?,
        res_blocks: vae.number("layers_per_block", 1)?,
        image_channels: vae.number("in_channels", 3)?,
    };
    Ok((config, vae.read("scaling_factor", json!(0.18215))?))
}

fn text_config(text: &File) -> Result<TextConfig, String> {
    let width = text.number("hidden_size", 512)?;
    let inner = text.number("intermediate_size", 2048)?;
    if inner != 4 * width {
        return Err(text.fault(&format!("intermediate_size is {inner}, not 4 x {width}")));
    }
    let activation: String = text.read("hidden_act", json!("quick_gelu"))?;
    let tower = match activation.as_str() {
        "gelu" => TextTower::OpenClip,
        "quick_gelu" => TextTower::Clip,
        _ => return Err(text.fault(&format!("hidden_act is {activation:?}: gelu or quick_gelu"))),
    };
    Ok(TextConfig {
        tower,
        width,
        heads: text.number("num_attention_heads", 8)?,
        layers: text.number("num_hidden_layers", 12)?,
        vocab: text.number("vocab_size", 49408)?,
    })
}

fn unet_config(unet: &File, latent_channels: usize) -> Result<UnetConfig, String> {
    let channels: Vec<usize> =
        unet.list("block_out_channels", json!([320, 640, 1280, 1280]), None)?;
    let levels = channels.len();
    let res_blocks = unet.list("layers_per_block", json!(2), Some(levels))?;
    if res_blocks.iter().any(|count| *count != res_blocks[0]) {
        return Err(unet.fault(&format!("layers_per_block is {res_blocks:?}, which differ")));
    }
    // Both fields are numbers of heads: https://github.com/huggingface/diffusers/issues/2011.
    let heads = match unet.get("num_attention_heads") {
        Value::Null => "attention_head_dim",
        _ => "num_attention_heads",
    };
    let middle = match unet.map.get("mid_block_type") {
        Some(Value::Null) => false,
        None => true,
        Some(kind) if *kind == "UNetMidBlock2DCrossAttn" => true,
        Some(kind) => return Err(unet.fault(&format!("mid_block_type is {kind}"))),
    };
    let in_channels = unet.number("in_channels", 4)?;
    let Some(condition_channels) = in_channels.checked_sub(latent_channels) else {
        return Err(unet.fault(&format!("in_channels is {in_channels}, fewer than the latent's")));
    };
    let out_channels = unet.number("out_channels", 4)?;
    if out_channels != latent_channels {
        let what = format!("out_channels is {out_channels}, not the latent's {latent_channels}");
        return Err(unet.fault(&what));
    }
    let only_cross: Vec<bool> = match unet.get("only_cross_attention") {
        Value::Bool(true) => return Err(unet.fault("only_cross_attention is true: give a list")),
        Value::Bool(false) | Value::Null => vec![],
        _ => unet.read("only_cross_attention", Value::Null)?,
    };
    let mut up_attention: Vec<usize> = unet.attention("up_block_types", "Up", levels)?;
    up_attention.iter_mut().for_each(|block| *block = levels - 1 - *block);
    up_attention.reverse();
    Ok(UnetConfig {
        res_blocks: res_blocks[0],
        heads: unet.list(heads, json!(8), Some(levels))?,
        linear_projection: unet.read("use_linear_projection", json!(false))?,
        down_attention: unet.attention("down_block_types", "Down", levels)?,
        middle,
        up_attention,
        only_cross_attention: (0..levels).filter(|l| only_cross.get(*l) == Some(&true)).collect(),
        context_width: unet.number("cross_attention_dim", 1280)?,
        condition_channels,
        guidance_width: unet.read("time_cond_proj_dim", Value::Null)?,
        classes: unet.read("num_class_embeds", Value::Null)?,
        channels,
    })
}

/// A configuration.
struct File {
    path: &'static str,
    map: Map<String, Value>,
}

impl File {
    fn parse(path: &'static str, text: &str) -> Result<File, String> {
        let map = serde_json::from_str(text);
        Ok(File { path, map: map.map_err(|e| format!("{path}: no JSON object: {e}"))? })
    }

    fn fault(&self, what: &str) -> String {
        format!("{}: {what}", self.path)
    }

    /// A field. A missing one is null.
    fn get(&self, field: &str) -> Value {
        self.map.get(field).cloned().unwrap_or(Value::Null)
    }

    /// Checks that fields that are there have the only values that are built.
    fn expect(&self, fixed: &[Fixed]) -> Result<(), String> {
        for (field, expected) in fixed {
            let expected: Value = serde_json::from_str(expected).expect("the tables hold JSON");
            let Some(found) = self.map.get(*field) else { continue };
            let equal = match (found.as_f64(), expected.as_f64()) {
                (Some(found), Some(expected)) => found == expected,
                _ => *found == expected,
            };
            if !equal {
                let what = format!("{field} is {found}, but Kiln compiles only {expected}");
                return Err(self.fault(&what));
            }
        }
        Ok(())
    }

    /// A field in a type. `default` is the value of a field that is missing or null.
    fn read<T: for<'a> Deserialize<'a>>(&self, field: &str, default: Value) -> Result<T, String> {
        let value = match self.get(field) {
            Value::Null => default,
            value => value,
        };
        let text = value.to_string();
        serde_json::from_value(value)
            .map_err(|_| self.fault(&format!("{field} is {text}, which is not understood")))
    }

    /// The meaning of a field with one of some texts.
    fn one_of<T: Copy>(
        &self,
        field: &str,
        default: &str,
        known: &[(&str, T)],
    ) -> Result<T, String> {
        let found: String = self.read(field, json!(default))?;
        let meaning = known.iter().find(|(text, _)| *text == found);
        meaning.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let texts: Vec<_> = known.iter().map(|(text, _)| *text).collect();
            self.fault(&format!("{field} is {found:?}: {}", texts.join(" or ")))
        })
    }

    fn number(&self, field: &str, default: usize) -> Result<usize, String> {
        self.read(field, json!(default))
    }

    /// A list of sizes. One size stands for `repeat` equal ones.
    fn list(
        &self,
        field: &str,
        default: Value,
        repeat: Option<usize>,
    ) -> Result<Vec<usize>, String> {
        match (self.read(field, default)?, repeat) {
            (Value::Number(one), Some(count)) => {
                let text = one.to_string();
                let one = one.as_u64().and_then(|one| usize::try_from(one).ok());
                let one = one.ok_or_else(|| self.fault(&format!("{field} is {text}")))?;
                Ok(vec![one; count])
            }
            (list, _) => {
                let text = list.to_string();
                let read: Result<Vec<usize>, _> = serde_json::from_value(list);
                let fits =
                    read.ok().filter(|l| !l.is_empty() && repeat.is_none_or(|n| l.len() == n));
                fits.ok_or_else(|| self.fault(&format!("{field} is {text}, which does not fit")))
            }
        }
    }

    /// Blocks that attend, by their number in a list of `levels` types of blocks.
    fn attention(&self, field: &str, way: &str, levels: usize) -> Result<Vec<usize>, String> {
        let mut default = vec![format!("CrossAttn{way}Block2D"); 3];
        default.insert(if way == "Up" { 0 } else { 3 }, format!("{way}Block2D"));
        let types: Vec<String> = self.read(field, json!(default))?;
        if types.len() != levels {
            return Err(self.fault(&format!("{field} has {} entries for {levels}", types.len())));
        }
        let mut attending = vec![];
        for (block, kind) in types.iter().enumerate() {
            if *kind == format!("CrossAttn{way}Block2D") {
                attending.push(block);
            } else if *kind != format!("{way}Block2D") {
                return Err(self.fault(&format!("{field}: {kind} is not built")));
            }
        }
        Ok(attending)
    }
}
