//! Common parts of matmul and conv2d: one normal form of the problem, the fetch of A, the epilogue,
//! the split of large weights, and the kernels of each device class.
//!
//! Both ops are `OUT[m, n] = epilogue(sum_k A[m, k] * W[n, k])`. Row `m` is a token or an output
//! pixel. `k` runs over `[ky][kx][c]`, and `c` over the channels of all sources in turn. A is never
//! stored: [`Geometry`] gives the position of row `m` of tap `(ky, kx)` in a source.

pub mod cpu;
pub mod dot;
mod geometry;
pub mod gpu;
mod launches;
pub mod mobile;
mod parameters;
pub mod rounding;
mod split;
pub mod stripes;
pub mod tensor_cores;
pub mod winograd;

use crate::packing::Order;
use crate::{Argument, DeviceClass, Lowering, Packing, Problem, Target, Tiling, Variant};
use anyhow::{Context as _, Result};
pub use geometry::Geometry;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::{ContractionOperands, DType, Op, TensorType};
pub use split::{Split, splits};

/// Names of the sources in templates. Their number is the largest number of sources of a kernel.
pub const SOURCE_NAMES: [&str; 4] = ["A0", "A1", "A2", "A3"];

/// Sizes of INT8 scale groups along K, largest first. A tensor may also use one scale for all of K.
pub const SCALE_GROUPS: [usize; 5] = [256, 128, 64, 32, 16];

/// A tensor that is read as part of A.
#[derive(Clone, Debug)]
pub struct Source {
    /// The tensor to bind.
    pub argument: Argument,
    /// Elements between two rows (pixels). A tap reads as many channels.
    pub channels: usize,
    /// Storage type.
    pub dtype: DType,
}

/// A matmul or convolution in normal form.
#[derive(Clone, Debug)]
pub struct Contraction<'a> {
    problem: &'a Problem<'a>,
    /// The op's epilogue.
    pub epilogue: &'a Epilogue,
    /// Tensors read as one along channels.
    pub sources: Vec<Source>,
    /// Function of the sources' elements before they are multiplied. Padding stays zero.
    pub prologue: Option<Prologue>,
    /// Position of the rows of A.
    pub geometry: Geometry,
    /// Accumulator columns: twice the stored ones for GEGLU.
    pub n: usize,
    /// Stored columns.
    pub out_n: usize,
    /// Length of the reduction axis.
    pub k: usize,
    /// Storage type of the weights.
    pub weight_dtype: DType,
    operands: ContractionOperands<usize>,
    /// Whether A holds only a stripe of the rows. [`Slot::FirstRow`] gives launches the first one.
    striped: bool,
    /// Limit of optional scratch memory, in bytes.
    max_scratch_bytes: u64,
}

/// The function `activation(x * scale[n, c] + shift[n, c])` of each element `x` of the sources.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prologue {
    /// Index of the scales and shifts `[N, 2, C]` among the inputs.
    pub affine: usize,
    /// Storage type of the scales and shifts.
    pub dtype: DType,
    /// `None` or `Silu`.
    pub activation: Activation,
}

impl<'a> Contraction<'a> {
    /// The normal form of a matmul or conv2d. `None` for another op or too many sources.
    pub fn new(problem: &'a Problem<'a>) -> Option<Self> {
        let types: Vec<_> = problem.inputs.iter().map(|i| &i.ty).collect();
        let operands = problem.op.contraction()?;
        if operands.sources.len() > SOURCE_NAMES.len() {
            return None;
        }
        let (prologue, epilogue, geometry) = match problem.op {
            Op::Matmul(op) => (None, &op.epilogue, Geometry::rows(types[0].rows())),
            Op::Conv2d(op) => {
                let geometry = Geometry::window(op, types[0].nhwc()?, problem.output);
                (op.prologue, &op.epilogue, geometry)
            }
            _ => return None,
        };
        let prologue = operands.affine.zip(prologue).map(|(affine, activation)| Prologue {
            affine,
            dtype: types[affine].dtype,
            activation,
        });
        let sources = operands.sources.iter().map(|i| Source {
            argument: whole(problem, *i),
            channels: types[*i].channels(),
            dtype: types[*i].dtype,
        });
        let weights = types[operands.weights];
        let n = weights.shape[0];
        Some(Self {
            problem,
            epilogue,
            sources: sources.collect(),
            prologue,
            geometry,
            n,
            out_n: epilogue.out_channels(n),
            k: weights.elem_count() / n,
            weight_dtype: weights.dtype,
            operands,
            striped: false,
            max_scratch_bytes: problem.max_scratch_bytes,
        })
    }

    /// The same contraction with other sources (in scratch memory), which are already normalized.
    pub fn with_sources(self, sources: Vec<Source>, geometry: Geometry) -> Self {
        Self { sources, geometry, prologue: None, ..self }
    }

    /// Number of rows of A and of the output.
    pub fn m(&self) -> usize {
        self.geometry.rows_total()
    }

    /// Number of channels of all sources.
    pub fn channels(&self) -> usize {
        self.sources.iter().map(|s| s.channels).sum()
    }

    /// Whether the epilogue is GEGLU. Value and gate columns then belong together.
    pub fn gated(&self) -> bool {
        self.epilogue.activation == Activation::Geglu
    }

    /// Storage type of the output.
    pub fn output_dtype(&self) -> DType {
        self.problem.output.dtype
    }

    /// Size of a scale group of INT8 weights: the number of K indices that share a scale.
    pub fn scale_group(&self) -> usize {
        self.problem.inputs[self.operands.weights].scale_group
    }

