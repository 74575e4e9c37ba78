//! Scaled dot-product attention over several heads.

use super::expect_eq;
use crate::error::shape_error;
use crate::parallel::{dot, fill_rows};
use crate::{IrError, OpDef, Tensor, TensorType};
use std::ops::Range;

/// Position of an operand: columns `[start, start + channels)` of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Columns {
    /// Index of the op's input.
    pub input: usize,
    /// First column.
    pub start: usize,
}

/// `softmax(q k^T * scale) v` for each head, softmax over keys in `f32`.
///
/// `q` is `[N, Lq.., *]`, `k` and `v` are `[N, Lk.., *]`. Several operands may be column ranges of
/// one input, the result of a merged QKV contraction. A head is `channels / heads` adjacent
/// columns. The scale is `1 / sqrt(channels / heads)`. Output `[N, Lq.., channels]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Attention {
    /// Number of columns of each operand.
    pub channels: usize,
    /// Number of heads.
    pub heads: usize,
    /// Causal mask: query i sees keys 0..=i only.
    pub causal: bool,
    /// Queries.
    pub q: Columns,
    /// Keys.
    pub k: Columns,
    /// Values.
    pub v: Columns,
}

impl Attention {
    /// Attention over three separate inputs `q`, `k`, `v`.
    pub fn separate(channels: usize, heads: usize, causal: bool) -> Self {
        let at = |input| Columns { input, start: 0 };
        Self { channels, heads, causal, q: at(0), k: at(1), v: at(2) }
    }

    /// Number of columns of one head.
    pub fn head_channels(&self) -> usize {
        self.channels / self.heads
    }

    /// Factor of the scores.
    pub fn scale(&self) -> f32 {
        1.0 / (self.head_channels() as f32).sqrt()
    }
}

impl OpDef for Attention {
    const NAME: &'static str = "attention";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let operands = [self.q, self.k, self.v];
        let expected = operands.iter().map(|c| c.input + 1).max().unwrap_or(0);
        super::expect_inputs(Self::NAME, inputs, expected)?;
        for c in operands {
            if c.start + self.channels > inputs[c.input].channels() {
                let what = format!("columns {}+{} of {}", c.start, self.channels, inputs[c.input]);
                return Err(shape_error(Self::NAME, what));
            }
        }
        let [q, k, v] = operands.map(|c| inputs[c.input]);
        expect_eq(Self::NAME, "channels modulo heads", self.channels % self.heads.max(1), 0)?;
        expect_eq(Self::NAME, "batch of the keys", k.batch(), q.batch())?;
        expect_eq(Self::NAME, "batch of the values", v.batch(), q.batch())?;
        expect_eq(Self::NAME, "rows of the values", v.rows(), k.rows())?;
        if self.causal {
            expect_eq(Self::NAME, "rows of the keys (causal)", k.rows(), q.rows())?;
        }
        Ok(q.with_channels(self.channels))
    }

    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
        let keys = inputs[self.k.input];
        4 * output.elem_count() as u64 * (keys.rows() / keys.batch()) as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let d = self.head_channels();
        let [q, k, v] = [self.q, self.k, self.v].map(|c| (inputs[c.input], c.start));
        let batch = if q.0.shape.len() > 1 { q.0.shape[0] } else { 1 };
        let (lq, lk) = (q.0.rows() / batch, k.0.rows() / batch);
        let mut out = vec![0.0f32; batch * lq * self.channels];
        let work = 2 * out.len() * lk;
        fill_rows(&mut out, self.channels, 1, work, |r, row| {
            let first_key = r / lq * lk;
            let seen = if self.causal { r % lq + 1 } else { lk };
            for (head, out) in row.chunks_exact_mut(d).enumerate() {
                let at = |(t, start): (&'_ Tensor, usize), r: usize| -> Range<usize> {
                    let first = r * t.channels() + start + head * d;
                    first..first + d
                };
                let query = &q.0.data[at(q, r)];
                let key = |j: usize| &k.0.data[at(k, first_key + j)];
                let value = |j: usize| &v.0.data[at(v, first_key + j)];
                attend(query, seen, f64::from(self.scale()), key, value, out);
            }
        });
        let mut shape = q.0.shape.clone();
        *shape.last_mut().expect("operands have columns") = self.channels;
        Tensor::new(&shape, out)
    }

    fn attributes(&self) -> String {
        let at = |c: Columns| format!("%{}+{}", c.input, c.start);
        let causal = if self.causal { " causal" } else { "" };
        let (q, k, v) = (at(self.q), at(self.k), at(self.v));
        format!("channels={} heads={} q={q} k={k} v={v}{causal}", self.channels, self.heads)
    }
}

/// The result of one query of one head, over its first `seen` keys.
fn attend<'a>(
    query: &[f32],
    seen: usize,
    scale: f64,
    key: impl Fn(usize) -> &'a [f32],
    value: impl Fn(usize) -> &'a [f32],
    out: &mut [f32],
) {
    let scores: Vec<f64> = (0..seen).map(|j| dot(query, key(j)) * scale).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let mut acc = vec![0.0f64; out.len()];
    for (j, e) in exps.iter().enumerate() {
        acc.iter_mut().zip(value(j)).for_each(|(a, x)| *a += e / sum * f64::from(*x));
    }
    out.iter_mut().zip(&acc).for_each(|(o, a)| *o = *a as f32);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn weighs_values_by_the_softmax_of_scores() {
        let q = Tensor::new(&[1, 2, 2], vec![1., 0., 0., 1.]);
        let k = Tensor::new(&[1, 3, 2], vec![1., 1., 2., 0., 0., 3.]);
        let v = Tensor::new(&[1, 3, 2], vec![1., 2., 3., 4., 5., 6.]);
        let expected =
            [2.712067670604236, 3.7120676706042364, 4.1106219035385685, 5.1106219035385685];
        assert_eval(&Attention::separate(2, 1, false), &[&q, &k, &v], &[1, 2, 2], &expected);
    }

    #[test]
    fn causal_over_column_ranges_of_one_input() {
        let rows = [[9., 1., 0., 1., 1., 1., 2.], [9., 0., 1., 2., 0., 3., 4.]];
        let qkv = Tensor::new(&[1, 2, 7], rows.concat());
        let at = |start| Columns { input: 0, start };
        let op = Attention { channels: 2, heads: 1, causal: true, q: at(1), k: at(3), v: at(5) };
        let expected = [1.0, 2.0, 1.6604769013466862, 2.6604769013466862];
        assert_eval(&op, &[&qkv], &[1, 2, 2], &expected);
        assert_eq!(op.attributes(), "channels=2 heads=1 q=%0+1 k=%0+3 v=%0+5 causal");
    }

    #[test]
    fn heads_and_batch_entries_are_independent() {
        let q = Tensor::new(&[2, 1, 2], vec![0.0; 4]);
        let v = Tensor::new(&[2, 2, 2], vec![1., 10., 3., 30., 5., 50., 9., 90.]);
        let expected = [2., 20., 7., 70.];
        assert_eval(&Attention::separate(2, 2, false), &[&q, &v, &v], &[2, 1, 2], &expected);
    }

    #[test]
    fn rules() {
        let found = error(&Attention::separate(4, 3, false), &[&[1, 2, 4], &[1, 3, 4], &[1, 3, 4]]);
        assert_eq!(found, "attention: channels modulo heads is 1, must be 0");
        let found = error(&Attention::separate(4, 1, true), &[&[1, 2, 4], &[1, 3, 4], &[1, 3, 4]]);
        assert_eq!(found, "attention: rows of the keys (causal) is 3, must be 2");
    }
}
