//! Kernels of [`kiln_ir::ops::group_norm`].

use crate::contraction::Source;
use crate::elementwise::Shares;
use crate::launch::{Call, cpu, floating, literal};
use crate::template::{Parameters, render};
use crate::{
    Argument, DeviceClass, Family, Launch, Lowering, Needs, Problem, Slot, Target, Variant,
};
use anyhow::{Result, bail};
use kiln_ir::ops::epilogue::Activation;
use kiln_ir::{DType, NormOperands, Op};

/// The variants, best first.
pub const VARIANTS: &[Variant] =
    &[GROUPED, Variant::new("chunked", computes, chunked), Variant::naive(computes, naive)];

/// This folder's line of the registry.
pub const FAMILIES: &[Family] = &[Family { op: "group_norm", variants: VARIANTS }];

/// Bytes of a cache line of a CPU.
const LINE_BYTES: u64 = 64;
/// Number of rows that are reduced in registers together.
const TILE_ROWS: usize = 8;

/// Scratch buffers of `chunked`, in the order of [`Lowering::scratch_bytes`].
const MEANS: usize = 0;
const SQUARES: usize = 1;
const SHIFT: usize = 2;
const FACTOR: usize = 3;

/// Launches that compute the statistics, and their scratch memory.
pub(crate) struct Statistics {
    /// The launches in order. The first two scratch buffers have the partial moments.
    pub launches: Vec<Launch>,
    /// Bytes of each of these two buffers.
    pub partial_bytes: u64,
}

/// The op's extents.
#[derive(Clone)]
pub(crate) struct Extents {
    pub n: usize,
    pub rows: usize,
    /// Channels of each source.
    pub sources: Vec<usize>,
    /// Channels of all sources.
    pub channels: usize,
    pub groups: usize,
    pub eps: f32,
    pub silu: bool,
    pub operands: NormOperands,
}

impl Extents {
    pub fn new(problem: &Problem) -> Result<Self> {
        let (operands, groups, eps, silu) = match problem.op {
            Op::GroupNorm(op) => {
                (op.operands(), op.groups, op.eps, op.activation == Activation::Silu)
            }
            Op::GroupAffine(op) => (op.operands(), op.groups, op.eps, false),
            _ => bail!("group normalization over another op"),
        };
        let x = &problem.inputs[0].ty;
        Ok(Self {
            n: x.batch(),
            rows: x.rows() / x.batch(),
            sources: problem.inputs[..operands.sources].iter().map(|o| o.ty.channels()).collect(),
            channels: problem.output.channels(),
            groups,
            eps,
            silu,
            operands,
        })
    }

    /// Sets the parameters of every template.
    pub fn set<'a>(&self, call: Call<'a>) -> Call<'a> {
        call.set("rows", &self.rows)
            .set("channels", &self.channels)
            .set("width", &(self.channels / self.groups))
            .set("eps", &literal(self.eps))
            .set("silu", &self.silu)
    }

    /// A call that reads sources, scales and shifts and writes the op's result, named `output`.
    pub fn in_one_launch<'a>(&self, problem: &'a Problem<'a>, output: &'static str) -> Call<'a> {
        let (first, second) = (self.sources[0], self.sources.get(1).copied().unwrap_or(0));
        let mut call = Call::new(problem).input("X0", 0);
        if second > 0 {
            call = call.input("X1", 1);
        }
        let call = call
            .input("GAMMA", self.operands.gamma)
            .input("BETA", self.operands.beta)
            .output(output)
            .set("first", &first)
            .set("second", &second);
        self.set(call)
    }

    /// Number of channels before those of a source.
    fn base(&self, source: usize) -> usize {
        self.sources[..source].iter().sum()
    }

    fn set_source<'a>(&self, call: Call<'a>, source: usize) -> Call<'a> {
        self.set(call).set("x_channels", &self.sources[source]).set("base", &self.base(source))
    }

    /// Rows of a chunk. A CPU gets few chunks a core, because combining them costs time. A GPU gets
    /// enough work-items for all its units, but no more chunks than one work-group combines
    /// quickly.
    fn chunk_rows(&self, target: &Target) -> usize {
        let units = target.compute_units.max(1) as usize;
        let rows = if cpu(target) {
            self.rows.div_ceil(8 * units)
        } else {
            let vectors = self.n * self.rows * self.channels.div_ceil(4);
            let least = if target.class == DeviceClass::Gpu { FEWEST_ROWS } else { 0 };
            (vectors / (VECTORS_PER_UNIT * units)).clamp(least, MOST_CHUNK_ROWS)
        };
        rows.next_multiple_of(TILE_ROWS).max(TILE_ROWS)
    }
}

fn computes(problem: &Problem, target: &Target) -> bool {
    let few = matches!(problem.op, Op::GroupNorm(op) if op.sources <= 2);
    few && floating(problem, target)
}

