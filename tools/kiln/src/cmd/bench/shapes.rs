//! The list of `kiln bench kernels`: the ops that dominate the time of Stable Diffusion 2.1 at
//! 512x512, and a large square matmul.

use anyhow::Result;
use kiln_compiler::strategy::Strategy;
use kiln_ir::ops::{
    attention::Attention, conv2d::Conv2d, epilogue::Activation, epilogue::Epilogue, geglu::Geglu,
    group_norm::GroupNorm, layer_norm::LayerNorm, matmul::Matmul, pointwise::Add,
    upsample::Upsample,
};
use kiln_ir::{DType, Op, TensorType};
use kiln_kernels::Operand;
use serde::Serialize;

use super::problems::Single;

/// The rate that bounds an op's time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Multiplications and additions.
    Arithmetic,
    /// Reading and writing.
    Memory,
}

/// An op with its shapes.
pub struct Shape {
    /// Name on the command line.
    pub name: String,
    /// The rate that the op's own is compared with.
    pub bound: Bound,
    op: Op,
    /// Shapes of the inputs that are computed at run time.
    values: Vec<Vec<usize>>,
    /// Shapes of the weights, which follow `values`.
    constants: Vec<Vec<usize>>,
    /// Shape of the residual, which follows the weights.
    residual: Option<Vec<usize>>,
    /// For INT8 weights, the largest size of a scale group; 0 for other weights.
    scale_group: usize,
}

impl Shape {
    fn new(
        name: String,
        bound: Bound,
        op: impl Into<Op>,
        values: Vec<Vec<usize>>,
        constants: Vec<Vec<usize>>,
    ) -> Self {
        Self { name, bound, op: op.into(), values, constants, residual: None, scale_group: 0 }
    }

    /// The op as a strategy compiles it. Matrices and filters are stored as `weights` or in INT8,
    /// values as the strategy says, everything else in FP32.
    ///
    /// Errors: the shapes break a rule of the op.
    pub fn single(&self, strategy: &Strategy, weights: DType) -> Result<Single> {
        let value = |s: &Vec<usize>| Operand::new(TensorType::new(strategy.activations, s));
        let constant = |s: &Vec<usize>| match (s.len(), self.scale_group) {
            (..2, _) => Operand::constant(TensorType::f32(s)),
            (_, 0) => Operand::constant(TensorType::new(weights, s)),
            (_, group) => Operand {
                scale_group: group.min(s[1..].iter().product()),
                ..Operand::constant(TensorType::new(DType::I8, s))
            },
        };
        let inputs = self.values.iter().map(value).chain(self.constants.iter().map(constant));
        let inputs: Vec<Operand> = inputs.chain(self.residual.iter().map(value)).collect();
        let output = self.op.infer(&inputs.iter().map(|i| &i.ty).collect::<Vec<_>>())?;
        Ok(Single::new(self.op.clone(), inputs, output, strategy))
    }
}

/// All shapes. To add one: its line here.
pub fn shapes() -> Vec<Shape> {
    vec![
        matmul(4096, 320, 320),
        matmul(4096, 2560, 320),
        matmul(1024, 640, 640),
        matmul(256, 1280, 1280),
        matmul(4096, 4096, 4096),
        residual(matmul(4096, 320, 1280), vec![4096, 320]),
        int8(matmul(64, 1280, 1280), usize::MAX),
        int8(matmul(64, 1280, 1280), 64),
        conv3x3(320, 320, 64),
        conv3x3(640, 640, 32),
        conv3x3(1280, 1280, 16),
        conv3x3(512, 512, 64),
        conv3x3(128, 128, 512),
        conv3x3(128, 3, 512),
        conv3x3(4, 320, 64),
        two_sources([320, 320], 320, 64),
        int8(conv3x3(1280, 1280, 8), usize::MAX),
        int8(conv3x3(1280, 1280, 8), 64),
        attention("self", 5, 64, 4096, 4096),
        attention("cross", 5, 64, 4096, 77),
        attention("decoder", 1, 512, 4096, 4096),
        layer_norm(4096, 320),
        group_norm_silu(320, 64),
        group_norm_silu(128, 512),
        geglu(4096, 1280),
        upsample(256, 256),
        add(4096, 1280),
    ]
}

fn arithmetic(name: String, op: impl Into<Op>, value: Vec<usize>, weights: Vec<usize>) -> Shape {
    Shape::new(name, Bound::Arithmetic, op, vec![value], vec![weights])
}

fn memory(name: String, op: impl Into<Op>, values: Vec<Vec<usize>>, channels: &[usize]) -> Shape {
    let constants = channels.iter().map(|c| vec![*c]).collect();
    Shape::new(name, Bound::Memory, op, values, constants)
}

/// A matmul of `m` rows of `k` columns by weights `[n, k]`.
fn matmul(m: usize, n: usize, k: usize) -> Shape {
    arithmetic(format!("matmul {m}x{n}x{k}"), Matmul::default(), vec![m, k], vec![n, k])
}

fn conv3x3(c: usize, o: usize, extent: usize) -> Shape {
    let name = format!("conv3x3 {c}->{o}@{extent}x{extent}");
    arithmetic(name, Conv2d::new(3, 1), vec![1, extent, extent, c], vec![o, c, 3, 3])
}

