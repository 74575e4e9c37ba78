//! Padded lines of feature maps in scratch memory. Windows read them without a test for borders.

use crate::contraction::dot::{MOST_BLOCK, OUTLIER, Record};
use crate::contraction::{Contraction, Geometry, Source};
use crate::elementwise::Shares;
use crate::template::{Parameters, render};
use crate::{Argument, Launch, Slot, Target};
use anyhow::Result;
use kiln_ir::DType;
use kiln_ir::ops::epilogue::Activation;

/// Storage of lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The values.
    Values(DType),
    /// Integers with scales.
    Records(Record),
}

impl Form {
    /// Bytes of a pixel of `channels` channels.
    pub fn pixel_bytes(self, channels: usize) -> u64 {
        match self {
            Form::Values(dtype) => channels as u64 * dtype.size_bytes(),
            Form::Records(record) => record.len_bytes() as u64,
        }
    }

    /// Element type of the memory.
    fn dtype(self) -> DType {
        match self {
            Form::Values(dtype) => dtype,
            Form::Records(_) => DType::I8,
        }
    }
}

/// Lines that the windows of a contraction see, as a feature map of its own without padding.
#[derive(Clone)]
pub(super) struct Lines<'a> {
    /// The contraction. Its prologue and geometry define how sources are read, normalized and
    /// doubled.
    pub contraction: &'a Contraction<'a>,
    /// The lines as a feature map.
    pub inside: Geometry,
    /// Storage.
    pub form: Form,
    /// Index of the scratch memory; `None` until it is known.
    pub scratch: Option<usize>,
}

/// Position of lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// First feature map.
    pub map: usize,
    /// Line of the (doubled) feature map at the top. Negative for zeros above the feature map.
    pub top: i32,
    /// First line of the source, counted over all feature maps.
    pub source_first: i32,
}

/// `lines` lines of output of `maps` feature maps of `g`, as a feature map that contains its zero
/// padding.
pub(super) fn inside(g: &Geometry, maps: usize, lines: usize) -> Geometry {
    let in_h = (lines - 1) * g.stride_y + g.kernel;
    let in_w = (g.out_w - 1) * g.stride_x + g.kernel;
    Geometry {
        batch: maps,
        in_h,
        in_w,
        window_h: in_h,
        window_w: in_w,
        out_h: lines,
        padding: 0,
        upsample: false,
        ..*g
    }
}

/// Number of lines of `g` that the windows of both a stripe and the next one see.
pub(super) fn shared(g: &Geometry) -> usize {
    g.kernel.saturating_sub(g.stride_y)
}

/// Lines of output of a stripe: as many as fit, at least one. A divisor of all lines is preferred
/// if it is at least half as many, because the remainder would need a second program.
pub(super) fn height(all: usize, fits: impl Fn(usize) -> bool) -> usize {
    let most = (1..=all).rev().find(|lines| fits(*lines)).unwrap_or(1);
    let even = (most.div_ceil(2)..=most).rev().find(|lines| all.is_multiple_of(*lines));
    even.unwrap_or(most)
}

