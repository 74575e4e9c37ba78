//! Contractions to be tested: ops with the shapes and storage types of their operands.

use kiln_ir::ops::conv2d::Conv2d;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::ops::matmul::Matmul;
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::{Operand, Problem};

/// An op with the shapes and storage types of its operands.
#[derive(Clone)]
pub struct Case {
    pub op: Op,
    pub inputs: Vec<Operand>,
    pub max_weight_bytes: u64,
    pub max_scratch_bytes: u64,
}

impl Case {
    /// The type of the op's result.
    pub fn output(&self) -> TensorType {
        let types: Vec<_> = self.inputs.iter().map(|i| &i.ty).collect();
        self.op.infer(&types).unwrap()
    }

    /// The problem of this case, with the case's [`output`](Self::output).
    pub fn problem<'a>(&'a self, output: &'a TensorType) -> Problem<'a> {
        Problem {
            op: &self.op,
            inputs: &self.inputs,
            output,
            max_weight_bytes: self.max_weight_bytes,
            max_scratch_bytes: self.max_scratch_bytes,
        }
    }
}

/// Storage types of a case.
#[derive(Clone, Copy)]
pub struct Storage {
    pub activations: DType,
    pub weights: DType,
    /// Size of a scale group of INT8 weights; `WHOLE` for one scale an output channel.
    pub scale_group: usize,
}

pub const WHOLE: usize = usize::MAX;

pub const STORAGES: [Storage; 5] = [
    Storage { activations: DType::F32, weights: DType::F32, scale_group: 0 },
    Storage { activations: DType::F32, weights: DType::F16, scale_group: 0 },
    Storage { activations: DType::F16, weights: DType::F32, scale_group: 0 },
    Storage { activations: DType::F16, weights: DType::F16, scale_group: 0 },
    INT8,
];

pub const PLAIN: Storage = STORAGES[0];
pub const INT8: Storage =
    Storage { activations: DType::F32, weights: DType::I8, scale_group: WHOLE };

pub fn groups_of(scale_group: usize) -> Storage {
    Storage { scale_group, ..INT8 }
}

/// The plain storage types, and one of the others in turn.
pub fn two_storages(i: usize) -> [Storage; 2] {
    [PLAIN, STORAGES[1 + i % 4]]
}

pub fn case(op: Op, sources: &[&[usize]], weights: &[usize], storage: Storage) -> Case {
    let activation = |s: &[usize]| Operand::new(TensorType::new(storage.activations, s));
    let constant = |s: &[usize]| match (storage.weights, s.len()) {
        (DType::I8, 1) => Operand::constant(TensorType::f32(s)),
        (dtype, _) => {
            let scale_group = storage.scale_group.min(s[1..].iter().product());
            Operand { scale_group, ..Operand::constant(TensorType::new(dtype, s)) }
        }
    };
    let epilogue = match &op {
        Op::Matmul(op) => op.epilogue.clone(),
        Op::Conv2d(op) => op.epilogue.clone(),
        _ => unreachable!(),
    };
    let mut inputs: Vec<_> = sources.iter().map(|s| activation(s)).collect();
    if matches!(&op, Op::Conv2d(op) if op.prologue.is_some()) {
        inputs.push(Operand::new(TensorType::f32(&[sources[0][0], 2, weights[1]])));
    }
    inputs.push(constant(weights));
    // The shape of the output does not depend on the epilogue's inputs.
    let mut bare = op.clone();
    match &mut bare {
        Op::Matmul(op) => op.epilogue = only_activation(&epilogue),
        Op::Conv2d(op) => op.epilogue = only_activation(&epilogue),
        _ => unreachable!(),
    }
    let types: Vec<_> = inputs.iter().map(|i| &i.ty).collect();
    let output = bare.infer(&types).unwrap();
    if epilogue.bias {
        inputs.push(constant(&[weights[0]]));
    }
    if let Some(offset) = epilogue.row_offset {
        inputs.push(activation(&[1, offset + weights[0] + 3]));
    }
    if epilogue.residual {
        inputs.push(activation(&output.shape));
    }
    Case { op, inputs, max_weight_bytes: u64::MAX, max_scratch_bytes: u64::MAX }
}

pub fn only_activation(e: &Epilogue) -> Epilogue {
    Epilogue { activation: e.activation, ..Epilogue::default() }
}

pub fn matmul(m: usize, k: &[usize], n: usize, epilogue: Epilogue, storage: Storage) -> Case {
    let shapes: Vec<_> = k.iter().map(|k| vec![1, m, *k]).collect();
    let op = Matmul { sources: k.len(), epilogue };
    let views: Vec<_> = shapes.iter().map(|s| s.as_slice()).collect();
    case(op.into(), &views, &[n, k.iter().sum()], storage)
}

pub fn conv2d(
    op: Conv2d,
    feature_map: [usize; 3],
    c: &[usize],
    o: usize,
    storage: Storage,
) -> Case {
    let [n, h, w] = feature_map;
    let shapes: Vec<_> = c.iter().map(|c| vec![n, h, w, *c]).collect();
    let views: Vec<_> = shapes.iter().map(|s| s.as_slice()).collect();
    let op = Conv2d { sources: c.len(), ..op };
    let weights = [o, c.iter().sum(), op.kernel, op.kernel];
    case(op.into(), &views, &weights, storage)
}

pub fn epilogue(
    bias: bool,
    row: Option<usize>,
    activation: Activation,
    residual: bool,
) -> Epilogue {
    Epilogue { bias, row_offset: row, activation, residual }
}

/// The combinations that occur in Stable Diffusion, and all parts at once.
pub fn epilogues() -> Vec<Epilogue> {
    use Activation::{Geglu, Gelu, Relu, Silu};
    vec![
        Epilogue::default(),
        epilogue(true, None, IDENTITY, false),
        epilogue(true, Some(5), IDENTITY, false),
        epilogue(true, None, IDENTITY, true),
        epilogue(true, None, Silu, false),
        epilogue(true, None, Gelu, false),
        epilogue(true, None, Geglu, false),
        epilogue(true, None, Relu, false),
        epilogue(false, None, Geglu, false),
        epilogue(true, Some(7), Silu, true),
        epilogue(true, Some(7), Geglu, true),
    ]
}

pub const IDENTITY: Activation = Activation::None;

pub fn same(kernel: usize, stride: usize) -> Conv2d {
    Conv2d::new(kernel, stride)
}
