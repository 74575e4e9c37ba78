//! What matmul and conv2d share: one normal form of the problem, the fetch of A, the epilogue,
//! the split of large weights, and the register-tile kernels of each device class.
//!
//! Both ops are `OUT[m, n] = epilogue(sum_k A[m, k] * W[n, k])`. Row `m` is a token or an output
//! pixel; `k` runs over `[ky][kx][c]`, `c` over the channels of all sources in turn. A is never
//! stored: [`Geometry`] says where row `m` of tap `(ky, kx)` lies in a source.

pub mod chain;
pub mod cpu;
mod geometry;
pub mod gpu;
mod lines;
pub mod mma;
pub mod mobile;
mod split;
pub mod stripe;
mod views;
pub mod winograd;

use crate::packing::{FragmentPanel, QuantizedPanel};
use crate::template::Parameters;
use crate::{Argument, DeviceClass, Launch, Lowering, Packing, Problem, Target};
use anyhow::{Context as _, Result};
pub use geometry::Geometry;
use kiln_ir::ops::epilogue::{Activation, Epilogue};
use kiln_ir::{ContractionOperands, DType, Op, TensorType};
pub use split::{Split, splits};
use views::{EpilogueView, PrologueView, Quantization, SourceView};

/// Declares the functions and components of the epilogue.
pub const EPILOGUE: &str = include_str!("epilogue.cl.tera");

/// Names of the sources in templates; also the most that a kernel reads as one.
pub const SOURCE_NAMES: [&str; 4] = ["A0", "A1", "A2", "A3"];

/// Places of the sum that may share a scale of INT8 weights, beside all of them.
pub const BLOCKS: [usize; 5] = [256, 128, 64, 32, 16];

/// A tensor that is read as part of A.
#[derive(Clone, Debug)]
pub struct Source {
    /// What to bind.
    pub argument: Argument,
    /// Elements between two rows (pixels); the channels that one tap reads.
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
    /// What becomes of their elements before they are multiplied; padding stays zero.
    pub prologue: Option<Prologue>,
    /// Where the rows of A lie.
    pub geometry: Geometry,
    /// Accumulator columns: twice the stored ones for GEGLU.
    pub n: usize,
    /// Stored columns.
    pub out_n: usize,
    /// Length of the sum.
    pub k: usize,
    /// Storage type of the weights.
    pub weight_dtype: DType,
    operands: ContractionOperands<usize>,
    /// Row of the output at which A's first row is stored, if A holds some of the rows only.
    first_row: Option<usize>,
    /// Scratch memory that a kernel may take if it can do with less.
    max_scratch_bytes: u64,
}

/// `activation(x * scale[picture, c] + shift[picture, c])` for each element `x` of the sources.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Prologue {
    /// Index of the scales and shifts `[N, 2, C]` among the inputs.
    pub affine: usize,
    /// Their storage type.
    pub dtype: DType,
    /// `None` or `Silu`.
    pub activation: Activation,
}

