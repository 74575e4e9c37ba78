//! A convolution and its reader, stripe by stripe. The value between them is never whole in memory.
//!
//! For a stripe of the second op's output, the lines of the first op's result that it reads are
//! computed into scratch memory. For a convolution, these lines are then normalized into more
//! scratch memory. Lines of the first op's result that two stripes read are computed twice. Lines
//! of the first op's source that two stripes read are kept.

use super::lines::{Lines, Place, height, inside, put, shared};
use super::{CACHED_BYTES, constant_bytes, lines_form, out_bytes};
use crate::contraction::{Contraction, Geometry, Source, lower_tiled, tiled_applies};
use crate::group_norm::{Extents, combine, moments_of_chunks};
use crate::{Argument, Launch, Lowering, Operand, Problem, Slot, Target};
use anyhow::{Context as _, Result};
use kiln_ir::ops::chain::{Chain, Link};
use kiln_ir::{Op, TensorType};

/// Scratch memory, in the order of [`Lowering::scratch_bytes`]: the lines that the first op's
/// windows see, its result, and the lines that the second op's windows see.
const SEEN: usize = 0;
const BETWEEN: usize = 1;
const NORMALIZED: usize = 2;
/// For statistics, instead of the last one: the moments of chunks, two buffers.
const MOMENTS: usize = 2;

/// A chain as two problems.
pub struct Links<'a> {
    chain: &'a Chain,
    first_op: Op,
    second_op: Op,
    first_inputs: &'a [Operand],
    second_inputs: Vec<Operand>,
    between: TensorType,
    output: &'a TensorType,
    max_scratch_bytes: u64,
}

impl<'a> Links<'a> {
    /// `None` for another op.
    pub fn new(problem: &Problem<'a>) -> Option<Self> {
        let Op::Chain(chain) = problem.op else { return None };
        let Chain { first, second, .. } = chain;
        let types: Vec<_> = problem.inputs.iter().map(|i| &i.ty).collect();
        let between = chain.between(&types).ok()?;
        let (first_inputs, rest) = problem.inputs.split_at(chain.first_inputs());
        let source = std::iter::once(Operand::new(between.clone()));
        Some(Self {
            chain,
            first_op: first.clone().into(),
            second_op: second.op(),
            first_inputs,
            second_inputs: source.chain(rest.iter().cloned()).collect(),
            between,
            output: problem.output,
            max_scratch_bytes: problem.max_scratch_bytes,
        })
    }

    /// The first op. Its weights are not split over launches, because each stripe needs all of
    /// them.
    pub fn first(&self) -> Problem<'_> {
        Problem {
            op: &self.first_op,
            inputs: self.first_inputs,
            output: &self.between,
            max_weight_bytes: u64::MAX,
            max_scratch_bytes: self.max_scratch_bytes,
        }
    }

    /// The second op. Its first input is the first op's result.
    pub fn second(&self) -> Problem<'_> {
        Problem {
            op: &self.second_op,
            inputs: &self.second_inputs,
            output: self.output,
            ..self.first()
        }
    }

    /// A lowering of the first op as a part of the chain's. Its output is scratch memory.
    pub fn of_first(&self, mut lowering: Lowering, between: usize) -> Lowering {
        for argument in lowering.launches.iter_mut().flat_map(|l| &mut l.args) {
            if *argument == Argument::Output {
                *argument = Argument::Scratch { index: between, written: true };
            }
        }
        lowering
    }

    /// A lowering of the second op as a part of the chain's. Its source is scratch memory.
    pub fn of_second(&self, mut lowering: Lowering, between: usize) -> Lowering {
        for argument in lowering.launches.iter_mut().flat_map(|l| &mut l.args) {
            let Argument::Input { index, .. } = argument else { continue };
            match self.chain.second_input(*index) {
                Some(own) => *index = own,
                None => *argument = Argument::Scratch { index: between, written: false },
            }
        }
        for (index, _) in &mut lowering.packings {
            *index = self.chain.second_input(*index).expect("the source is no constant");
        }
        lowering
    }
}

