//! A range of channels.

use super::{expect_one, map_rows};
use crate::error::shape_error;
use crate::{IrError, OpDef, Tensor, TensorType};

/// Columns `[start, start + len)` of the last axis.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Slice {
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub len: usize,
}

impl OpDef for Slice {
    const NAME: &'static str = "slice";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        let x = expect_one(Self::NAME, inputs, 1)?;
        let end = self.start.checked_add(self.len);
        if self.len == 0 || end.is_none_or(|end| end > x.channels()) {
            let what = format!("columns {}+{} of {x}", self.start, self.len);
            return Err(shape_error(Self::NAME, what));
        }
        Ok(x.with_channels(self.len))
    }

    fn flops(&self, _inputs: &[&TensorType], _output: &TensorType) -> u64 {
        0
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        map_rows(inputs[0], self.len, |row| row[self.start..self.start + self.len].to_vec())
    }

    fn attributes(&self) -> String {
        format!("start={} len={}", self.start, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_eval, error};
    use super::*;

    #[test]
    fn takes_columns() {
        let x = Tensor::new(&[2, 3], vec![1., 2., 3., 4., 5., 6.]);
        assert_eval(&Slice { start: 1, len: 2 }, &[&x], &[2, 2], &[2., 3., 5., 6.]);
    }

    #[test]
    fn rules() {
        let found = error(&Slice { start: 2, len: 2 }, &[&[2, 3]]);
        assert_eq!(found, "slice: columns 2+2 of f32[2,3]");
        assert!(error(&Slice { start: usize::MAX, len: 2 }, &[&[2, 3]]).contains("columns"));
        assert_eq!(Slice { start: 2, len: 1 }.attributes(), "start=2 len=1");
    }
}
