//! What random programs reached, to be read at the end of a run.

use kiln_ir::{Graph, NodeKind, Op};
use std::collections::BTreeMap;
use std::fmt;

/// Counts by what was counted.
#[derive(Default)]
pub struct Coverage {
    counts: BTreeMap<&'static str, BTreeMap<String, usize>>,
    /// Largest bounds on relative L2 errors, and largest errors over their bound.
    worst: BTreeMap<&'static str, (f64, f64)>,
}

impl Coverage {
    pub fn count(&mut self, kind: &'static str, name: impl Into<String>) {
        self.add(kind, name, 1);
    }

    pub fn add(&mut self, kind: &'static str, name: impl Into<String>, times: usize) {
        if times > 0 {
            *self.counts.entry(kind).or_default().entry(name.into()).or_default() += times;
        }
    }

    /// Counts a comparison.
    pub fn error(&mut self, kind: &'static str, error: f64, bound: f64) {
        let worst = self.worst.entry(kind).or_default();
        *worst = (worst.0.max(bound), worst.1.max(error / bound));
    }

    /// How often anything of a kind was counted.
    pub fn all(&self, kind: &str) -> usize {
        self.counts.get(kind).map_or(0, |counts| counts.values().sum())
    }

    /// Counts the ops of a graph, with what passes fused into them.
    pub fn ops(&mut self, kind: &'static str, graph: &Graph) {
        for id in graph.ids() {
            let NodeKind::Op(op) = &graph.node(id).kind else { continue };
            self.count(kind, op.name());
            let (epilogue, sources, more) = match op {
                Op::Conv2d(c) => {
                    let more = [("upsample", c.upsample), ("prologue", c.prologue.is_some())];
                    (&c.epilogue, c.sources, more)
                }
                Op::Matmul(m) => (&m.epilogue, m.sources, [("", false); 2]),
                _ => continue,
            };
            let fused = [
                ("two sources", sources > 1),
                ("bias", epilogue.bias),
                ("row", epilogue.row_offset.is_some()),
                ("residual", epilogue.residual),
            ];
            for (what, _) in fused.iter().chain(&more).filter(|(_, there)| *there) {
                self.count(kind, format!("{}+{what}", op.name()));
            }
            let activation = format!("{:?}", epilogue.activation).to_lowercase();
            self.add(
                kind,
                format!("{}+{activation}", op.name()),
                usize::from(activation != "none"),
            );
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, counts) in &self.counts {
            let list: Vec<_> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
            writeln!(f, "{kind}: {}", list.join(", "))?;
        }
        for (kind, (bound, ratio)) in &self.worst {
            writeln!(
                f,
                "{kind}: bounds up to {bound:.1e}, errors up to {ratio:.2} of their bound"
            )?;
        }
        Ok(())
    }
}
