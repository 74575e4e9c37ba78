//! Padded lines of feature maps in scratch memory: what windows read without a look at borders.

use crate::contraction::{Contraction, Geometry, Source};
use crate::elementwise::Shares;
use crate::template::{Parameters, render};
use crate::{Argument, Launch, Slot, Target};
use anyhow::Result;
use kiln_ir::DType;
use kiln_ir::ops::epilogue::Activation;

/// Lines that the windows of a contraction see, as a feature map of its own without padding.
#[derive(Clone)]
pub(super) struct Lines<'a> {
    /// Whose sources are read, normalized and doubled as its prologue and geometry say.
    pub contraction: &'a Contraction<'a>,
    /// The lines as a feature map.
    pub inside: Geometry,
    /// Storage type.
    pub dtype: DType,
    /// Index of the scratch memory; `None` while it is not known.
    pub scratch: Option<usize>,
}

/// Which lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// First feature map.
    pub picture: usize,
    /// Line of the (doubled) feature map at the top; negative for zeros above it.
    pub top: i32,
    /// Line, counted over all feature maps, at which the source begins.
    pub source_first: i32,
}

/// `lines` lines of output of `pictures` feature maps of `g`, as a feature map with the zeros
/// around it in it.
pub(super) fn inside(g: &Geometry, pictures: usize, lines: usize) -> Geometry {
    let in_h = (lines - 1) * g.stride_y + g.kernel;
    let in_w = (g.out_w - 1) * g.stride_x + g.kernel;
    Geometry {
        batch: pictures,
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

/// Lines of `g` that the windows of one stripe and the next below it both see.
pub(super) fn shared(g: &Geometry) -> usize {
    g.kernel.saturating_sub(g.stride_y)
}

/// Lines of output of a stripe: the most that fit, one at least; a divisor of all lines where that
/// is not less than half of it, as it spares a second program for what is left.
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
        (self.pixels() * self.contraction.channels()) as u64 * self.dtype.size_bytes()
    }

    fn memory(&self, written: bool) -> Argument {
        match self.scratch {
            Some(index) => Argument::Scratch { index, written },
            None => Argument::Late(Slot::Lines { written }),
        }
    }

    /// The lines as what a contraction reads.
    pub fn source(&self) -> Source {
        let argument = self.memory(false);
        Source { argument, channels: self.contraction.channels(), dtype: self.dtype }
    }

    /// The launches that fill all but the first `keep` lines, one a source, to be [`put`].
    pub fn fill(&self, keep: usize, target: &Target) -> Result<Vec<Launch>> {
        let (contraction, inside, dtype) = (self.contraction, &self.inside, self.dtype);
        let g = contraction.geometry;
        let channels = contraction.channels();
        let rows = self.pixels() - keep * inside.in_w;
        let prologue = contraction.prologue;
        let template = include_str!("stripe.cl.tera");
        let mut base = 0;
        let mut launches = vec![];
        for source in &contraction.sources {
            let shares = Shares::new(rows, source.channels, 1, target);
            let mut tensors = vec![("X", source.dtype)];
            tensors.extend(prologue.map(|p| ("AFFINE", p.dtype)));
            tensors.push(("OUT", dtype));
            let strides = [source.channels, channels, base];
            let parameters = shares
                .parameters(Parameters::new(), &strides)
                .set("factor", &if g.upsample { 2 } else { 1 })
                .set("normalize", &prologue.is_some())
                .set("silu", &prologue.is_some_and(|p| p.activation == Activation::Silu));
            let moved = source.dtype.size_bytes() + dtype.size_bytes();
            let mut args = vec![source.argument.clone()];
            args.extend(contraction.affine());
            args.push(self.memory(true));
            let extents = [
                shares.run,
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
            let launch = shares.launch(text, "conv2d_stripe", args);
            let bytes = Some(rows as u64 * source.channels as u64 * moved);
            launches.push(Launch { bytes, ..launch });
            base += source.channels;
        }
        Ok(launches)
    }

    /// The launch that moves the `keep` lines from line `from` on to the top; they do not overlap.
    pub fn carry(&self, from: usize, keep: usize, target: &Target) -> Result<Launch> {
        let channels = self.contraction.channels();
        let rows = keep * self.inside.in_w;
        let shares = Shares::new(rows, channels, 1, target);
        let template = include_str!("stripe_carry.cl.tera");
        let parameters = shares.parameters(Parameters::new(), &[channels]);
        let extents = [shares.run, shares.row_block, rows, channels, from * self.inside.in_w];
        let mut args = vec![self.memory(true)];
        args.extend(extents.map(|extent| Argument::U32(extent as u32)));
        let text = render(template, &[("OUT", self.dtype)], &parameters)?;
        let launch = shares.launch(text, "conv2d_stripe_carry", args);
        let bytes = Some(2 * (rows * channels) as u64 * self.dtype.size_bytes());
        Ok(Launch { bytes, ..launch })
    }
}

/// Says which lines the launches of [`Lines::fill`] fill.
pub(super) fn put(launches: &mut [Launch], place: Place) -> Result<()> {
    let Place { picture, top, source_first } = place;
    for launch in launches {
        launch.bind(Slot::FirstMap, Argument::U32(picture as u32))?;
        launch.bind(Slot::Top, Argument::U32(top as u32))?;
        launch.bind(Slot::SourceFirst, Argument::U32(source_first as u32))?;
    }
    Ok(())
}
