//! Passes change the place of a computation, never its result.

use kiln_compiler::passes::{self, hoist::hoist, unfuse_norm};
use kiln_graphs::config::{ModelConfig, model};
use kiln_ir::{DType, Graph, NodeKind, Op, Tensor, reference, verify};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A model with the same structure, small enough to evaluate quickly.
fn tiny() -> ModelConfig {
    let emoji = model("emoji-256").expect("it ships");
    let mut config = emoji.clone();
    (config.width_px, config.height_px) = (64, 64);
    config
}

/// Deterministic values in [-1, 1), derived from a name.
fn values(name: &str, count: usize, gain: f32) -> Vec<f32> {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let mut rng = fastrand::Rng::with_seed(hasher.finish());
    (0..count).map(|_| (2.0 * rng.f32() - 1.0) * gain).collect()
}

fn checkpoint(graphs: &[&Graph]) -> HashMap<String, Tensor> {
    let mut tensors = HashMap::new();
    for graph in graphs {
        for id in graph.ids() {
            let NodeKind::Weight(expr) = &graph.node(id).kind else { continue };
            for (key, shape) in expr.tensors() {
                let fan_in: usize = shape[1..].iter().product();
                let gain = if shape.len() > 1 { (3.0 / fan_in as f32).sqrt() } else { 0.5 };
                let count = shape.iter().product();
                tensors
                    .entry(key.to_string())
                    .or_insert_with(|| Tensor::new(shape, values(key, count, gain)));
            }
        }
    }
    tensors
}

fn inputs(graph: &Graph) -> HashMap<String, Tensor> {
    graph
        .inputs()
        .into_iter()
        .map(|id| {
            let node = graph.node(id);
            let count = node.ty.elem_count();
            let data = match node.name.as_str() {
                "timestep" => vec![501.0; count],
                "tokens" => (0..count).map(|i| (i * 37 % 1000) as f32).collect(),
                name => values(name, count, 1.7),
            };
            (node.name.clone(), Tensor::new(&node.ty.shape, data))
        })
        .collect()
}

fn evaluate(
    graph: &Graph,
    inputs: &HashMap<String, Tensor>,
    tensors: &HashMap<String, Tensor>,
) -> HashMap<String, Tensor> {
    reference::evaluate(graph, inputs, &|key| Ok(tensors[key].clone()))
        .expect("the graph is well formed")
        .into_iter()
        .collect()
}

fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.shape, b.shape);
    let square = |x: f64| x * x;
    let error: f64 = a.data.iter().zip(&b.data).map(|(x, y)| square(f64::from(x - y))).sum();
    let norm: f64 = b.data.iter().map(|y| square(f64::from(*y))).sum();
    (error / norm).sqrt()
}

fn count(graph: &Graph, what: impl Fn(&Op) -> bool) -> usize {
    graph.ids().filter(|id| graph.node(*id).op().is_some_and(&what)).count()
}

#[test]
fn passes_preserve_the_unet() {
    let config = tiny();
    let plain = kiln_graphs::unet(&config, 2).expect("builds");
    let tensors = checkpoint(&[&plain]);
    let given = inputs(&plain);
    let expected = evaluate(&plain, &given, &tensors);

    let mut fused = plain.clone();
    passes::optimize(&mut fused).expect("passes hold");
    let found = evaluate(&fused, &given, &tensors);
    // Only the order of sums changes: a few units in the last place over about fifty layers.
    let error = relative_l2(&found["eps"], &expected["eps"]);
    assert!(error < 2e-5, "after the passes: {error:e}");

    let parts = hoist(&fused, 3).expect("splits");
    let mut given = given;
    let prompt = parts.prompt.expect("keys and values depend on the prompt alone");
    let timestep = parts.timestep.expect("the embedding depends on the timestep alone");
    given.extend(evaluate(&prompt, &given, &tensors));
    let times = Tensor::new(&[3], vec![1.0, 501.0, 981.0]);
    let rows = evaluate(&timestep, &HashMap::from([("timestep".to_string(), times)]), &tensors);
    for (name, table) in rows {
        let row = Tensor::new(&[1, table.channels()], table.row(1).to_vec());
        given.insert(name, row);
    }
    let found = evaluate(&parts.step, &given, &tensors);
    let error = relative_l2(&found["eps"], &expected["eps"]);
    assert!(error < 2e-5, "after hoisting: {error:e}");
}

#[test]
fn passes_preserve_text_encoder_and_decoder() {
    let config = tiny();
    for plain in [
        kiln_graphs::text_encoder(&config, 2).expect("builds"),
        kiln_graphs::vae_decoder(&config).expect("builds"),
    ] {
        let tensors = checkpoint(&[&plain]);
        let given = inputs(&plain);
        let mut fused = plain.clone();
        passes::optimize(&mut fused).expect("passes hold");
        let (expected, found) =
            (evaluate(&plain, &given, &tensors), evaluate(&fused, &given, &tensors));
        for (name, value) in &expected {
            let error = relative_l2(&found[name], value);
            assert!(error < 2e-5, "{} {name}: {error:e}", plain.name);
        }
    }
}