    /// Whether the weights are constant and INT8, each scale group lies within a source's channels,
    /// and everything else is floating point.
    pub fn quantized(&self) -> bool {
        let float = |d: DType| matches!(d, DType::F32 | DType::F16);
        let inputs = &self.problem.inputs;
        let others = inputs.iter().enumerate().filter(|(i, _)| *i != self.operands.weights);
        let group = self.scale_group();
        let divides = |s: &Source| s.channels.is_multiple_of(group);
        let whole =
            group == self.k || (SCALE_GROUPS.contains(&group) && self.sources.iter().all(divides));
        self.weight_dtype == DType::I8
            && inputs[self.operands.weights].constant
            && others.map(|(_, i)| i).all(|i| float(i.ty.dtype))
            && self.bias().is_none_or(|i| inputs[i].constant)
            && float(self.problem.output.dtype)
            && whole
    }

    /// Whether weights and bias may be packed into panels.
    pub fn panels(&self) -> bool {
        self.packable() || self.quantized()
    }

    /// Index of the bias among the inputs.
    pub fn bias(&self) -> Option<usize> {
        self.operands.bias
    }

    /// Whether weights and bias may be packed, and every storage type is floating point.
    pub fn packable(&self) -> bool {
        let constant = |i: usize| self.problem.inputs[i].constant;
        self.floating() && constant(self.operands.weights) && self.bias().is_none_or(constant)
    }

    /// Whether every storage type is floating point.
    pub fn floating(&self) -> bool {
        let float = |d: DType| matches!(d, DType::F32 | DType::F16);
        self.problem.inputs.iter().all(|i| float(i.ty.dtype)) && float(self.problem.output.dtype)
    }

    /// Packings of weights and bias for panels of `width` columns.
    pub fn panel_packings(&self, width: usize) -> Vec<(usize, Packing)> {
        self.ordered_packings(width, Order::Rows)
    }

    /// [`Contraction::panel_packings`] with an order of INT8 weights.
    pub fn ordered_packings(&self, width: usize, order: Order) -> Vec<(usize, Packing)> {
        let (gated, scale_group) = (self.gated(), self.scale_group());
        let panels = |i: usize| match self.problem.inputs[i].ty.dtype {
            DType::I8 => (i, Packing::QuantizedPanels { width, scale_group, gated, order }),
            dtype => (i, Packing::Panels { width, dtype, gated }),
        };
        std::iter::once(self.operands.weights).chain(self.bias()).map(panels).collect()
    }

    /// Packings of weights and bias for kernels that read one output channel at a time.
    pub fn row_major_packings(&self) -> Vec<(usize, Packing)> {
        let inputs = &self.problem.inputs;
        std::iter::once(self.operands.weights)
            .chain(self.bias())
            .filter(|i| inputs[*i].constant)
            .map(|i| match inputs[i].ty.dtype {
                DType::I8 => (
                    i,
                    Packing::QuantizedPanels {
                        width: 1,
                        scale_group: self.scale_group(),
                        gated: false,
                        order: Order::Rows,
                    },
                ),
                dtype => (i, Packing::RowMajor(dtype)),
            })
            .collect()
    }

    /// The source whose memory an output may reuse line by line. It must be the only source and
    /// have the output's type, and each of its lines must be read only for the same line of output
    /// and its neighbours.
    fn source_in_place(&self, output: &TensorType) -> Option<usize> {
        let [Source { argument: Argument::Input { index, .. }, .. }] = &self.sources[..] else {
            return None;
        };
        let even = self.geometry.stride_y == 1 && !self.geometry.upsample;
        (even && self.problem.inputs[*index].ty == *output).then_some(*index)
    }

    /// The prologue's argument.
    pub fn affine(&self) -> Option<Argument> {
        self.prologue.map(|p| whole(self.problem, p.affine))
    }
}

/// The variant of the device class.
fn tiled(target: &Target) -> &'static Variant {
    match target.class {
        DeviceClass::Cpu => &cpu::VARIANT,
        DeviceClass::Gpu => &gpu::VARIANT,
        DeviceClass::MobileGpu => &mobile::VARIANT,
    }
}

/// Whether the variant of the device class can compute a problem.
pub fn tiled_applies(problem: &Problem, target: &Target) -> bool {
    tiled(target).applies(problem, target)
}

/// Tiles that the variant of the device class offers for tuning.
pub fn tuning(target: &Target) -> Vec<Tiling> {
    (tiled(target).tuning)(target)
}

/// Whether a problem is a contraction whose weights may be packed into panels.
pub fn panels(problem: &Problem, _: &Target) -> bool {
    Contraction::new(problem).is_some_and(|c| c.panels())
}

/// The launches of the variant of the device class, over stripes if the input is normalized.
pub fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let contraction = Contraction::new(problem).context("a contraction over another op")?;
    match contraction.prologue {
        Some(_) => stripes::lower(&contraction, target, lower_tiled),
        None => lower_tiled(&contraction, target),
    }
}

/// Whether the oracle of both ops can compute a problem.
pub fn naive_computes(problem: &Problem, _: &Target) -> bool {
    Contraction::new(problem)
        .is_some_and(|c| (c.floating() || c.quantized()) && c.column_splits().is_some())
}

/// The launches of the kernel of the device class.
pub fn lower_tiled(contraction: &Contraction, target: &Target) -> Result<Lowering> {
    match target.class {
        DeviceClass::Cpu => cpu::lower_contraction(contraction, target),
        DeviceClass::Gpu => gpu::lower_contraction(contraction, target),
        DeviceClass::MobileGpu => mobile::lower_contraction(contraction, target),
    }
}

fn whole(problem: &Problem, index: usize) -> Argument {
    Argument::Input { index, offset_bytes: 0, len_bytes: problem.inputs[index].ty.size_bytes() }
}
