//! Scaled dot-product attention over several heads.

use super::expect_eq;
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Where an operand is: columns `[start, start + channels)` of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Columns {
    /// Which of the op's inputs.
    pub input: usize,
    /// First column.
    pub start: usize,
}

/// `softmax(q k^T * scale) v` for each head, softmax over keys in `f32`.
///
/// `q` is `[N, Lq.., *]`, `k` and `v` are `[N, Lk.., *]`; several operands may be column ranges of
/// one input, as a merged QKV contraction leaves them. A head is `channels / heads` adjacent
/// columns and the scale is `1 / sqrt(channels / heads)`. Output `[N, Lq.., channels]`.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Attention {
    /// Columns of each operand.
    pub channels: usize,
    /// Number of heads.
    pub heads: usize,
    /// Query i sees keys 0..=i only.
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

    /// Columns of one head.
    pub fn head_channels(&self) -> usize {
        self.channels / self.heads
    }

    /// Factor on the scores.
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
        for (b, head, i) in (0..batch * self.heads * lq)
            .map(|x| (x / (self.heads * lq), x / lq % self.heads, x % lq))
        {
            let at = |(t, start): (&'_ Tensor, usize), r: usize| {
                let c = start + head * d;
                t.row(r)[c..c + d].to_vec()
            };
            let query = at(q, b * lq + i);
            let seen = if self.causal { i + 1 } else { lk };
            let scores: Vec<f64> = (0..seen)
                .map(|j| {
                    let key = at(k, b * lk + j);
                    let dot: f64 = query.iter().zip(&key).map(|(a, b)| f64::from(a * b)).sum();
                    dot * f64::from(self.scale())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut acc = vec![0.0f64; d];
            for (j, e) in exps.iter().enumerate() {
                let value = at(v, b * lk + j);
                acc.iter_mut().zip(&value).for_each(|(a, x)| *a += e / sum * f64::from(*x));
            }
            let row = (b * lq + i) * self.channels + head * d;
            acc.iter().enumerate().for_each(|(c, x)| out[row + c] = *x as f32);
        }
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
