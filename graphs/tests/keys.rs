//! The tensors that graphs read, compared with the published checkpoint's list.

use kiln_graphs::{model, text_encoder, unet, vae_decoder, vae_encoder};
use kiln_ir::{IrError, NodeKind};
use std::collections::{BTreeMap, BTreeSet};

type Tensors = BTreeMap<String, Vec<usize>>;

/// Every tensor of `v2-1_512-ema-pruned.safetensors` with its shape.
fn published() -> Tensors {
    serde_json::from_str(include_str!("data/sd21_tensors.json")).unwrap()
}

/// Every tensor that the four graphs read.
fn required(name: &str) -> Result<Tensors, IrError> {
    let config = model(name).unwrap();
    let mut tensors = Tensors::new();
    let pictures = [vae_decoder(config)?, vae_encoder(config)?];
    for graph in [text_encoder(config, 1)?, unet(config, 1)?].into_iter().chain(pictures) {
        for id in graph.ids() {
            if let NodeKind::Weight(expr) = &graph.node(id).kind {
                for (key, shape) in expr.tensors() {
                    let before = tensors.insert(key.to_string(), shape.to_vec());
                    assert_eq!(before, None, "{key} is read by one constant only");
                }
            }
        }
    }
    Ok(tensors)
}

/// Reason why text-to-image does not read a tensor of the checkpoint; `None` if it should read it.
fn reason_unused(key: &str) -> Option<&'static str> {
    const REASONS: [(&str, &str); 3] = [
        ("cond_stage_model.model.transformer.resblocks.23.", "after the penultimate block"),
        ("cond_stage_model.model.text_projection", "after the penultimate block"),
        ("cond_stage_model.model.logit_scale", "training"),
    ];
    let by_prefix = REASONS.iter().find(|(prefix, _)| key.starts_with(prefix)).map(|(_, r)| *r);
    by_prefix.or((!key.contains('.')).then_some("noise schedule"))
}

#[test]
fn every_tensor_read_is_published_in_that_shape() {
    let published = published();
    for name in ["sd21-base", "sd21"] {
        for (key, shape) in required(name).unwrap() {
            assert_eq!(published.get(&key), Some(&shape), "{name}: {key}");
        }
    }
}

#[test]
fn every_tensor_not_read_has_a_reason() {
    let required = required("sd21-base").unwrap();
    let mut reasons = BTreeSet::new();
    for key in published().keys().filter(|k| !required.contains_key(*k)) {
        reasons.insert(reason_unused(key).unwrap_or_else(|| panic!("{key} is not read")));
    }
    let expected = ["after the penultimate block", "noise schedule", "training"];
    assert_eq!(reasons, BTreeSet::from(expected));
}
