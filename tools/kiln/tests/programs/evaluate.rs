//! Evaluation by the ops' references, exactly or with the rounding of a device.
//!
//! A bound on the difference between two ways to compute a network follows from the network itself:
//! it is evaluated once more with noise of the size of each op's rounding errors. What the noise
//! does to the result, some times over, is what rounding may do (Monte Carlo arithmetic, Parker
//! 1997).

use kiln_ir::{Graph, NodeKind, Op, Tensor, ValueId, reference};
use std::collections::HashMap;

use crate::values::{Checkpoint, Inputs};

/// How numbers are stored and added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// Values in FP32, sums in FP64: that of the reference.
    Reference,
    /// Values in FP32.
    Fp32,
    /// Weights and values in FP16, sums in FP32.
    Fp16,
    /// Weights in INT8 or FP16, values in FP16, sums in FP32.
    Int8,
}

/// Results that the noise of rounding may be off by, over what it was off by once.
const MARGIN: f64 = 3.0;
/// Of the device's own arithmetic beside sums: exponentials, divisions.
const FLOOR: f64 = 2e-6;
/// Standard deviations of the sums of a device over one rounding times the root of the length of a
/// sum: transforms of Winograd's convolutions add up numbers some times as large as the result.
const SUM_FACTOR: f64 = 2.0;

impl Arithmetic {
    /// Relative error of a stored value.
    fn rounding(self) -> f64 {
        match self {
            Arithmetic::Reference | Arithmetic::Fp32 => 2f64.powi(-24),
            Arithmetic::Fp16 | Arithmetic::Int8 => 2f64.powi(-11),
        }
    }

    /// Relative L2 error of a stored matrix: half a step of 1/127 of the largest of uniform values.
    fn weight_error(self) -> f64 {
        match self {
            Arithmetic::Reference | Arithmetic::Fp32 => 0.0,
            Arithmetic::Fp16 => 2f64.powi(-12),
            Arithmetic::Int8 => 1.0e-2,
        }
    }
}

/// The outputs of a graph by name.
pub fn exact(graph: &Graph, inputs: &Inputs, checkpoint: &Checkpoint) -> Inputs {
    let source = |key: &str| Ok(checkpoint.get(key).clone());
    let outputs = reference::evaluate(graph, inputs, &source);
    outputs.expect("a verified graph evaluates").into_iter().collect()
}

/// The outputs of a graph, and how far rounding may take each of them (relative L2 error).
pub fn with_bounds(
    graph: &Graph,
    inputs: &Inputs,
    checkpoint: &Checkpoint,
    arithmetic: Arithmetic,
) -> HashMap<String, (Tensor, f64)> {
    let mut noisy = noisy(graph, inputs, checkpoint, arithmetic);
    let with_bound = |(name, exact): (String, Tensor)| {
        let noisy = noisy.remove(&name).expect("both have all outputs");
        let bound = bound(&noisy.data, &exact.data);
        (name, (exact, bound))
    };
    exact(graph, inputs, checkpoint).into_iter().map(with_bound).collect()
}

/// How far rounding may take a result, from one that noise was added to.
pub fn bound(noisy: &[f32], exact: &[f32]) -> f64 {
    FLOOR + MARGIN * relative_l2(noisy, exact)
}

/// The outputs of a graph with noise of the size of rounding errors.
pub fn noisy(
    graph: &Graph,
    inputs: &Inputs,
    checkpoint: &Checkpoint,
    arithmetic: Arithmetic,
) -> Inputs {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    let source = |key: &str| Ok(checkpoint.get(key).clone());
    for id in graph.topological().expect("a verified graph has no cycle") {
        let node = graph.node(id);
        let value = match &node.kind {
            NodeKind::Input => inputs[&node.name].clone(),
            NodeKind::Weight(expr) => {
                let mut value = reference::weight(expr, &node.ty, &source).expect("it is given");
                if node.ty.shape.len() > 1 {
                    perturb(&mut value, arithmetic.weight_error(), &mut rng);
                }
                value
            }
            NodeKind::Op(op) => {
                let operands = graph.operands(id);
                let operands: Vec<&Tensor> = operands.iter().map(|v| &values[v]).collect();
                let mut value = op.eval(&operands);
                perturb(&mut value, op_error(graph, id, op, arithmetic), &mut rng);
                value
            }
        };
        values.insert(id, value);
    }
    graph.outputs().iter().map(|(name, id)| (name.clone(), values[id].clone())).collect()
}

/// Error of an op's result over its root mean square.
fn op_error(graph: &Graph, id: ValueId, op: &Op, arithmetic: Arithmetic) -> f64 {
    let operands = graph.operands(id);
    let types: Vec<_> = operands.iter().map(|v| graph.ty(*v)).collect();
    let output = graph.ty(id);
    if operands.iter().all(|v| graph.node(*v).is_weight()) {
        return 2f64.powi(-24);
    }
    let terms = op.flops(&types, output) as f64 / (2 * output.elem_count()) as f64;
    let long = terms > 8.0 && arithmetic != Arithmetic::Reference;
    let sum = if long { SUM_FACTOR * 2f64.powi(-24) * terms.sqrt() } else { 0.0 };
    arithmetic.rounding() + sum
}

/// Adds noise of a standard deviation of so much of the values' root mean square.
fn perturb(tensor: &mut Tensor, relative: f64, rng: &mut fastrand::Rng) {
    let squares: f64 = tensor.data.iter().map(|v| f64::from(*v).powi(2)).sum();
    let size = relative * (squares / tensor.data.len().max(1) as f64).sqrt() * 3f64.sqrt();
    if size > 0.0 {
        tensor.data.iter_mut().for_each(|v| *v += (size * (2.0 * rng.f64() - 1.0)) as f32);
    }
}

/// ||found - expected|| / ||expected||; infinite where a number is not finite.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "element count");
    let error: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
    let relative = (error / norm.max(1e-30)).sqrt();
    if relative.is_finite() { relative } else { f64::INFINITY }
}
