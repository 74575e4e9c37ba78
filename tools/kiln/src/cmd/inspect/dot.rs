//! The plan as a graph: launches, the buffers between them, and the weights.

use kiln_bundle::plan::{Access, Arg, Plan, Step};
use kiln_compiler::size::mib;
use std::collections::BTreeSet;
use std::io::{Result, Write};

/// Prints the graph for Graphviz.
pub fn print(plan: &Plan, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "digraph plan {{\n  node [fontname=\"sans-serif\", fontsize=10];")?;
    let mut buffers = BTreeSet::new();
    let mut blocks = BTreeSet::new();
    let mut instant = 0u32;
    for (index, network) in plan.networks.iter().enumerate() {
        let name = &network.name;
        writeln!(out, "  subgraph cluster_{index} {{\n    label={name:?};")?;
        let mut edges = Vec::new();
        for step in &network.steps {
            match step {
                Step::Dispatch(d) => {
                    let kernel = &plan.kernels[d.kernel.index()];
                    let (op, variant) = (&kernel.op, &kernel.variant);
                    let label = format!("{}\n{op} {variant}", d.name);
                    writeln!(out, "    s{instant} [shape=box, label={label:?}];")?;
                    for arg in &d.args {
                        edges.extend(edge(instant, arg, &mut buffers, &mut blocks));
                    }
                }
                Step::Gather(g) => {
                    let label = format!("{}\ngather", g.name);
                    writeln!(out, "    s{instant} [shape=box, label={label:?}];")?;
                    edges.push(format!("b{} -> s{instant}", g.indices.0));
                    edges.push(format!("s{instant} -> b{}", g.output.0));
                    buffers.extend([g.indices.0, g.output.0]);
                }
                Step::Load { .. } | Step::Free { .. } => {}
            }
            instant += 1;
        }
        writeln!(out, "  }}")?;
        for edge in edges {
            writeln!(out, "  {edge};")?;
        }
    }
    for id in buffers {
        let buffer = &plan.buffers[id as usize];
        let label =
            format!("{}\n{} at {}", buffer.name, mib(buffer.len_bytes), buffer.offset_bytes);
        writeln!(out, "  b{id} [shape=ellipse, label={label:?}];")?;
    }
    for id in blocks {
        let block = &plan.blocks[id as usize];
        let label = format!("{}\n{}", block.name, mib(block.len_bytes));
        writeln!(out, "  w{id} [shape=cylinder, label={label:?}];")?;
    }
    writeln!(out, "}}")
}

fn edge(
    instant: u32,
    arg: &Arg,
    buffers: &mut BTreeSet<u32>,
    blocks: &mut BTreeSet<u32>,
) -> Option<String> {
    match arg {
        Arg::Buffer { buffer, access, .. } => {
            buffers.insert(buffer.0);
            Some(match access {
                Access::Read => format!("b{} -> s{instant}", buffer.0),
                Access::Write => format!("s{instant} -> b{}", buffer.0),
            })
        }
        Arg::Weight { block, .. } => {
            blocks.insert(block.0);
            Some(format!("w{} -> s{instant} [style=dashed]", block.0))
        }
        Arg::U32(_) | Arg::F32(_) => None,
    }
}