impl Lines<'_> {
    fn pixels(&self) -> usize {
        self.inside.batch * self.inside.in_h * self.inside.in_w
    }

    /// Bytes of scratch memory.
    pub fn bytes(&self) -> u64 {
        self.pixels() as u64 * self.form.pixel_bytes(self.contraction.channels())
    }

    fn memory(&self, written: bool) -> Argument {
        match self.scratch {
            Some(index) => Argument::Scratch { index, written },
            None => Argument::Late(Slot::Lines { written }),
        }
    }

    /// The lines as a source of a contraction.
    pub fn source(&self) -> Source {
        let argument = self.memory(false);
        Source { argument, channels: self.contraction.channels(), dtype: self.form.dtype() }
    }

    /// The launches that fill all lines after the first `keep`, one for each source. [`put`] gives
    /// their position.
    pub fn fill(&self, keep: usize, target: &Target) -> Result<Vec<Launch>> {
        let (contraction, inside) = (self.contraction, &self.inside);
        let g = contraction.geometry;
        let channels = contraction.channels();
        let rows = self.pixels() - keep * inside.in_w;
        let prologue = contraction.prologue;
        let (template, entry) = match self.form {
            Form::Values(_) => (include_str!("stripe.cl.tera"), "conv2d_stripe"),
            Form::Records(_) => (include_str!("quantized.cl.tera"), "quantized_lines"),
        };
        let pixel_bytes = self.form.pixel_bytes(channels);
        let mut base = 0;
        let mut launches = vec![];
        for source in &contraction.sources {
            let shares = match self.form {
                Form::Values(_) => Shares::new(rows, source.channels, 1, target),
                Form::Records(_) => Shares::of_rows(rows, source.channels, target),
            };
            let mut tensors = vec![("X", source.dtype)];
            tensors.extend(prologue.map(|p| ("AFFINE", p.dtype)));
            tensors.push(("OUT", self.form.dtype()));
            let strides = [source.channels, channels, base];
            let mut parameters = shares
                .parameters(Parameters::new(), &strides)
                .set("factor", &if g.upsample { 2 } else { 1 })
                .set("normalize", &prologue.is_some())
                .set("silu", &prologue.is_some_and(|p| p.activation == Activation::Silu));
            let mut run = shares.run;
            if let Form::Records(record) = self.form {
                parameters = parameters
                    .set("bytes", &record.value_bytes)
                    .set("most", &MOST_BLOCK)
                    .set("outlier", &OUTLIER);
                run = record.block;
            }
            // A source's part of a pixel.
            let written = pixel_bytes * source.channels as u64 / channels as u64;
            let moved = source.channels as u64 * source.dtype.size_bytes() + written;
            let mut args = vec![source.argument.clone()];
            args.extend(contraction.affine());
            args.push(self.memory(true));
            let extents = [
                run,
                shares.row_block,
                rows,
                g.in_h,
                g.in_w,
                g.padding,
                inside.in_h,
                inside.in_w,
                source.channels,
                channels,
                base,
                keep,
            ];
            args.extend(extents.map(|extent| Argument::U32(extent as u32)));
            args.extend([Slot::FirstMap, Slot::Top, Slot::SourceFirst].map(Argument::Late));
            let text = render(template, &tensors, &parameters)?;
            let launch = shares.launch(text, entry, args);
            let bytes = Some(rows as u64 * moved);
            launches.push(Launch { bytes, ..launch });
            base += source.channels;
        }
        Ok(launches)
    }

    /// The launch that moves `keep` lines, starting at line `from`, to the top. The ranges do not
    /// overlap.
    pub fn carry(&self, from: usize, keep: usize, target: &Target) -> Result<Launch> {
        let rows = keep * self.inside.in_w;
        // Records move as floats.
        let (channels, dtype) = match self.form {
            Form::Values(dtype) => (self.contraction.channels(), dtype),
            Form::Records(record) => (record.len_bytes() / 4, DType::F32),
        };
        let shares = Shares::new(rows, channels, 1, target);
        let template = include_str!("stripe_carry.cl.tera");
        let parameters = shares.parameters(Parameters::new(), &[channels]);
        let extents = [shares.run, shares.row_block, rows, channels, from * self.inside.in_w];
        let mut args = vec![self.memory(true)];
        args.extend(extents.map(|extent| Argument::U32(extent as u32)));
        let text = render(template, &[("OUT", dtype)], &parameters)?;
        let launch = shares.launch(text, "conv2d_stripe_carry", args);
        let bytes = Some(2 * (rows * channels) as u64 * dtype.size_bytes());
        Ok(Launch { bytes, ..launch })
    }
}

/// Sets the position of the launches of [`Lines::fill`].
pub(super) fn put(launches: &mut [Launch], place: Place) -> Result<()> {
    let Place { map, top, source_first } = place;
    for launch in launches {
        launch.bind(Slot::FirstMap, Argument::U32(map as u32))?;
        launch.bind(Slot::Top, Argument::U32(top as u32))?;
        launch.bind(Slot::SourceFirst, Argument::U32(source_first as u32))?;
    }
    Ok(())
}