impl<'a> Contraction<'a> {
    /// The normal form of a matmul or conv2d; `None` for another op or too many sources.
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
            first_row: None,
            max_scratch_bytes: problem.max_scratch_bytes,
        })
    }

    /// The same sums, with A found elsewhere (in scratch memory), normalized there already.
    pub fn with_sources(self, sources: Vec<Source>, geometry: Geometry) -> Self {
        Self { sources, geometry, prologue: None, ..self }
    }

    /// Rows of A and of the output.
    pub fn m(&self) -> usize {
        self.geometry.rows_total()
    }

    /// Channels of all sources.
    pub fn channels(&self) -> usize {
        self.sources.iter().map(|s| s.channels).sum()
    }

    /// GEGLU: value and gate columns belong together.
    pub fn gated(&self) -> bool {
        self.epilogue.activation == Activation::Geglu
    }

    /// Storage type of the output.
    pub fn output_dtype(&self) -> DType {
        self.problem.output.dtype
    }

    /// Places of the sum that share a scale, for INT8 weights.
    pub fn block(&self) -> usize {
        self.problem.inputs[self.operands.weights].block
    }

    /// The weights are constant and INT8, in blocks that no source's channels cut; all else is
    /// floating point.
    pub fn quantized(&self) -> bool {
        let float = |d: DType| matches!(d, DType::F32 | DType::F16);
        let inputs = &self.problem.inputs;
        let others = inputs.iter().enumerate().filter(|(i, _)| *i != self.operands.weights);
        let block = self.block();
        let divides = |s: &Source| s.channels.is_multiple_of(block);
        let whole =
            block == self.k || (BLOCKS.contains(&block) && self.sources.iter().all(divides));
        self.weight_dtype == DType::I8
            && inputs[self.operands.weights].constant
            && others.map(|(_, i)| i).all(|i| float(i.ty.dtype))
            && self.bias().is_none_or(|i| inputs[i].constant)
            && float(self.problem.output.dtype)
            && whole
    }

    /// Weights and bias may be packed into panels.
    pub fn panels(&self) -> bool {
        self.packable() || self.quantized()
    }

    /// Index of the bias among the inputs.
    pub fn bias(&self) -> Option<usize> {
        self.operands.bias
    }

    /// Weights and bias may be packed, and every storage type is a floating-point one.
    pub fn packable(&self) -> bool {
        let constant = |i: usize| self.problem.inputs[i].constant;
        self.floating() && constant(self.operands.weights) && self.bias().is_none_or(constant)
    }

    /// Every storage type is a floating-point one.
    pub fn floating(&self) -> bool {
        let float = |d: DType| matches!(d, DType::F32 | DType::F16);
        self.problem.inputs.iter().all(|i| float(i.ty.dtype)) && float(self.problem.output.dtype)
    }

    /// Packings of weights and bias for panels of `width` columns.
    pub fn panel_packings(&self, width: usize) -> Vec<(usize, Packing)> {
        let gated = self.gated();
        let panels = |i: usize| match self.problem.inputs[i].ty.dtype {
            DType::I8 => (i, Packing::QuantizedPanels { width, block: self.block(), gated }),
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
                DType::I8 => {
                    (i, Packing::QuantizedPanels { width: 1, block: self.block(), gated: false })
                }
                dtype => (i, Packing::RowMajor(dtype)),
            })
            .collect()
    }

    /// The source whose memory an output could take line by line: the only one, of its type, each line
    /// of which is read for that line of output and its neighbours.
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

    /// Tensors by their names in templates.
    pub fn tensors(&self) -> Vec<(&'static str, DType)> {
        let inputs = &self.problem.inputs;
        let mut list: Vec<_> =
            SOURCE_NAMES.iter().copied().zip(self.sources.iter().map(|s| s.dtype)).collect();
        list.extend(self.prologue.map(|p| ("AFFINE", p.dtype)));
        list.push(("W", self.weight_dtype));
        let o = &self.operands;
        let epilogue = [("BIAS", o.bias), ("ROW", o.row), ("RES", o.residual)];
        let present = |(name, index): (_, Option<usize>)| Some((name, inputs[index?].ty.dtype));
        list.extend(epilogue.into_iter().filter_map(present));
        list.push(("OUT", self.problem.output.dtype));
        list
    }

    /// Parameters that every template of the family may use.
    pub fn parameters(&self) -> Parameters {
        let mut first = 0;
        let view = |(s, name): (&Source, &'static str)| {
            let half = s.dtype == DType::F16;
            let view = SourceView { name, channels: s.channels, first, half };
            first += s.channels;
            view
        };
        let sources: Vec<_> = self.sources.iter().zip(SOURCE_NAMES).map(view).collect();
        let act = match self.epilogue.activation {
            Activation::None => "none",
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::Geglu => "geglu",
        };
        let epilogue = EpilogueView {
            bias: self.epilogue.bias,
            row: self.epilogue.row_offset.is_some(),
            act,
            residual: self.epilogue.residual,
            gated: self.gated(),
            part: self.first_row.is_some(),
        };
        let prologue =
            self.prologue.map(|p| PrologueView { silu: p.activation == Activation::Silu });
        Parameters::new()
            .set("sources", &sources)
            .set("p", &prologue)
            .set("e", &epilogue)
            .set("g", &self.geometry)
            .set("m", &self.m())
            .set("n", &self.n)
            .set("out_n", &self.out_n)
            .set("k", &self.k)
            .set("channels", &self.channels())
            .set("q", &self.quantized().then(|| self.quantization(1)))
    }

    fn quantization(&self, width: usize) -> Quantization {
        let panel = QuantizedPanel::new(self.k, width, self.block());
        let block = self.block();
        let whole = block == self.k;
        Quantization { block, whole, weights_at: panel.weights_at, panel: panel.len }
    }

    /// [`Contraction::parameters`] of a kernel whose panels are [`Fragments`](crate::packing::Fragments).
    fn fragment_parameters(&self, panel: FragmentPanel) -> Parameters {
        let size = self.weight_dtype.size_bytes() as usize;
        let q = match self.weight_dtype {
            DType::F32 => Some((self.k, true)),
            _ => self.quantized().then(|| self.block()).map(|block| (block, block == self.k)),
        };
        let q = q.map(|(block, whole)| {
            let (weights_at, panel) = (panel.weights_at / size, panel.len);
            Quantization { block, whole, weights_at, panel }
        });
        let elements = panel.len / size;
        self.parameters().set("q", &q).set("panel", &elements).set("step_bytes", &panel.step_bytes)
    }

    /// [`Contraction::parameters`] of a kernel that reads panels of `width` columns. `panel` is
    /// their distance in elements of W.
    pub fn panel_parameters(&self, width: usize) -> Parameters {
        let q = self.quantized().then(|| self.quantization(width));
        let panel = q.as_ref().map_or(width * self.k, |q| q.panel);
        self.parameters().set("q", &q).set("panel", &panel).set("width", &width)
    }

    /// Arguments of a launch over the output columns of `split`; the first row, if any, is the last.
    pub fn arguments(&self, split: &Split) -> Vec<Argument> {
        let mut args: Vec<_> = self.sources.iter().map(|s| s.argument.clone()).collect();
        args.extend(self.affine());
        args.push(split.weights(self.operands.weights));
        args.extend(self.epilogue_arguments(split));
        args
    }

    /// Those of [`Contraction::arguments`] behind the weights.
    fn epilogue_arguments(&self, split: &Split) -> Vec<Argument> {
        let mut args = vec![];
        args.extend(self.operands.bias.map(|bias| split.bias(bias)));
        let read_whole = self.operands.row.into_iter().chain(self.operands.residual);
        args.extend(read_whole.map(|index| whole(self.problem, index)));
        args.push(Argument::Output);
        args.push(Argument::U32(split.first_column as u32));
        args.extend(self.epilogue.row_offset.map(|o| Argument::U32(o as u32)));
        args.extend(self.first_row.map(|row| Argument::U32(row as u32)));
        args
    }

    /// One launch a split: the same program over its own columns.
    ///
    /// `entry` is the kernel's name, `global` the work size for a number of units (panels or
    /// columns).
    pub fn launches(
        &self,
        template: &str,
        parameters: &Parameters,
        entry: &'static str,
        splits: &[Split],
        global: impl Fn(usize) -> ([u64; 3], Option<[u64; 3]>),
    ) -> Result<Vec<Launch>> {
        let text = [EPILOGUE, template].concat();
        let source = crate::template::render(&text, &self.tensors(), parameters)
            .with_context(|| format!("kernel {entry}"))?;
        let launch = |split: &Split| {
            let (global, local) = global(split.units);
            let before = split.first_column * (self.n / self.out_n);
            let columns = split.accumulators.min(self.n - before);
            Launch {
                source: source.clone(),
                entry,
                args: self.arguments(split),
                global,
                local,
                local_mem_bytes: 0,
                flops: 2 * (self.m() * self.k * columns) as u64,
                half_arithmetic: false,
                bytes: None,
            }
        };
        Ok(splits.iter().map(launch).collect())
    }

    /// The ranges of panels that each launch reads; `workers` is how many compute panels side by side.
    pub fn panel_splits(&self, width: usize, workers: usize) -> Vec<Split> {
        let panels = crate::packing::panel_count(self.n, width, self.gated());
        let (bytes, most) = (self.panel_bytes(width), self.problem.max_weight_bytes);
        self.unit_splits(panels, width, self.out_width(width), bytes, most, workers)
    }

    /// Stored columns of a panel of `width` accumulator columns.
    pub fn out_width(&self, width: usize) -> usize {
        if self.gated() { width / 2 } else { width }
    }

    /// The ranges of output columns that each launch of a row-major kernel reads; `None` if
    /// GEGLU's two halves do not fit one launch.
    pub fn column_splits(&self) -> Option<Vec<Split>> {
        let most = self.problem.max_weight_bytes;
        if self.gated() {
            let bytes = self.n as u64 * self.panel_bytes(1);
            let one = self.unit_splits(1, self.n, self.out_n, bytes, most, 1);
            return (bytes <= most).then_some(one);
        }
        Some(self.unit_splits(self.n, 1, 1, self.panel_bytes(1), most, 1))
    }

    /// Bytes of the weights of `width` columns, scales included.
    pub fn panel_bytes(&self, width: usize) -> u64 {
        match self.weight_dtype {
            DType::I8 => QuantizedPanel::new(self.k, width, self.block().max(1)).len as u64,
            dtype => (width * self.k) as u64 * dtype.size_bytes(),
        }
    }

    fn unit_splits(
        &self,
        units: usize,
        width: usize,
        out_width: usize,
        weight_bytes: u64,
        max_bytes: u64,
        workers: usize,
    ) -> Vec<Split> {
        let bias_dtype = self.bias().map(|i| self.problem.inputs[i].ty.dtype);
        let bias_bytes = bias_dtype.map_or(0, |d| width as u64 * d.size_bytes());
        splits(units, width, out_width, weight_bytes, bias_bytes, max_bytes, workers)
    }

    /// The one thread-per-element lowering: `naive` of both ops.
    pub fn lower_naive(&self, template: &str, entry: &'static str) -> Result<Lowering> {
        let splits = self.column_splits().context("GEGLU weights exceed one launch")?;
        let rows = self.m() as u64;
        let launches = self.launches(template, &self.parameters(), entry, &splits, |units| {
            let columns = if self.gated() { self.out_n } else { units };
            ([columns as u64, rows, 1], None)
        })?;
        Ok(Lowering { launches, packings: self.row_major_packings(), ..Lowering::default() })
    }
}

/// Whether the device class' own kernel can compute a problem.
pub fn tiled_applies(problem: &Problem, target: &Target) -> bool {
    match target.class {
        DeviceClass::Cpu => cpu::applies(problem, target),
        DeviceClass::Gpu => gpu::applies(problem, target),
        DeviceClass::MobileGpu => mobile::applies(problem, target),
    }
}

/// The launches of the device class' own kernel.
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
