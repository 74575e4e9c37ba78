//! The change of a layer before its scale, row by row.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use super::super::TensorSource;
use super::keys::Part;

/// The tensors of a layer's change, by their index in the LoRA.
pub(super) type Parts = BTreeMap<Part, usize>;

/// All values of a tensor of a LoRA.
pub(super) fn read(lora: &dyn TensorSource, index: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0; lora.tensors()[index].elem_count()];
    lora.read_index(index, 0, &mut values)?;
    Ok(values)
}

/// A tensor as a matrix: its first dimension, and all others as one.
struct Matrix {
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    shape: Vec<usize>,
}

impl Matrix {
    fn new(values: Vec<f32>, shape: Vec<usize>) -> Result<Matrix> {
        let rows = shape.first().copied().unwrap_or(1);
        ensure!(rows > 0 && !values.is_empty(), "a part has no values");
        let columns = values.len() / rows;
        Ok(Matrix { values, rows, columns, shape })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    fn transposed(&self) -> Result<Matrix> {
        let at = |i: usize| self.values[i % self.rows * self.columns + i / self.rows];
        let values = (0..self.values.len()).map(at).collect();
        Matrix::new(values, vec![self.columns, self.rows])
    }
}

/// `up down`: `[rows, rank]` by `[rank, columns]`.
struct Pair {
    up: Matrix,
    down: Matrix,
}

impl Pair {
    fn new(up: Matrix, down: Matrix) -> Result<Pair> {
        ensure!(
            up.columns == down.rows,
            "shapes {:?} and {:?} have no rank in common",
            up.shape,
            down.shape
        );
        Ok(Pair { up, down })
    }

    /// A pair with a core between its factors: `core: [i, j, ...]`, `down: [j, in]`, so that `i`
    /// is the rank and the core's window stands behind the inputs.
    fn with_core(up: Matrix, core: &Matrix, down: &Matrix) -> Result<Pair> {
        let (ranks, window) = match core.shape[..] {
            [_, j, ..] if j == down.rows => (j, core.columns / j),
            _ => bail!("shapes {:?} and {:?} have no rank in common", core.shape, down.shape),
        };
        let mut values = vec![0.0; core.rows * down.columns * window];
        for (i, row) in values.chunks_exact_mut(down.columns * window).enumerate() {
            for j in 0..ranks {
                let kernel = &core.row(i)[j * window..(j + 1) * window];
                for (input, out) in row.chunks_exact_mut(window).enumerate() {
                    let factor = down.row(j)[input];
                    out.iter_mut().zip(kernel).for_each(|(sum, k)| *sum += factor * k);
                }
            }
        }
        Pair::new(up, Matrix::new(values, vec![core.rows, down.columns * window])?)
    }

    fn row(&self, row: usize, out: &mut [f32]) {
        out.fill(0.0);
        for (k, factor) in self.up.row(row).iter().enumerate() {
            out.iter_mut().zip(self.down.row(k)).for_each(|(sum, value)| *sum += factor * value);
        }
    }

    fn whole(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.up.rows * self.down.columns];
        let rows = values.chunks_exact_mut(self.down.columns).enumerate();
        rows.for_each(|(row, out)| self.row(row, out));
        values
    }
}

enum Kind {
    /// LoRA, LoCon.
    Low(Pair),
    /// LoHa: the elementwise product of two.
    Hadamard(Pair, Pair),
    /// LoKr: each element of the first, `[a, b]`, times the second, `[p, q, ...]`.
    Kronecker { first: Matrix, second: Matrix },
}

/// The change of a layer.
pub(super) struct Product {
    kind: Kind,
    /// `alpha / rank`.
    pub scale: f32,
}

impl Product {
    /// Reads the change of a layer.
    ///
    /// Errors: parts are missing, or do not fit each other.
    pub fn read(lora: &dyn TensorSource, parts: &Parts) -> Result<Product> {
        let part = |part: Part| -> Result<Option<Matrix>> {
            let Some(index) = parts.get(&part) else { return Ok(None) };
            let shape = lora.tensors()[*index].shape.clone();
            Matrix::new(read(lora, *index)?, shape).map(Some)
        };
        let pair = |up: Part, core: Part, down: Part| -> Result<Option<Pair>> {
            let (Some(up), Some(down)) = (part(up)?, part(down)?) else { return Ok(None) };
            Ok(Some(match (part(core)?, core) {
                (Some(core), Part::Mid) => Pair::with_core(up, &core, &down)?,
                // LoHa's is `[rank, out]` beside a core.
                (Some(core), _) => Pair::with_core(up.transposed()?, &core, &down)?,
                (None, _) => Pair::new(up, down)?,
            }))
        };
        let low = pair(Part::Up, Part::Mid, Part::Down)?;
        let first = pair(Part::HadaW1A, Part::HadaT1, Part::HadaW1B)?;
        let second = pair(Part::HadaW2A, Part::HadaT2, Part::HadaW2B)?;
        let (kind, rank) = match (low, first, second) {
            (Some(pair), None, None) => {
                let rank = pair.down.rows;
                (Kind::Low(pair), Some(rank))
            }
            (None, Some(first), Some(second)) => {
                let rank = first.down.rows;
                (Kind::Hadamard(first, second), Some(rank))
            }
            (None, None, None) => kronecker(&part)?,
            _ => bail!("it lacks a part, or has parts of two kinds of LoRA"),
        };
        let alpha = match part(Part::Alpha)? {
            Some(alpha) if alpha.values.len() == 1 => Some(alpha.values[0]),
            Some(_) => bail!("its alpha has several values"),
            None => None,
        };
        let scale = match (alpha, rank) {
            (Some(alpha), Some(rank)) => alpha / rank as f32,
            _ => 1.0,
        };
        ensure!(scale.is_finite(), "its alpha is not finite");
        Ok(Product { kind, scale })
    }