/// Whether a chain can be computed by stripes: the variant of the device class can do both ops, and
/// the first op is a window over one source whose epilogue reads no feature map.
pub fn computes(problem: &Problem, target: &Target) -> bool {
    let Op::Chain(chain) = problem.op else { return false };
    let Some(links) = Links::new(problem) else { return false };
    let tiled = || tiled_applies(&links.second(), target);
    let second = match &chain.second {
        Link::Conv2d(op) => op.kernel > 1 && op.sources == 1 && !op.upsample && tiled(),
        Link::Matmul(op) => op.sources == 1 && tiled(),
        Link::GroupAffine(op) => {
            op.sources == 1 && crate::launch::floating(&links.second(), target)
        }
    };
    second
        && kiln_ir::ops::chain::may_be_first(&chain.first)
        && tiled_applies(&links.first(), target)
}

/// The second op as a reader of each stripe of the first op's result.
enum Reader<'a> {
    /// Reads windows, normalized or not.
    Windows(Contraction<'a>),
    /// Reads rows.
    Rows(Contraction<'a>),
    /// Computes statistics.
    Statistics(Extents),
}

impl Reader<'_> {
    /// The windows over the first op's result, if any.
    fn geometry(&self) -> Option<Geometry> {
        match self {
            Reader::Windows(c) => Some(c.geometry),
            _ => None,
        }
    }

    /// First line and number of lines of the first op's result that are read for `lines` lines from
    /// `line` on.
    fn reads(&self, line: usize, lines: usize) -> (i32, usize) {
        match self.geometry() {
            None => (line as i32, lines),
            Some(g) => {
                let top = (line * g.stride_y) as i32 - g.padding as i32;
                (top, (lines - 1) * g.stride_y + g.kernel)
            }
        }
    }
}

/// The launches of a stripe, independent of its position.
#[derive(Clone)]
struct ChainStripe {
    fill_all: Vec<Launch>,
    carry: Vec<Launch>,
    fill_new: Vec<Launch>,
    first: Lowering,
    normalize: Vec<Launch>,
    second: Lowering,
}

