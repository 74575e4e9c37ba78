//! Sinusoidal embedding of timesteps.

use super::{expect_eq, expect_inputs};
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// `t` `[T]` to `[T, channels]`: `cos(t * f_i)` in the first half, `sin(t * f_i)` in the second.
///
/// `f_i = exp(-ln(max_period) * i / half)` with `half = channels / 2`; `channels` is even.
/// Source: `timestep_embedding` of Stability's Stable Diffusion.
#[derive(Clone, PartialEq, Debug)]
pub struct TimestepEmbedding {
    /// Columns of the output.
    pub channels: usize,
    /// Longest period, 10000.
    pub max_period: f32,
}

impl OpDef for TimestepEmbedding {
    const NAME: &'static str = "timestep_embedding";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_inputs(Self::NAME, inputs, 1)?;
        let t = inputs[0];
        expect_eq(Self::NAME, "rank of the timesteps", t.shape.len(), 1)?;
        if self.channels == 0 || !self.channels.is_multiple_of(2) {
            return Err(shape_error(
                Self::NAME,
                format!("{} channels are not even", self.channels),
            ));
        }
        Ok(TensorType::new(t.dtype, &[t.shape[0], self.channels]))
    }

    fn flops(&self, _inputs: &[&TensorType], output: &TensorType) -> u64 {
        16 * output.elem_count() as u64
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let half = self.channels / 2;
        let frequency =
            |i: usize| (-f64::from(self.max_period).ln() * i as f64 / half as f64).exp();
        let row = |t: &f32| {
            let angles: Vec<f64> = (0..half).map(|i| f64::from(*t) * frequency(i)).collect();
            let (cos, sin) = (angles.iter().map(|a| a.cos()), angles.iter().map(|a| a.sin()));
            cos.chain(sin).map(|v| v as f32).collect::<Vec<f32>>()
        };
        let data = inputs[0].data.iter().flat_map(row).collect();
        Tensor::new(&[inputs[0].data.len(), self.channels], data)
    }

    fn attributes(&self) -> String {
        format!("channels={} max_period={}", self.channels, self.max_period)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn cosines_then_sines() {
        let op = TimestepEmbedding { channels: 4, max_period: 10000.0 };
        let t = Tensor::new(&[3], vec![0., 1., 981.]);
        let expected = [
            [1.0, 1.0, 0.0, 0.0],
            [0.5403023058681398, 0.9999500004166653, 0.8414709848078965, 0.00999983333416666],
            [0.6799571881624918, -0.9267150209658566, 0.733251813680783, -0.37576491309893734],
        ];
        assert_eval(&op, &[&t], &[3, 4], &expected.concat());
    }

    #[test]
    fn the_width_of_the_full_model() {
        let op = TimestepEmbedding { channels: 320, max_period: 10000.0 };
        let found = op.eval(&[&Tensor::new(&[1], vec![981.0])]).data;
        let expected = [
            (1, -0.7984300344100692),
            (161, 0.6020876017258084),
            (100, -0.9992239885876891),
            (260, 0.039388077268504705),
        ];
        for (column, value) in expected {
            assert!((f64::from(found[column]) - value).abs() < 1e-6, "column {column}");
        }
    }

    #[test]
    fn rules() {
        let op = TimestepEmbedding { channels: 3, max_period: 10000.0 };
        assert_eq!(error(&op, &[&[1]]), "timestep_embedding: 3 channels are not even");
        assert_eq!(op.attributes(), "channels=3 max_period=10000");
    }
}
