//! Rows of a table by index.

use super::{expect_eq, expect_inputs};
use crate::error::shape_error;
use crate::{DType, IrError, OpDef, Tensor, TensorType};

/// Looks up token ids: `ids` `i32 [N, L]` and `table` `[V, C]` give `[N, L, C]` of the table's
/// type.
///
/// Evaluation panics on an id outside `0..V`.
#[derive(Clone, PartialEq, Eq, Debug, Hash, Default)]
pub struct Embedding;

impl OpDef for Embedding {
    const NAME: &'static str = "embedding";

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
        expect_inputs(Self::NAME, inputs, 2)?;
        let (ids, table) = (inputs[0], inputs[1]);
        if ids.dtype != DType::I32 {
            return Err(shape_error(Self::NAME, format!("ids {ids} are not i32")));
        }
        expect_eq(Self::NAME, "rank of the ids", ids.shape.len(), 2)?;
        expect_eq(Self::NAME, "rank of the table", table.shape.len(), 2)?;
        Ok(TensorType::new(table.dtype, &[ids.shape[0], ids.shape[1], table.channels()]))
    }

    fn flops(&self, _inputs: &[&TensorType], _output: &TensorType) -> u64 {
        0
    }

    fn eval(&self, inputs: &[&Tensor]) -> Tensor {
        let (ids, table) = (inputs[0], inputs[1]);
        let look_up = |id: &f32| {
            let in_table = *id >= 0.0 && (*id as usize) < table.rows();
            assert!(in_table, "id {id} is outside the table of {} rows", table.rows());
            table.row(*id as usize)
        };
        let data = ids.data.iter().flat_map(look_up).copied().collect();
        Tensor::new(&[ids.shape[0], ids.shape[1], table.channels()], data)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::error;
    use super::*;

    #[test]
    fn looks_up_rows() {
        let ids = Tensor::new(&[1, 3], vec![2., 0., 2.]);
        let table = Tensor::new(&[3, 2], vec![1., 2., 3., 4., 5., 6.]);
        let found = Embedding.eval(&[&ids, &table]);
        assert_eq!(found, Tensor::new(&[1, 3, 2], vec![5., 6., 1., 2., 5., 6.]));
        let types = [TensorType::new(DType::I32, &[1, 3]), TensorType::f32(&[3, 2])];
        let ty = Embedding.infer(&[&types[0], &types[1]]).unwrap();
        assert_eq!(ty, TensorType::f32(&[1, 3, 2]));
    }

    #[test]
    #[should_panic(expected = "id 3 is outside the table of 3 rows")]
    fn an_id_outside_the_table_panics() {
        Embedding.eval(&[&Tensor::new(&[1, 1], vec![3.]), &Tensor::zeros(&[3, 2])]);
    }

    #[test]
    fn rules() {
        assert_eq!(error(&Embedding, &[&[1, 3], &[3, 2]]), "embedding: ids f32[1,3] are not i32");
    }
}
