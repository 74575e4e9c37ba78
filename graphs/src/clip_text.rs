//! Text encoder: the text tower of OpenCLIP up to the penultimate block, then its final norm.

use crate::ModelConfig;
use crate::blocks::{Layers, causal_attention, gelu_feed_forward};
use kiln_ir::ops::embedding::Embedding;
use kiln_ir::{DType, Graph, IrError, TensorType, ValueId};

/// The text encoder for a batch of prompts.
///
/// Inputs: `tokens: i32 [batch, context_tokens]`. Output: `embedding: [batch, context_tokens, C]`.
/// Source: Cherti et al. 2022 (arXiv:2212.07143), ViT-H/14; `FrozenOpenCLIPEmbedder` with
/// `layer="penultimate"`.
pub fn text_encoder(config: &ModelConfig, batch: usize) -> Result<Graph, IrError> {
    let text = &config.text;
    let mut net = Layers::new("text_encoder", "cond_stage_model.model.");
    let ids = TensorType::new(DType::I32, &[batch, config.context_tokens]);
    let tokens = net.input("tokens", ids);
    let table = net.tensor("token_embedding.weight", &[text.vocab, text.width]);
    let x = net.graph.push("token_embedding", Embedding, &[tokens, table])?;
    let positions = net.tensor("positional_embedding", &[config.context_tokens, text.width]);
    let mut x = net.add("add_positions", x, positions)?;
    for i in 0..text.layers {
        x = block(&mut net, &format!("transformer.resblocks.{i}"), x, text.heads)?;
    }
    let x = net.layer_norm("ln_final", x)?;
    Ok(net.finish("embedding", x))
}

/// `ResidualAttentionBlock`.
fn block(net: &mut Layers, path: &str, x: ValueId, heads: usize) -> Result<ValueId, IrError> {
    let at = |leaf: &str| format!("{path}.{leaf}");
    let h = net.layer_norm(&at("ln_1"), x)?;
    let h = causal_attention(net, &at("attn"), h, heads)?;
    let x = net.add(&at("attn.add_residual"), h, x)?;
    let h = net.layer_norm(&at("ln_2"), x)?;
    let h = gelu_feed_forward(net, &at("mlp"), h)?;
    net.add(&at("mlp.add_residual"), h, x)
}
