//! Evaluation of whole graphs with the ops' references, for tests of passes and devices.

use crate::{Graph, IrError, NodeKind, Op, Tensor, TensorType, ValueId, WeightExpr};
use std::collections::HashMap;
use std::error::Error;

/// Source of checkpoint tensors: key to tensor.
pub type Source<'a> = dyn Fn(&str) -> Result<Tensor, Box<dyn Error + Send + Sync>> + 'a;

/// Evaluates a graph and returns its outputs by name, in the graph's order.
///
/// A value is freed after its last use, so that large networks fit into memory. Constants are made
/// on first use.
///
/// Errors: an input is missing or has another shape; a checkpoint tensor is missing or has another
/// element count; the graph has a cycle. Errors name the node.
pub fn evaluate(
    graph: &Graph,
    inputs: &HashMap<String, Tensor>,
    source: &Source,
) -> Result<Vec<(String, Tensor)>, IrError> {
    let mut uses: HashMap<ValueId, usize> = HashMap::new();
    let reads = graph.ids().flat_map(|id| graph.operands(id));
    for value in reads.chain(graph.outputs().iter().map(|(_, value)| *value)) {
        *uses.entry(value).or_default() += 1;
    }
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    for id in needed(graph)? {
        let node = graph.node(id);
        let NodeKind::Op(op) = &node.kind else {
            continue;
        };
        let operands = graph.operands(id);
        for operand in &operands {
            if !values.contains_key(operand) {
                values.insert(*operand, leaf(graph, *operand, inputs, source)?);
            }
        }
        let tensors: Vec<&Tensor> = operands.iter().map(|v| &values[v]).collect();
        let result = apply(op, &tensors, &node.ty, &node.name)?;
        for operand in operands {
            release(&mut uses, &mut values, operand);
        }
        values.insert(id, result);
    }
    let output = |(name, value): &(String, ValueId)| {
        let tensor = match values.get(value) {
            Some(tensor) => tensor.clone(),
            None => leaf(graph, *value, inputs, source)?,
        };
        Ok((name.clone(), tensor))
    };
    graph.outputs().iter().map(output).collect()
}

/// Evaluates one constant; the result has the shape of `ty`.
///
/// Errors: see [`evaluate`].
pub fn weight(expr: &WeightExpr, ty: &TensorType, source: &Source) -> Result<Tensor, IrError> {
    let data = match expr {
        WeightExpr::Tensor { key, shape } => {
            let tensor = source(key).map_err(|e| broken(key, e.to_string()))?;
            if tensor.data.len() != shape.iter().product::<usize>() {
                let what = format!("the checkpoint has {:?}, the graph {shape:?}", tensor.shape);
                return Err(broken(key, what));
            }
            tensor.data
        }
        WeightExpr::Literal(tensor) => tensor.data.clone(),
        WeightExpr::Concat(parts) => {
            let mut all = Vec::with_capacity(ty.elem_count());
            for part in parts {
                all.extend(flat(part, source)?);
            }
            all
        }
        WeightExpr::Apply(op, args) => {
            let types: Vec<&TensorType> = args.iter().map(|(_, ty)| ty).collect();
            let args: Vec<Tensor> =
                args.iter().map(|(arg, ty)| weight(arg, ty, source)).collect::<Result<_, _>>()?;
            let inferred = op.infer(&types)?;
            apply(op, &args.iter().collect::<Vec<_>>(), &inferred, op.name())?.data
        }
    };
    if data.len() != ty.elem_count() {
        let what = format!("{} elements do not make {ty}", data.len());
        return Err(broken(&crate::text::weight(expr), what));
    }
    Ok(Tensor::new(&ty.shape, data))
}

/// Elements of a part of a concatenation. The part has a type of its own.
fn flat(expr: &WeightExpr, source: &Source) -> Result<Vec<f32>, IrError> {
    let shape = match expr {
        WeightExpr::Tensor { shape, .. } => shape.clone(),
        WeightExpr::Literal(tensor) => tensor.shape.clone(),
        WeightExpr::Concat(parts) => {
            let parts: Result<Vec<_>, _> = parts.iter().map(|p| flat(p, source)).collect();
            return Ok(parts?.concat());
        }
        WeightExpr::Apply(op, args) => {
            let types: Vec<&TensorType> = args.iter().map(|(_, ty)| ty).collect();
            op.infer(&types)?.shape
        }
    };
    Ok(weight(expr, &TensorType::f32(&shape), source)?.data)
}

/// The nodes that outputs depend on, in topological order.
fn needed(graph: &Graph) -> Result<Vec<ValueId>, IrError> {
    let mut live = std::collections::HashSet::new();
    let mut stack: Vec<ValueId> = graph.outputs().iter().map(|(_, value)| *value).collect();
    while let Some(id) = stack.pop() {
        if live.insert(id) {
            stack.extend(graph.operands(id));
        }
    }
    Ok(graph.topological()?.into_iter().filter(|id| live.contains(id)).collect())
}

fn release(
    uses: &mut HashMap<ValueId, usize>,
    values: &mut HashMap<ValueId, Tensor>,
    value: ValueId,
) {
    let left = uses.entry(value).or_insert(1);
    *left -= 1;
    if *left == 0 {
        values.remove(&value);
    }
}

