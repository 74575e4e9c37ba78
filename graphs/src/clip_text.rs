//! Text encoders: the text towers of OpenCLIP and of CLIP.

use crate::blocks::{Layers, causal_attention, feed_forward, merged_causal_attention};
use crate::config::{ModelConfig, TextTower};
use kiln_ir::ops::embedding::Embedding;
use kiln_ir::ops::pointwise::{Gelu, QuickGelu};
use kiln_ir::{DType, Graph, IrError, TensorType, ValueId};

/// The text encoder for a batch of prompts.
///
/// Inputs: `tokens: i32 [batch, context_tokens]`. Output: `embedding: [batch, context_tokens, C]`,
/// after the final norm.
/// Source: Cherti et al. 2022 (arXiv:2212.07143), ViT-H/14; `FrozenOpenCLIPEmbedder` with
/// `layer="penultimate"`. Radford et al. 2021 (arXiv:2103.00020), ViT-L/14; `FrozenCLIPEmbedder`
/// with `layer="last"`.
pub fn text_encoder(config: &ModelConfig, batch: usize) -> Result<Graph, IrError> {
    let text = &config.text;
    let keys = Keys::of(text.tower);
    let mut net = Layers::new("text_encoder", keys.prefix);
    let ids = TensorType::new(DType::I32, &[batch, config.context_tokens]);
    let tokens = net.input("tokens", ids);
    let table = net.tensor(keys.tokens, &[text.vocab, text.width]);
    let x = net.graph.push("token_embedding", Embedding, &[tokens, table])?;
    let positions = net.tensor(keys.positions, &[config.context_tokens, text.width]);
    let mut x = net.add("add_positions", x, positions)?;
    for i in 0..text.layers {
        let path = format!("{}.{i}", keys.blocks);
        x = match text.tower {
            TextTower::OpenClip => open_clip_block(&mut net, &path, x, text.heads)?,
            TextTower::Clip => clip_block(&mut net, &path, x, text.heads)?,
        };
    }
    let x = net.layer_norm(keys.final_norm, x)?;
    Ok(net.finish("embedding", x))
}

/// Names of the layers outside of blocks.
struct Keys {
    prefix: &'static str,
    tokens: &'static str,
    positions: &'static str,
    blocks: &'static str,
    final_norm: &'static str,
}

impl Keys {
    fn of(tower: TextTower) -> Keys {
        match tower {
            TextTower::OpenClip => Keys {
                prefix: "cond_stage_model.model.",
                tokens: "token_embedding.weight",
                positions: "positional_embedding",
                blocks: "transformer.resblocks",
                final_norm: "ln_final",
            },
            TextTower::Clip => Keys {
                prefix: "cond_stage_model.transformer.text_model.",
                tokens: "embeddings.token_embedding.weight",
                positions: "embeddings.position_embedding.weight",
                blocks: "encoder.layers",
                final_norm: "final_layer_norm",
            },
        }
    }
}

/// `ResidualAttentionBlock` of OpenCLIP.
fn open_clip_block(
    net: &mut Layers,
    path: &str,
    x: ValueId,
    heads: usize,
) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.layer_norm(&at("ln_1"), x)?;
    let h = merged_causal_attention(net, &at("attn"), h, heads)?;
    let x = net.add(&at("attn.add_residual"), h, x)?;
    let h = net.layer_norm(&at("ln_2"), x)?;
    let h = feed_forward(net, &at("mlp"), ["c_fc", "c_proj"], Gelu, h)?;
    net.add(&at("mlp.add_residual"), h, x)
}

/// `CLIPEncoderLayer` of transformers.
fn clip_block(net: &mut Layers, path: &str, x: ValueId, heads: usize) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.layer_norm(&at("layer_norm1"), x)?;
    let h = causal_attention(net, &at("self_attn"), h, heads)?;
    let x = net.add(&at("self_attn.add_residual"), h, x)?;
    let h = net.layer_norm(&at("layer_norm2"), x)?;
    let h = feed_forward(net, &at("mlp"), ["fc1", "fc2"], QuickGelu, h)?;
    net.add(&at("mlp.add_residual"), h, x)
}
