//! Inputs of a contraction's templates: tensors and parameters.

use super::{Contraction, SOURCE_NAMES, Source};
use crate::packing::{FragmentPanel, QuantizedPanel};
use crate::template::Parameters;
use kiln_ir::DType;
use kiln_ir::ops::epilogue::Activation;
use serde::Serialize;

/// A source for templates.
#[derive(Serialize)]
struct SourceView {
    name: &'static str,
    channels: usize,
    /// Number of channels of the sources before it.
    first: usize,
    half: bool,
}

/// The epilogue for templates.
#[derive(Serialize)]
struct EpilogueView {
    bias: bool,
    row: bool,
    act: String,
    residual: bool,
    gated: bool,
    /// Whether launches receive their first row as an argument.
    part: bool,
}

/// The prologue for templates.
#[derive(Serialize)]
struct PrologueView {
    silu: bool,
}

/// INT8 weights for templates.
#[derive(Serialize)]
struct Quantization {
    /// Number of K indices that share a scale.
    scale_group: usize,
    /// Whether there is one scale an output channel. It is then applied in the epilogue.
    whole: bool,
    /// Bytes of the scales before a panel's weights.
    weights_at: usize,
    /// Bytes of a panel.
    panel: usize,
}

impl Contraction<'_> {
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
        let act = self.epilogue.activation.name();
        let epilogue = EpilogueView {
            bias: self.epilogue.bias,
            row: self.epilogue.row_offset.is_some(),
            act,
            residual: self.epilogue.residual,
            gated: self.gated(),
            part: self.striped,
        };
        let prologue =
            self.prologue.map(|p| PrologueView { silu: p.activation == Activation::Silu });
        Parameters::new()
            .set("sources", &sources)
            .set("p", &prologue)
            .set("e", &epilogue)
            .set("g", &self.geometry)
            .set("m", &self.m())
            .set("out_n", &self.out_n)
            .set("k", &self.k)
            .set("channels", &self.channels())
            .set("q", &self.quantized().then(|| self.quantization(1)))
    }

    fn quantization(&self, width: usize) -> Quantization {
        let panel = QuantizedPanel::new(self.k, width, self.scale_group());
        let group = self.scale_group();
        let whole = group == self.k;
        Quantization { scale_group: group, whole, weights_at: panel.weights_at, panel: panel.len }
    }

    /// [`Contraction::parameters`] for a kernel whose panels are
    /// [`Fragments`](crate::packing::Fragments).
    pub(super) fn fragment_parameters(&self, panel: FragmentPanel) -> Parameters {
        let size = self.weight_dtype.size_bytes() as usize;
        let q = match self.weight_dtype {
            DType::F32 => Some((self.k, true)),
            _ => self.quantized().then(|| self.scale_group()).map(|group| (group, group == self.k)),
        };
        let q = q.map(|(scale_group, whole)| {
            let (weights_at, panel) = (panel.weights_at / size, panel.len);
            Quantization { scale_group, whole, weights_at, panel }
        });
        let elements = panel.len / size;
        self.parameters().set("q", &q).set("panel", &elements).set("step_bytes", &panel.step_bytes)
    }

    /// [`Contraction::parameters`] for a kernel that reads panels of `width` columns. `panel` is
    /// the distance of panels in elements of W.
    pub fn panel_parameters(&self, width: usize) -> Parameters {
        let q = self.quantized().then(|| self.quantization(width));
        let panel = self.panel_elements(width);
        self.parameters().set("q", &q).set("panel", &panel).set("width", &width)
    }

    /// Elements of W from a panel of `width` columns to the next.
    pub(super) fn panel_elements(&self, width: usize) -> usize {
        match self.quantized() {
            true => self.quantization(width).panel,
            false => width * self.k,
        }
    }
}