/// Lowers a chain by stripes.
pub fn lower(problem: &Problem, target: &Target) -> Result<Lowering> {
    let links = Links::new(problem).context("a chain over another op")?;
    let (first_problem, second_problem) = (links.first(), links.second());
    let first = Contraction::new(&first_problem).context("a chain of more sources")?;
    let reader = match &links.second_op {
        Op::GroupAffine(_) => Reader::Statistics(Extents::new(&second_problem)?),
        _ => {
            let mut second = Contraction::new(&second_problem).context("a chain's reader")?;
            for source in &mut second.sources {
                source.argument = Argument::Scratch { index: BETWEEN, written: false };
            }
            match second.geometry.pointwise {
                true => Reader::Rows(second),
                false => Reader::Windows(second),
            }
        }
    };
    let [maps, all_lines, ..] = match reader {
        Reader::Statistics(_) => links.between.nhwc(),
        _ => links.output.nhwc(),
    }
    .context("the result of a chain is a feature map")?;
    let build = Build { links: &links, first: &first, reader: &reader, target };
    let most_bytes = problem.max_scratch_bytes.min(CACHED_BYTES);
    let fits = |lines| build.scratch_bytes(lines).iter().sum::<u64>() <= most_bytes;
    let lines = height(all_lines, fits);
    let stride = build.stride();
    let (keep, step) = (build.keep(), lines * stride);
    let carried = step >= keep;
    let chunks = Chunks::new(lines, all_lines, target);
    let mut known: Vec<(usize, ChainStripe)> = vec![];
    let mut launches = vec![];
    for (map, line) in (0..maps).flat_map(|p| (0..all_lines).step_by(lines).map(move |l| (p, l))) {
        let count = lines.min(all_lines - line);
        let index = match known.iter().position(|(c, _)| *c == count) {
            Some(index) => index,
            None => {
                let keep = if carried { keep } else { 0 };
                known.push((count, build.stripe(count, (keep, step), &chunks)?));
                known.len() - 1
            }
        };
        let mut stripe = known[index].1.clone();
        let (top, _) = reader.reads(line, count);
        let fill = if line == 0 { &mut stripe.fill_all } else { &mut stripe.fill_new };
        let seen_top = top * first.geometry.stride_y as i32 - first.geometry.padding as i32;
        put(fill, Place { map, top: seen_top, source_first: 0 })?;
        if line > 0 {
            launches.append(&mut stripe.carry);
        }
        launches.append(fill);
        launches.append(&mut stripe.first.launches);
        let source_first = (map * build.between_lines()) as i32 + top;
        put(&mut stripe.normalize, Place { map, top, source_first })?;
        launches.append(&mut stripe.normalize);
        let first_line = map * all_lines + line;
        let (slot, first) = match &reader {
            Reader::Windows(c) => (Slot::FirstRow, first_line * c.geometry.out_w),
            Reader::Rows(_) => (Slot::FirstRow, first_line * build.between_width()),
            Reader::Statistics(_) => (Slot::FirstChunk, map * chunks.all + line / chunks.lines),
        };
        for launch in &mut stripe.second.launches {
            launch.bind(slot, Argument::U32(first as u32))?;
        }
        launches.append(&mut stripe.second.launches);
    }
    let mut scratch_bytes = build.scratch_bytes(lines);
    if let Reader::Statistics(e) = &reader {
        let rows = chunks.lines * build.between_width();
        let last = combine(&second_problem, target, e, (rows, chunks.all), MOMENTS)?;
        launches.extend(links.of_second(Lowering::of(last), BETWEEN).launches);
        let bytes = 4 * (maps * chunks.all * e.channels) as u64;
        scratch_bytes.extend([bytes, bytes]);
    }
    let once = known.first().context("a feature map without lines")?;
    let mut packings = once.1.first.packings.clone();
    packings.extend(once.1.second.packings.clone());
    let whole = lines == all_lines;
    let in_place = if carried || whole { build.in_place() } else { None };
    Ok(Lowering { launches, scratch_bytes, packings, in_place: in_place.into_iter().collect() })
}

/// Chunks of lines whose moments are combined at the end: few a stripe, all of one size except the
/// last.
struct Chunks {
    /// Lines of a chunk.
    lines: usize,
    /// Number of chunks of a feature map.
    all: usize,
}

impl Chunks {
    fn new(stripe: usize, all: usize, target: &Target) -> Self {
        let most = 2 * target.compute_units.max(1) as usize;
        let count = (1..=most.min(stripe)).rev().find(|c| stripe.is_multiple_of(*c)).unwrap_or(1);
        let lines = stripe / count;
        Self { lines, all: all.div_ceil(lines) }
    }
}

struct Build<'a> {
    links: &'a Links<'a>,
    first: &'a Contraction<'a>,
    reader: &'a Reader<'a>,
    target: &'a Target,
}

impl<'a> Build<'a> {
    fn between_lines(&self) -> usize {
        self.first.geometry.out_h
    }

    fn between_width(&self) -> usize {
        self.first.geometry.out_w
    }

    /// Number of lines that the first op's windows advance for each line of output.
    fn stride(&self) -> usize {
        let own = self.reader.geometry().map_or(1, |g| g.stride_y);
        own * self.first.geometry.stride_y
    }

    /// Number of lines that the first op's windows see in both of two adjacent stripes.
    fn keep(&self) -> usize {
        let g = self.reader.geometry();
        let between = g.as_ref().map_or(0, shared);
        between * self.first.geometry.stride_y + shared(&self.first.geometry)
    }