/// Rows of a chunk at least, on a discrete GPU. With fewer rows, combining the chunks takes longer
/// than computing their moments.
const FEWEST_ROWS: usize = 32;
/// Rows of a chunk at most, on GPUs.
const MOST_CHUNK_ROWS: usize = 256;
/// Vectors of four elements for each compute unit of a GPU: several vectors a work-item, and enough
/// work-items to hide memory latency.
const VECTORS_PER_UNIT: usize = 1024;
/// Elements that a work-item keeps in registers at most. Reading more takes longer than an
/// additional launch.
const MOST_ELEMENTS: usize = 48;
/// Elements of a work-item at least. With fewer elements the GPU has more work-items than it needs
/// to hide memory latency.
const FEWEST_ELEMENTS: usize = 8;
/// Work-items of a work-group at most: the limit that every discrete GPU allows.
const MOST_WORK_ITEMS: u32 = 1024;

/// The largest power of two that the target allows as a work-group.
fn most_work_items(target: &Target) -> usize {
    1 << target.max_work_group.clamp(1, MOST_WORK_ITEMS).ilog2()
}

/// `grouped`, for a normalization or for its scales and shifts.
pub(crate) const GROUPED: Variant = Variant {
    needs: Needs::class(DeviceClass::Gpu),
    one_launch: true,
    ..Variant::new("grouped", grouped_computes, grouped)
};

/// Whether a work-group holds a group of channels.
fn grouped_computes(problem: &Problem, target: &Target) -> bool {
    let most = most_work_items(target);
    let few = |e: Extents| {
        e.sources.len() <= 2
            && e.rows * (e.channels / e.groups) <= MOST_ELEMENTS * most
            && 4 * most as u64 <= target.local_mem_bytes
    };
    floating(problem, target) && Extents::new(problem).is_ok_and(few)
}

/// One launch. A work-group has a group of channels or a part of it.
fn grouped(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let width = e.channels / e.groups;
    let v = if width.is_multiple_of(2) && e.sources[0].is_multiple_of(2) { 2 } else { 1 };
    let most = most_work_items(target);
    let group =
        (e.rows * width).div_ceil(FEWEST_ELEMENTS).next_power_of_two().clamp(32.min(most), most);
    let each = (e.rows * width / v).div_ceil(group);
    let affine = matches!(problem.op, Op::GroupAffine(_));
    // Enough work-groups to fill the device: with more of them, each normalizes fewer elements.
    let units = target.compute_units.max(1) as usize;
    let shares = if affine { 1 } else { (units / (e.groups * e.n)).clamp(1, each) };
    let of_share = each.div_ceil(shares);
    let call = e.in_one_launch(problem, if affine { "AFFINE" } else { "OUT" });
    let call = call
        .set("group", &group)
        .set("v", &v)
        .set("each", &each)
        .set("of_share", &of_share)
        .set("affine", &affine)
        .set("out", &problem.output.dtype.to_string())
        .local_mem_bytes(4 * group as u64);
    let template = include_str!("grouped.cl.tera");
    let global = [e.groups * group, e.n, each.div_ceil(of_share)];
    let launch = call.launch("group_norm_grouped", template, global, Some([group, 1, 1]))?;
    Ok(Lowering::of(launch))
}

fn chunked(problem: &Problem, target: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let Statistics { mut launches, partial_bytes } = statistics(problem, target, &e)?;
    let of_channels = 4 * (e.n * e.channels) as u64;
    for source in 0..e.sources.len() {
        launches.push(apply(problem, target, &e, source)?);
    }
    Ok(Lowering {
        launches,
        scratch_bytes: vec![partial_bytes, partial_bytes, of_channels, of_channels],
        ..Lowering::default()
    })
}

/// The launches of `chunked` up to each channel's statistics. Their result is scratch memory for
/// normalization, otherwise the op's output.
pub(crate) fn statistics(problem: &Problem, target: &Target, e: &Extents) -> Result<Statistics> {
    let chunk_rows = e.chunk_rows(target);
    let chunks = e.rows.div_ceil(chunk_rows);
    let mut launches = vec![];
    for source in 0..e.sources.len() {
        launches.push(moments(problem, target, e, source, chunk_rows, chunks)?);
    }
    launches.push(combine(problem, target, e, (chunk_rows, chunks), MEANS)?);
    Ok(Statistics { launches, partial_bytes: 4 * (e.n * chunks * e.channels) as u64 })
}

fn moments(
    problem: &Problem,
    target: &Target,
    e: &Extents,
    source: usize,
    chunk_rows: usize,
    chunks: usize,
) -> Result<Launch> {
    let ty = &problem.inputs[source].ty;
    let argument = Argument::Input { index: source, offset_bytes: 0, len_bytes: ty.size_bytes() };
    let first_chunk = Argument::U32(0);
    let of_source = Moments { argument, dtype: ty.dtype, source, chunk_rows, chunks, first_chunk };
    of_source.launch(target, e, MEANS)
}