/// The value of an input or a constant.
fn leaf(
    graph: &Graph,
    id: ValueId,
    inputs: &HashMap<String, Tensor>,
    source: &Source,
) -> Result<Tensor, IrError> {
    let node = graph.node(id);
    if let NodeKind::Weight(expr) = &node.kind {
        return weight(expr, &node.ty, source).map_err(|e| broken(&node.name, e.to_string()));
    }
    let tensor = inputs
        .get(&node.name)
        .ok_or_else(|| broken(&node.name, "the input is not given".to_string()))?;
    if tensor.shape != node.ty.shape {
        let what = format!("the input is {}, the given tensor {:?}", node.ty, tensor.shape);
        return Err(broken(&node.name, what));
    }
    Ok(tensor.clone())
}

/// Evaluates an op and checks its result against its type.
fn apply(op: &Op, inputs: &[&Tensor], ty: &TensorType, name: &str) -> Result<Tensor, IrError> {
    let result = op.eval(inputs);
    if result.shape == ty.shape {
        return Ok(result);
    }
    Err(broken(name, format!("evaluates to {:?}, its type is {ty}", result.shape)))
}

fn broken(node: &str, what: String) -> IrError {
    IrError::Graph { node: node.to_string(), what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{matmul::Matmul, pointwise::Add, pointwise::Silu, scale::Scale};
    use std::cell::RefCell;

    fn checkpoint(key: &str) -> Result<Tensor, Box<dyn Error + Send + Sync>> {
        match key {
            "w" => Ok(Tensor::new(&[1, 2], vec![1.0, 10.0])),
            "v" => Ok(Tensor::new(&[2], vec![2.0, 20.0])),
            _ => Err(format!("no tensor '{key}'").into()),
        }
    }

    fn key(key: &str, shape: &[usize]) -> WeightExpr {
        WeightExpr::Tensor { key: key.to_string(), shape: shape.to_vec() }
    }

    fn given(data: &[f32]) -> HashMap<String, Tensor> {
        HashMap::from([("x".to_string(), Tensor::new(&[1, 2], data.to_vec()))])
    }

    #[test]
    fn evaluates_a_graph() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::f32(&[1, 2]));
        let both = WeightExpr::Concat(vec![key("w", &[1, 2]), key("v", &[2])]);
        let w = g.weight("w", both, TensorType::f32(&[2, 2]));
        let y = g.push("y", Matmul::default(), &[x, w]).unwrap();
        let z = g.push("z", Add, &[y, y]).unwrap();
        let dead = g.input("dead", TensorType::f32(&[1]));
        g.push("unused", Silu, &[dead]).unwrap();
        g.output("z", z);
        g.output("x", x);
        g.output("y", y);
        let found = evaluate(&g, &given(&[3.0, 1.0]), &checkpoint).unwrap();
        let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["z", "x", "y"]);
        assert_eq!(found[0].1, Tensor::new(&[1, 2], vec![26.0, 52.0]));
        assert_eq!(found[1].1.data, [3.0, 1.0]);
        assert_eq!(found[2].1.data, [13.0, 26.0]);
    }

    #[test]
    fn an_expression_is_evaluated_alone() {
        let args = vec![(key("w", &[1, 2]), TensorType::f32(&[2]))];
        let doubled = WeightExpr::Apply(Box::new(Scale { factor: 2.0 }.into()), args);
        let all = WeightExpr::Concat(vec![doubled, WeightExpr::Literal(Tensor::zeros(&[1]))]);
        let found = weight(&all, &TensorType::f32(&[3, 1]), &checkpoint).unwrap();
        assert_eq!(found, Tensor::new(&[3, 1], vec![2.0, 20.0, 0.0]));
    }

    #[test]
    fn each_constant_is_read_once() {
        let reads = RefCell::new(0);
        let source = |k: &str| {
            *reads.borrow_mut() += 1;
            checkpoint(k)
        };
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::f32(&[1, 2]));
        let v = g.tensor("v", &[2], None);
        let y = g.push("y", Add, &[x, v]).unwrap();
        let z = g.push("z", Add, &[y, v]).unwrap();
        g.output("z", z);
        let found = evaluate(&g, &given(&[0.0, 1.0]), &source).unwrap();
        assert_eq!(found[0].1.data, [4.0, 41.0]);
        assert_eq!(*reads.borrow(), 1);
    }

    #[test]
    fn errors_name_the_node() {
        let mut g = Graph::new("g");
        let x = g.input("x", TensorType::f32(&[1, 2]));
        let w = g.tensor("v", &[3], None);
        let y = g.push("y", Silu, &[x]).unwrap();
        g.output("y", y);
        g.output("w", w);
        let message = |inputs| evaluate(&g, &inputs, &checkpoint).unwrap_err().to_string();
        assert_eq!(message(HashMap::new()), "node 'x': the input is not given");
        let found = message(given(&[1.0, 2.0]));
        assert_eq!(found, "node 'v': node 'v': the checkpoint has [2], the graph [3]");
        let found = weight(&key("u", &[1]), &TensorType::f32(&[1]), &checkpoint).unwrap_err();
        assert_eq!(found.to_string(), "node 'u': no tensor 'u'");
        let found = weight(&key("v", &[2]), &TensorType::f32(&[3]), &checkpoint).unwrap_err();
        assert_eq!(found.to_string(), "node '\"v\"[2]': 2 elements do not make f32[3]");
    }
}