    fn seen(&self, lines: usize) -> Lines<'a> {
        let (_, between) = self.reader.reads(0, lines);
        Lines {
            contraction: self.first,
            inside: inside(&self.first.geometry, 1, between),
            form: lines_form(self.first, self.target),
            scratch: Some(SEEN),
        }
    }

    fn normalized(&self, lines: usize) -> Option<Lines<'a>> {
        let Reader::Windows(second) = self.reader else { return None };
        Some(Lines {
            contraction: second,
            inside: inside(&second.geometry, 1, lines),
            form: lines_form(second, self.target),
            scratch: Some(NORMALIZED),
        })
    }

    /// Scratch memory of stripes of `lines` lines in bytes, without that of statistics.
    fn scratch_bytes(&self, lines: usize) -> Vec<u64> {
        let (_, between) = self.reader.reads(0, lines);
        let row_bytes =
            self.links.between.channels() as u64 * self.links.between.dtype.size_bytes();
        let between_bytes = (between * self.between_width()) as u64 * row_bytes;
        let mut list = vec![self.seen(lines).bytes(), between_bytes];
        list.extend(self.normalized(lines).map(|n| n.bytes()));
        list
    }

    /// The input whose memory the output may reuse line by line.
    fn in_place(&self) -> Option<usize> {
        let index = self.first.source_in_place(self.links.output)?;
        (self.stride() == 1).then_some(index)
    }

    fn stripe(
        &self,
        lines: usize,
        (keep, from): (usize, usize),
        chunks: &Chunks,
    ) -> Result<ChainStripe> {
        let seen = self.seen(lines);
        let of_lines = self.first.clone().with_sources(vec![seen.source()], seen.inside);
        let mut first = lower_tiled(&of_lines, self.target)?;
        let between_bytes = self.scratch_bytes(lines)[BETWEEN];
        for launch in &mut first.launches {
            launch.bytes = Some(seen.bytes() + constant_bytes(&of_lines, launch) + between_bytes);
        }
        let carry = match keep {
            0 => vec![],
            _ => vec![seen.carry(from, keep, self.target)?],
        };
        let (normalize, second) = self.second(lines, between_bytes, chunks)?;
        let normalize = Lowering { launches: normalize, ..Lowering::default() };
        Ok(ChainStripe {
            fill_all: seen.fill(0, self.target)?,
            carry,
            fill_new: seen.fill(keep, self.target)?,
            first: self.links.of_first(first, BETWEEN),
            normalize: self.links.of_second(normalize, BETWEEN).launches,
            second: self.links.of_second(second, BETWEEN),
        })
    }

    /// The launches that normalize the value between the ops, and the launches of the second op.
    /// They wait for their first row or chunk.
    fn second(
        &self,
        lines: usize,
        between_bytes: u64,
        chunks: &Chunks,
    ) -> Result<(Vec<Launch>, Lowering)> {
        let target = self.target;
        let sums = |of_lines: Contraction, read_bytes: u64| -> Result<Lowering> {
            let of_lines = Contraction { striped: true, ..of_lines };
            let mut sums = lower_tiled(&of_lines, target)?;
            for launch in &mut sums.launches {
                let weights = constant_bytes(&of_lines, launch);
                launch.bytes = Some(read_bytes + weights + out_bytes(&of_lines));
            }
            Ok(sums)
        };
        match self.reader {
            Reader::Windows(second) => {
                let seen = self.normalized(lines).context("windows see lines")?;
                let of_lines = second.clone().with_sources(vec![seen.source()], seen.inside);
                Ok((seen.fill(0, target)?, sums(of_lines, seen.bytes())?))
            }
            Reader::Rows(second) => {
                let rows = Geometry::rows(lines * self.between_width());
                let of_lines = second.clone().with_sources(second.sources.clone(), rows);
                Ok((vec![], sums(of_lines, between_bytes)?))
            }
            Reader::Statistics(e) => {
                let width = self.between_width();
                let of_lines = Extents { n: 1, rows: lines * width, ..e.clone() };
                let source = Source {
                    argument: Argument::Scratch { index: BETWEEN, written: false },
                    channels: e.channels,
                    dtype: self.links.between.dtype,
                };
                let count = lines.div_ceil(chunks.lines);
                let chunks = (chunks.lines * width, count);
                let launch = moments_of_chunks(&source, target, &of_lines, chunks, MOMENTS)?;
                Ok((vec![], Lowering::of(launch)))
            }
        }
    }
}