/// A convolution over two concatenated feature maps.
fn two_sources(c: [usize; 2], o: usize, extent: usize) -> Shape {
    let op = Conv2d { sources: 2, ..Conv2d::new(3, 1) };
    let name = format!("conv3x3 {}+{}->{o}@{extent}x{extent}", c[0], c[1]);
    let values = c.map(|c| vec![1, extent, extent, c]).to_vec();
    Shape::new(name, Bound::Arithmetic, op, values, vec![vec![o, c[0] + c[1], 3, 3]])
}

/// A matmul whose epilogue adds a residual.
fn residual(shape: Shape, output: Vec<usize>) -> Shape {
    let epilogue = Epilogue { residual: true, ..Epilogue::default() };
    let op = Matmul { sources: 1, epilogue }.into();
    Shape { name: shape.name + " + residual", op, residual: Some(output), ..shape }
}

/// An op with INT8 weights and scale groups of this size; 0 for one scale an output channel.
fn int8(shape: Shape, scale_group: usize) -> Shape {
    let of = if scale_group == usize::MAX { String::new() } else { format!("/{scale_group}") };
    Shape { name: shape.name + " int8" + &of, scale_group, ..shape }
}

fn attention(kind: &str, heads: usize, head: usize, queries: usize, keys: usize) -> Shape {
    let channels = heads * head;
    let over = if keys == queries { String::new() } else { format!(" over {keys}") };
    let name = format!("attention {kind} {heads}x{queries}x{head}{over}");
    let values = [queries, keys, keys].map(|rows| vec![1, rows, channels]).to_vec();
    let op = Attention::separate(channels, heads, false);
    Shape::new(name, Bound::Arithmetic, op, values, vec![])
}

fn layer_norm(rows: usize, c: usize) -> Shape {
    let name = format!("layer_norm {rows}x{c}");
    memory(name, LayerNorm { eps: 1e-5 }, vec![vec![rows, c]], &[c, c])
}

fn group_norm_silu(c: usize, extent: usize) -> Shape {
    let op = GroupNorm { sources: 1, groups: 32, eps: 1e-5, activation: Activation::Silu };
    let name = format!("group_norm_silu {c}@{extent}x{extent}");
    memory(name, op, vec![vec![1, extent, extent, c]], &[c, c])
}

/// GEGLU with `c` output columns.
fn geglu(rows: usize, c: usize) -> Shape {
    memory(format!("geglu {rows}x{}->{c}", 2 * c), Geglu, vec![vec![rows, 2 * c]], &[])
}

fn upsample(c: usize, extent: usize) -> Shape {
    let (h, doubled) = (extent, 2 * extent);
    let name = format!("upsample {c}@{h}x{h}->{doubled}x{doubled}");
    memory(name, Upsample, vec![vec![1, h, h, c]], &[])
}

fn add(rows: usize, c: usize) -> Shape {
    memory(format!("add {rows}x{c}"), Add, vec![vec![rows, c]; 2], &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_compiler::device::DeviceProfile;
    use kiln_compiler::model::GUIDANCE_BRANCHES;
    use kiln_compiler::strategy::strategies;
    use kiln_kernels::candidates;
    use std::collections::BTreeSet;

    fn problem(profile: &str, dtype: DType, name: &str) -> String {
        let (_, profile) = DeviceProfile::load(profile).unwrap();
        let shapes = shapes();
        let shape = shapes.iter().find(|s| s.name == name).unwrap();
        let single =
            shape.single(&strategies(&profile, dtype, GUIDANCE_BRANCHES, None)[0], dtype).unwrap();
        single.problem().to_string()
    }

    #[test]
    fn names_are_unique() {
        let shapes = shapes();
        let names: BTreeSet<&str> = shapes.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names.len(), shapes.len());
    }

    #[test]
    fn storage_is_the_compilers() {
        let norm = "layer_norm 4096x320";
        let found = problem("nvidia", DType::F16, norm);
        assert_eq!(found, "f16[4096,320] x f32[320] x f32[320] -> f16[4096,320] eps=1e-5");
        let matmul = "matmul 4096x2560x320";
        let found = problem("cpu-avx2", DType::F16, matmul);
        assert_eq!(found, "f32[4096,320] x f16[2560,320] -> f32[4096,2560]");
        let found = problem("gpu", DType::F32, matmul);
        assert_eq!(found, "f32[4096,320] x f32[2560,320] -> f32[4096,2560]");
        let found = problem("cpu-avx2", DType::F32, "conv3x3 1280->1280@8x8 int8/64");
        assert!(found.starts_with("f32[1,8,8,1280] x i8[1280,1280,3,3] -> "), "{found}");
    }

    #[test]
    fn all_have_kernels_on_every_profile() {
        for name in ["cpu-avx2", "gpu", "nvidia", "mali-g78", "adreno"] {
            let (_, profile) = DeviceProfile::load(name).unwrap();
            let strategy = strategies(&profile, DType::F16, GUIDANCE_BRANCHES, None)[0];
            for shape in shapes() {
                let single = shape.single(&strategy, DType::F16).unwrap();
                assert!(
                    !candidates(&single.problem(), &profile.target).is_empty(),
                    "{}",
                    shape.name
                );
            }
        }
    }
}