#[test]
fn passes_leave_nothing_behind_that_they_fuse() {
    let config = model("sd21-base").expect("it is known");
    let mut unet = kiln_graphs::unet(config, 2).expect("builds");
    passes::optimize(&mut unet).expect("passes hold");
    let left = |name: &str| count(&unet, |op| op.name() == name);
    for name in ["silu", "gelu", "geglu", "upsample", "add", "mul", "scale", "concat", "slice"] {
        assert_eq!(left(name), 0, "{name} is left in the U-Net");
    }
    // Only the 16 transformers' normalizations are left, which linear layers read.
    assert_eq!(left("group_norm"), 16, "normalizations that convolutions could do themselves");
    // One timestep projection for all 22 residual blocks. Three contractions, instead of six (q, k,
    // v twice), for the attentions of each of 16 transformers.
    let parts = hoist(&unet, 64).expect("splits");
    let timestep = parts.timestep.expect("the embedding depends on the timestep alone");
    assert_eq!(timestep.outputs().len(), 1);
    assert_eq!(timestep.ty(timestep.outputs()[0].1).shape, [64, 20160]);
    let prompt = parts.prompt.expect("keys and values depend on the prompt alone");
    assert_eq!(prompt.outputs().len(), 16);
    assert_eq!(count(&prompt, |op| op.name() == "matmul"), 16);
}

#[test]
fn unfused_normalizations_preserve_the_unet() {
    let mut fused = kiln_graphs::unet(&tiny(), 2).expect("builds");
    let tensors = checkpoint(&[&fused]);
    let given = inputs(&fused);
    passes::optimize(&mut fused).expect("passes hold");
    let expected = evaluate(&fused, &given, &tensors);
    let norms = |graph: &Graph| count(graph, |op| matches!(op, Op::GroupNorm(_)));
    let affines = |graph: &Graph| count(graph, |op| matches!(op, Op::GroupAffine(_)));

    let mut same = fused.clone();
    assert_eq!(unfuse_norm::unfuse(&mut same, |_, _, _| false).expect("runs"), 0);
    assert_eq!(affines(&same), affines(&fused));

    let mut parted = fused.clone();
    let parts = unfuse_norm::unfuse(&mut parted, |_, _, _| true).expect("runs");
    verify::verify(&parted).expect("the graph is well formed");
    assert!(parts > 0);
    assert_eq!(norms(&parted), norms(&fused) + parts);
    assert_eq!(affines(&parted), affines(&fused) - parts);
    let found = evaluate(&parted, &given, &tensors);
    for (name, expected) in &expected {
        // Rounding of a scale and a shift instead of a mean and a factor, once for each
        // normalization.
        let error = relative_l2(&found[name], expected);
        assert!(error < 2e-5, "{name}: {error:e}");
    }
}

#[test]
fn networks_in_fp16_meet_in_the_same_types() {
    let mut unet = kiln_graphs::unet(&tiny(), 2).expect("builds");
    passes::optimize(&mut unet).expect("passes hold");
    passes::fp16_activations::run(&mut unet).expect("every value has a storage type");
    let parts = hoist(&unet, 3).expect("splits");
    let before = [parts.prompt, parts.timestep].map(|part| part.expect("something is hoisted"));
    for part in before.iter().chain([&parts.step]) {
        verify::verify(part).expect("a float may be stored as another");
    }
    let dtype = |graph: &Graph, id| graph.ty(id).dtype;
    let step = &parts.step;
    for id in step.inputs() {
        let name = &step.node(id).name;
        let made = before.iter().flat_map(|p| p.outputs().iter().map(move |(n, v)| (p, n, v)));
        match { made }.find(|(_, output, _)| *output == name) {
            Some((part, _, value)) => {
                assert_eq!(dtype(part, *value), DType::F16, "{name}");
                assert_eq!(dtype(step, id), DType::F16, "{name}");
            }
            None => assert_eq!(dtype(step, id), DType::F32, "{name} comes from the host"),
        }
    }
    assert_eq!(dtype(step, step.outputs()[0].1), DType::F32, "the host reads eps");
    let computed = step.ids().filter(|id| step.node(*id).op().is_some() && !step.is_output(*id));
    for id in computed {
        if matches!(step.node(id).op(), Some(Op::GroupAffine(_))) {
            assert_eq!(dtype(step, id), DType::F32, "scales and shifts stay whole");
            continue;
        }
        assert_eq!(dtype(step, id), DType::F16, "{}", step.node(id).name);
    }
}

/// The largest feature maps of the decoder are inside chains, and the result is the same as without
/// chains.
#[test]
fn chains_preserve_the_decoder_and_drop_its_largest_pictures() {
    let mut fused = kiln_graphs::vae_decoder(&tiny()).expect("builds");
    let tensors = checkpoint(&[&fused]);
    let given = inputs(&fused);
    passes::optimize(&mut fused).expect("passes hold");
    let largest = |graph: &Graph| {
        let ops = graph.ids().filter(|id| graph.node(*id).op().is_some());
        ops.map(|id| graph.ty(id).elem_count()).max().expect("there are ops")
    };
    let before = largest(&fused);
    let expected = evaluate(&fused, &given, &tensors);
    let changes = passes::chain::run(&mut fused).expect("chains");
    verify::verify(&fused).expect("chains verify");
    assert!(changes >= 4, "{changes} pictures");
    assert!(2 * largest(&fused) <= before, "{} of {before} elements", largest(&fused));
    let found = evaluate(&fused, &given, &tensors);
    // The same sums in the same order.
    assert_eq!(found["image"].data, expected["image"].data);
}
