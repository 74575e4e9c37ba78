//! Arithmetic and parameters of the full-size networks, against the reference's own figures.

use kiln_graphs::{ModelConfig, model, models, text_encoder, unet, vae_decoder, vae_encoder};
use kiln_ir::{Graph, NodeKind, ValueId, WeightExpr, verify};

fn assert_within_percent(what: &str, found: u64, expected: f64) {
    let difference = (found as f64 / expected - 1.0).abs();
    assert!(difference < 0.01, "{what}: {found}, expected {expected}");
}

fn sd21_base() -> &'static ModelConfig {
    model("sd21-base").unwrap()
}

fn flops(graph: &Graph, id: ValueId) -> u64 {
    let inputs = graph.operands(id);
    let types: Vec<_> = inputs.iter().map(|i| graph.ty(*i)).collect();
    graph.node(id).op().unwrap().flops(&types, graph.ty(id))
}

/// Arithmetic of convolutions (1x1 included), linear layers and attention.
fn contractions(graph: &Graph) -> [u64; 3] {
    let mut sums = [0; 3];
    for id in graph.ids() {
        let class = match graph.node(id).op().map(|op| op.name()) {
            Some("conv2d") => 0,
            Some("matmul") => usize::from(stored_rank(graph, graph.operands(id)[1]) == 2),
            Some("attention") => 2,
            _ => continue,
        };
        sums[class] += flops(graph, id);
    }
    sums
}

/// Number of axes that a constant has in the checkpoint.
fn stored_rank(graph: &Graph, id: ValueId) -> usize {
    match &graph.node(id).kind {
        NodeKind::Weight(WeightExpr::Tensor { shape, .. }) => shape.len(),
        other => panic!("{other:?} is not a tensor of the checkpoint"),
    }
}

fn parameters(graph: &Graph) -> u64 {
    let weights = graph.ids().filter(|i| graph.node(*i).is_weight());
    weights.map(|i| graph.ty(i).elem_count() as u64).sum()
}

#[test]
fn every_graph_of_every_model_builds_and_verifies() {
    for config in models() {
        let graphs = [
            text_encoder(config, 2),
            unet(config, 1),
            unet(config, 2),
            vae_decoder(config),
            vae_encoder(config),
        ];
        for graph in graphs {
            let graph = graph.unwrap_or_else(|e| panic!("{}: {e}", config.name));
            verify(&graph).unwrap_or_else(|e| panic!("{}: {e}", config.name));
        }
    }
}

#[test]
fn unet_has_the_arithmetic_of_the_reference() {
    let [conv, linear, attention] = contractions(&unet(sd21_base(), 1).unwrap());
    assert_within_percent("convolutions", conv, 418e9);
    assert_within_percent("linear layers", linear, 260e9);
    assert_within_percent("attention", attention, 126e9);
    assert_within_percent("all", conv + linear + attention, 804.3e9);
}

#[test]
fn decoder_and_text_encoder_have_the_arithmetic_of_the_reference() {
    let decoder = contractions(&vae_decoder(sd21_base()).unwrap());
    assert_within_percent("decoder", decoder.iter().sum(), 2514.5e9);
    let text = contractions(&text_encoder(sd21_base(), 1).unwrap());
    assert_within_percent("text encoder", text.iter().sum(), 45.2e9);
}

#[test]
fn a_batch_of_two_takes_twice_the_arithmetic() {
    let [one, two] = [1, 2].map(|batch| contractions(&unet(sd21_base(), batch).unwrap()));
    // The timestep's projections are shared by the batch.
    assert_eq!(two[0], 2 * one[0]);
    assert_eq!(two[2], 2 * one[2]);
    assert_within_percent("linear layers", two[1], 2.0 * one[1] as f64);
}

#[test]
fn parameters_are_those_of_the_reference() {
    assert_eq!(parameters(&unet(sd21_base(), 1).unwrap()), 865_910_724);
    assert_eq!(parameters(&vae_decoder(sd21_base()).unwrap()), 49_490_199);
    assert_eq!(parameters(&vae_encoder(sd21_base()).unwrap()), 34_163_664);
    let emoji = model("emoji-256").unwrap();
    assert_eq!(parameters(&vae_encoder(emoji).unwrap()), 2_148_144);
    assert_eq!(parameters(&unet(emoji, 1).unwrap()), 22_287_172);
    assert_eq!(parameters(&text_encoder(emoji, 1).unwrap()), 11_725_824);
    assert_eq!(parameters(&vae_decoder(emoji).unwrap()), 3_104_343);
}
