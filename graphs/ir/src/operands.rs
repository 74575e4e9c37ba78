//! The operands of contractions and group normalizations by role. Only this module knows their
//! order among an op's inputs.

use crate::Op;
use crate::ops::chain::{Chain, Link};
use crate::ops::epilogue::Epilogue;

/// The operands of a contraction ([`Conv2d`](crate::ops::conv2d::Conv2d) or
/// [`Matmul`](crate::ops::matmul::Matmul)). `T` is the index of an input, or any other value for
/// each input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContractionOperands<T> {
    /// Tensors that are read as one, concatenated along channels.
    pub sources: Vec<T>,
    /// Scales and shifts of the prologue.
    pub affine: Option<T>,
    /// Weights.
    pub weights: T,
    /// Bias of the epilogue.
    pub bias: Option<T>,
    /// Row vector of the epilogue (the timestep projection).
    pub row: Option<T>,
    /// Residual of the epilogue.
    pub residual: Option<T>,
}

impl<T> ContractionOperands<T> {
    /// The operands in the order of the op's inputs.
    pub fn in_order(self) -> Vec<T> {
        let Self { sources, affine, weights, bias, row, residual } = self;
        let mut list = sources;
        list.extend(affine);
        list.push(weights);
        list.extend(bias.into_iter().chain(row).chain(residual));
        list
    }

    /// Applies a function to each operand.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> ContractionOperands<U> {
        ContractionOperands {
            sources: self.sources.into_iter().map(&mut f).collect(),
            affine: self.affine.map(&mut f),
            weights: f(self.weights),
            bias: self.bias.map(&mut f),
            row: self.row.map(&mut f),
            residual: self.residual.map(&mut f),
        }
    }
}

impl ContractionOperands<usize> {
    /// Indices of the operands of a contraction of `sources`, with or without a prologue.
    pub fn new(sources: usize, prologue: bool, epilogue: &Epilogue) -> Self {
        // The same order as `in_order`, counted up.
        let mut next = 0..;
        let mut one = || next.next().expect("numbers do not end");
        Self {
            sources: (0..sources).map(|_| one()).collect(),
            affine: prologue.then(&mut one),
            weights: one(),
            bias: epilogue.bias.then(&mut one),
            row: epilogue.row_offset.is_some().then(&mut one),
            residual: epilogue.residual.then(&mut one),
        }
    }

    /// Number of inputs of the op.
    pub fn count(&self) -> usize {
        self.clone().in_order().len()
    }
}

/// Indices of the inputs of a group normalization or its affine form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NormOperands {
    /// Number of sources, the first inputs.
    pub sources: usize,
    /// Scale of each channel.
    pub gamma: usize,
    /// Shift of each channel.
    pub beta: usize,
}

impl NormOperands {
    /// The operands of a normalization of `sources`.
    pub fn new(sources: usize) -> Self {
        Self { sources, gamma: sources, beta: sources + 1 }
    }

    /// Number of inputs of the op.
    pub fn count(&self) -> usize {
        self.sources + 2
    }
}

impl Chain {
    /// Index among the chain's inputs of input `index` of the second op. `None` for its source,
    /// which is the first op's result.
    pub fn second_input(&self, index: usize) -> Option<usize> {
        Some(self.first_inputs() + index.checked_sub(1)?)
    }
}

impl Link {
    fn contraction(&self) -> Option<ContractionOperands<usize>> {
        match self {
            Link::Conv2d(op) => Some(op.operands()),
            Link::Matmul(op) => Some(op.operands()),
            Link::GroupAffine(_) => None,
        }
    }
}

impl Op {
    /// Indices of a contraction's operands. `None` for another op.
    pub fn contraction(&self) -> Option<ContractionOperands<usize>> {
        match self {
            Op::Conv2d(op) => Some(op.operands()),
            Op::Matmul(op) => Some(op.operands()),
            _ => None,
        }
    }

    /// Indices of the weights of a contraction, or of both contractions of a chain.
    pub fn weights(&self) -> Vec<usize> {
        let Op::Chain(chain) = self else {
            return self.contraction().map(|o| o.weights).into_iter().collect();
        };
        let second = chain.second.contraction().and_then(|o| chain.second_input(o.weights));
        std::iter::once(chain.first.operands().weights).chain(second).collect()
    }

    /// Index of the residual of a contraction or chain.
    pub fn residual(&self) -> Option<usize> {
        match self {
            Op::Chain(chain) => chain.second_input(chain.second.contraction()?.residual?),
            _ => self.contraction()?.residual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::conv2d::Conv2d;
    use crate::ops::epilogue::Activation;
    use crate::ops::matmul::Matmul;

    fn all() -> Epilogue {
        Epilogue { bias: true, row_offset: Some(3), residual: true, ..Epilogue::default() }
    }

    #[test]
    fn indices_are_in_order() {
        for (sources, prologue, epilogue) in
            [(1, false, Epilogue::default()), (3, true, all()), (2, false, all())]
        {
            let operands = ContractionOperands::new(sources, prologue, &epilogue);
            let count = operands.count();
            assert!(operands.in_order().into_iter().eq(0..count));
        }
    }

    #[test]
    fn a_chain_has_the_operands_of_both() {
        let norm = Some(Activation::Silu);
        let bias = Epilogue { bias: true, ..Epilogue::default() };
        let first = Conv2d { prologue: norm, epilogue: bias, ..Conv2d::new(3, 1) };
        let second = Link::Matmul(Matmul { sources: 1, epilogue: all() });
        let op: Op = Chain { first, between: DType::F32, second }.into();
        // x, affine, W, bias; W, bias, row, residual.
        assert_eq!(op.weights(), [2, 4]);
        assert_eq!(op.residual(), Some(7));
    }
}