/// The moments of `chunks` chunks of `chunk_rows` rows each of the only source, which is bound
/// elsewhere, into the two scratch buffers from `scratch` on. The launch waits for
/// [`Slot::FirstChunk`].
pub(crate) fn moments_of_chunks(
    source: &Source,
    target: &Target,
    e: &Extents,
    (chunk_rows, chunks): (usize, usize),
    scratch: usize,
) -> Result<Launch> {
    let (argument, dtype) = (source.argument.clone(), source.dtype);
    let first_chunk = Argument::Late(Slot::FirstChunk);
    let of_source = Moments { argument, dtype, source: 0, chunk_rows, chunks, first_chunk };
    let mut launch = of_source.launch(target, e, scratch)?;
    launch.bytes = Some((e.rows * e.channels) as u64 * dtype.size_bytes());
    Ok(launch)
}

struct Moments {
    argument: Argument,
    dtype: DType,
    /// Index of the source.
    source: usize,
    chunk_rows: usize,
    chunks: usize,
    first_chunk: Argument,
}

impl Moments {
    fn launch(self, target: &Target, e: &Extents, scratch: usize) -> Result<Launch> {
        let x_channels = e.sources[self.source];
        let mut shares = Shares::new(self.chunks, x_channels, 1, target);
        if cpu(target) {
            shares.run = x_channels;
            shares.global = [1, self.chunks, 1];
        }
        shares.global[2] = e.n;
        let base = e.base(self.source);
        let parameters = shares
            .parameters(Parameters::new(), &[x_channels, e.channels, base])
            .set("x_channels", &x_channels)
            .set("line", &(LINE_BYTES / self.dtype.size_bytes()));
        let template = include_str!("chunked_moments.cl.tera");
        let tensors = [("X", self.dtype), ("MEANS", DType::F32), ("SQUARES", DType::F32)];
        let partial = |index| Argument::Scratch { index: scratch + index, written: true };
        let mut args = vec![self.argument, partial(MEANS), partial(SQUARES)];
        let extents = [e.rows, self.chunk_rows, self.chunks, e.channels, base];
        args.extend(extents.map(|extent| Argument::U32(extent as u32)));
        args.push(self.first_chunk);
        let text = render(template, &tensors, &parameters)?;
        let launch = shares.launch(text, "group_norm_moments", args);
        Ok(Launch { flops: 5 * (e.n * e.rows * x_channels) as u64, ..launch })
    }
}

/// Combines the moments in the two scratch buffers from `scratch` on.
pub(crate) fn combine(
    problem: &Problem,
    target: &Target,
    e: &Extents,
    (chunk_rows, chunks): (usize, usize),
    scratch: usize,
) -> Result<Launch> {
    let partials = chunks * e.channels / e.groups;
    let most = u64::from(target.max_work_group).min(target.local_mem_bytes / 4).clamp(1, 256);
    let most = 1usize << most.ilog2();
    let group = if cpu(target) { 1 } else { partials.next_power_of_two().min(most) };
    let call = Call::new(problem)
        .flops(5 * (e.n * chunks * e.channels) as u64)
        .scratch("MEANS", scratch + MEANS, false)
        .scratch("SQUARES", scratch + SQUARES, false)
        .input("GAMMA", e.operands.gamma);
    let affine = matches!(problem.op, Op::GroupAffine(_));
    let call = match affine {
        true => call.input("BETA", e.operands.beta).output("AFFINE"),
        false => call.scratch("SHIFT", SHIFT, true).scratch("FACTOR", FACTOR, true),
    };
    // One program for all feature maps: it takes little time, and each program takes memory.
    let call = call
        .numbers(&[e.channels, e.channels / e.groups, e.rows, chunk_rows, chunks])
        .set("affine", &affine)
        .set("group", &group)
        .set("eps", &literal(e.eps))
        .local_mem_bytes(if group > 1 { 4 * group as u64 } else { 0 });
    let template = include_str!("chunked_combine.cl.tera");
    let global = [e.groups * group, e.n, 1];
    call.launch("group_norm_combine", template, global, Some([group, 1, 1]))
}

fn apply(problem: &Problem, target: &Target, e: &Extents, source: usize) -> Result<Launch> {
    let x_channels = e.sources[source];
    let mut shares = Shares::new(e.rows, x_channels, TILE_ROWS, target);
    shares.global[2] = e.n;
    let per_element = if e.silu { 6 } else { 2 };
    let call = Call::new(problem)
        .flops(per_element * (e.n * e.rows * x_channels) as u64)
        .input("X", source)
        .scratch("SHIFT", SHIFT, false)
        .scratch("FACTOR", FACTOR, false)
        .input("BETA", e.operands.beta)
        .output("OUT");
    let strides = [x_channels, e.channels, e.base(source)];
    let call = shares.set(e.set_source(call, source), &strides);
    let template = include_str!("chunked_apply.cl.tera");
    call.launch("group_norm_apply", template, shares.global, Some(shares.local))
}

fn naive(problem: &Problem, _: &Target) -> Result<Lowering> {
    let e = Extents::new(problem)?;
    let call = e.in_one_launch(problem, "OUT");
    let template = include_str!("naive.cl.tera");
    let launch = call.launch("group_norm_naive", template, [e.groups, e.n, 1], None)?;
    Ok(Lowering::of(launch))
}
