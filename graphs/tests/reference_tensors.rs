//! The networks of the shipped model, evaluated by the ops' references, compared with tensors that
//! another implementation made from the same weights in f32.

mod stored;

use kiln_graphs::{ModelConfig, model, text_encoder, unet, vae_decoder, vae_encoder};
use kiln_ir::{Graph, Tensor, reference};

/// Both sides accumulate in f32 or better and differ only in the order of sums.
const TOLERANCE: f64 = 1e-6;

fn config() -> &'static ModelConfig {
    model("emoji-256").unwrap()
}

/// Evaluates a graph of one output on the shipped weights.
fn evaluate(graph: &Graph, inputs: &[(&str, Tensor)]) -> Tensor {
    let inputs = inputs.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    let outputs = reference::evaluate(graph, &inputs, &stored::weight).unwrap();
    let [(_, value)] = <[_; 1]>::try_from(outputs).unwrap();
    value
}

/// Values of batch one, joined into one value.
fn batch(parts: &[Tensor]) -> Tensor {
    let mut shape = parts[0].shape.clone();
    shape[0] = parts.len();
    Tensor::new(&shape, parts.iter().flat_map(|p| p.data.iter().copied()).collect())
}

fn assert_close(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.shape, expected.shape, "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let pairs = found.data.iter().zip(&expected.data);
    let difference = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let error = difference / norm(&mut expected.data.iter().map(|v| f64::from(*v)));
    println!("{what}: relative L2 error {error:.1e}");
    assert!(error <= TOLERANCE, "{what}: relative L2 error {error}");
}

#[test]
fn text_encoder_agrees() {
    let prompts = ["0", "1", "uncond"];
    let tokens = batch(&prompts.map(|p| stored::ids(&format!("{p}-ids"))));
    let expected = batch(&prompts.map(|p| stored::rows(&format!("{p}-text"))));
    let graph = text_encoder(config(), prompts.len()).unwrap();
    assert_close("text", &evaluate(&graph, &[("tokens", tokens)]), &expected);
}

#[test]
fn unet_agrees() {
    let latent = stored::picture("0-init");
    let inputs = [
        ("latent", batch(&[latent.clone(), latent])),
        ("timestep", Tensor::new(&[1], vec![951.0])),
        ("context", batch(&["uncond-text", "0-text"].map(stored::rows))),
    ];
    let expected = ["0-eps-uncond", "0-eps-cond"].map(stored::picture);
    let found = evaluate(&unet(config(), 2).unwrap(), &inputs);
    assert_close("eps of prompt 0", &found, &batch(&expected));
}

#[test]
fn decoder_agrees() {
    let graph = vae_decoder(config()).unwrap();
    let found = evaluate(&graph, &[("latent", stored::picture("1-latents-20"))]);
    assert_close("image of prompt 1", &found, &stored::picture("1-image"));
}

#[test]
fn encoder_agrees() {
    let graph = vae_encoder(config()).unwrap();
    let found = evaluate(&graph, &[("image", stored::picture("1-image"))]);
    assert_close("mean of picture 1", &found, &stored::picture("1-mean"));
}