    /// Rows, and values of each.
    fn size(&self) -> (usize, usize) {
        match &self.kind {
            Kind::Low(pair) => (pair.up.rows, pair.down.columns),
            Kind::Hadamard(first, _) => (first.up.rows, first.down.columns),
            Kind::Kronecker { first, second } => {
                (first.rows * second.rows, first.columns * second.columns)
            }
        }
    }

    /// Rank, `up: [rows, rank]` times the scale and `down: [rank, values of a row]`, if the change is
    /// their product.
    pub fn low_rank(self) -> Option<(usize, Vec<f32>, Vec<f32>)> {
        let Kind::Low(Pair { up, down }) = self.kind else { return None };
        let scaled = up.values.into_iter().map(|value| value * self.scale).collect();
        Some((down.rows, scaled, down.values))
    }

    /// A row of the change, without its scale.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match &self.kind {
            Kind::Low(pair) => pair.row(row, out),
            Kind::Hadamard(first, second) => {
                first.row(row, out);
                let mut other = vec![0.0; out.len()];
                second.row(row, &mut other);
                out.iter_mut().zip(other).for_each(|(value, factor)| *value *= factor);
            }
            Kind::Kronecker { first, second } => {
                let (above, below) = (row / second.rows, row % second.rows);
                let parts = out.chunks_exact_mut(second.columns).zip(first.row(above));
                for (part, factor) in parts {
                    let values = part.iter_mut().zip(second.row(below));
                    values.for_each(|(value, other)| *value = factor * other);
                }
            }
        }
    }
}

/// The parts of a LoKr, and the rank of its factored half. Two whole halves have no scale.
fn kronecker(part: &dyn Fn(Part) -> Result<Option<Matrix>>) -> Result<(Kind, Option<usize>)> {
    let mut rank = None;
    let first = match (part(Part::LokrW1)?, part(Part::LokrW1A)?, part(Part::LokrW1B)?) {
        (Some(whole), None, None) => whole,
        (None, Some(up), Some(down)) => {
            rank = Some(down.rows);
            let shape = vec![up.rows, down.columns];
            Matrix::new(Pair::new(up, down)?.whole(), shape)?
        }
        _ => bail!("it lacks a part (lora_A and lora_B, or those of LoHa or LoKr)"),
    };
    let second = match (part(Part::LokrW2)?, part(Part::LokrW2A)?, part(Part::LokrW2B)?) {
        (Some(whole), None, None) => whole,
        (None, Some(up), Some(down)) => {
            rank = Some(down.rows);
            let pair = match part(Part::LokrT2)? {
                Some(core) => Pair::with_core(up.transposed()?, &core, &down)?,
                None => Pair::new(up, down)?,
            };
            let shape = vec![pair.up.rows, pair.down.columns];
            Matrix::new(pair.whole(), shape)?
        }
        _ => bail!("it lacks a part of its LoKr"),
    };
    Ok((Kind::Kronecker { first, second }, rank))
}

/// Checks that a change is one of a layer of so many rows and values of a row.
///
/// Errors: parts are missing, or have other shapes.
pub(super) fn check(
    lora: &dyn TensorSource,
    parts: &Parts,
    rows: usize,
    row_elems: usize,
) -> Result<()> {
    let product = Product::read(lora, parts)?;
    let (found, wanted) = (product.size(), (rows, row_elems));
    ensure!(
        found == wanted,
        "is of {} rows of {} values, the layer of {} of {}",
        found.0,
        found.1,
        wanted.0,
        wanted.1
    );
    if let Kind::Hadamard(_, second) = &product.kind {
        ensure!((second.up.rows, second.down.columns) == wanted, "has halves of two shapes");
    }
    if let Some(magnitude) = parts.get(&Part::Magnitude) {
        let count = lora.tensors()[*magnitude].elem_count();
        let fits = count == rows || (count > 0 && row_elems.is_multiple_of(count));
        ensure!(fits, "has {count} magnitudes for {rows} rows");
    }
    Ok(())
}
