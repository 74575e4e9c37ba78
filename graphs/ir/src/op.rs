//! The closed set of ops: one trait, one list.

use crate::{IrError, Tensor, TensorType};

/// The definition of an op.
pub trait OpDef {
    /// Name of the op in dumps and errors, and of its folder of kernels.
    const NAME: &'static str;

    /// Type of the output, or the broken rule of the inputs.
    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError>;

    /// Arithmetic of one evaluation in FLOP, two for each multiply-add. 0 if only bytes move.
    fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64;

    /// Plain evaluation in `f32`; sums are accumulated in `f64`.
    fn eval(&self, inputs: &[&Tensor]) -> Tensor;

    /// Attributes for the dump: `key=value` separated by spaces, without defaults.
    fn attributes(&self) -> String {
        String::new()
    }
}

/// Declares `enum Op` and forwards [`OpDef`] to the op files. This is the only match over all ops.
macro_rules! ops {
    ($($module:ident :: $name:ident),* $(,)?) => {
        /// An op with its attributes.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Op {
            $(#[allow(missing_docs)] $name(crate::ops::$module::$name),)*
        }

        $(impl From<crate::ops::$module::$name> for Op {
            fn from(op: crate::ops::$module::$name) -> Self { Op::$name(op) }
        })*

        impl Op {
            /// [`OpDef::NAME`] of every op.
            pub const NAMES: &'static [&'static str] = &[$(crate::ops::$module::$name::NAME),*];

            /// See [`OpDef::NAME`].
            pub fn name(&self) -> &'static str {
                match self { $(Op::$name(_) => crate::ops::$module::$name::NAME,)* }
            }
            /// See [`OpDef::infer`].
            pub fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, IrError> {
                match self { $(Op::$name(op) => op.infer(inputs),)* }
            }
            /// See [`OpDef::flops`].
            pub fn flops(&self, inputs: &[&TensorType], output: &TensorType) -> u64 {
                match self { $(Op::$name(op) => op.flops(inputs, output),)* }
            }
            /// See [`OpDef::eval`].
            pub fn eval(&self, inputs: &[&Tensor]) -> Tensor {
                match self { $(Op::$name(op) => op.eval(inputs),)* }
            }
            /// See [`OpDef::attributes`].
            pub fn attributes(&self) -> String {
                match self { $(Op::$name(op) => op.attributes(),)* }
            }
        }
    };
}

ops! {
    conv2d::Conv2d,
    matmul::Matmul,
    attention::Attention,
    group_norm::GroupNorm,
    group_affine::GroupAffine,
    chain::Chain,
    layer_norm::LayerNorm,
    reductions::Mean,
    reductions::Variance,
    reductions::Softmax,
    pointwise::Gelu,
    pointwise::QuickGelu,
    pointwise::Silu,
    pointwise::Relu,
    pointwise::Tanh,
    geglu::Geglu,
    pointwise::Add,
    pointwise::Mul,
    scale::Scale,
    upsample::Upsample,
    concat::Concat,
    slice::Slice,
    permute::Permute,
    embedding::Embedding,
    timestep_embedding::TimestepEmbedding,
}
