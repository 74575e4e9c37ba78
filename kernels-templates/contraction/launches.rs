//! The launches of a contraction: their arguments, and the division of columns over several
//! launches.

use super::{Contraction, Split, splits, whole};
use crate::packing::QuantizedPanel;
use crate::template::{Parameters, render};
use crate::{Argument, Launch, Lowering, Slot};
use anyhow::{Context as _, Result};
use kiln_ir::DType;

impl Contraction<'_> {
    /// Arguments of a launch over the output columns of `split`.
    pub fn arguments(&self, split: &Split) -> Vec<Argument> {
        let mut args: Vec<_> = self.sources.iter().map(|s| s.argument.clone()).collect();
        args.extend(self.affine());
        args.push(split.weights(self.operands.weights));
        args.extend(self.epilogue_arguments(split));
        args
    }

    /// The arguments of [`Contraction::arguments`] after the weights.
    pub(super) fn epilogue_arguments(&self, split: &Split) -> Vec<Argument> {
        let mut args = vec![];
        args.extend(self.operands.bias.map(|bias| split.bias(bias)));
        let read_whole = self.operands.row.into_iter().chain(self.operands.residual);
        args.extend(read_whole.map(|index| whole(self.problem, index)));
        args.push(Argument::Output);
        args.push(Argument::U32(split.first_column as u32));
        args.extend(self.epilogue.row_offset.map(|o| Argument::U32(o as u32)));
        args.extend(self.striped.then_some(Argument::Late(Slot::FirstRow)));
        args
    }

    /// One launch for each split: the same program over its own columns.
    ///
    /// `entry` is the kernel's name. `global` gives the work size for a number of units (panels or
    /// columns).
    pub fn launches(
        &self,
        template: &str,
        parameters: &Parameters,
        entry: &'static str,
        splits: &[Split],
        global: impl Fn(usize) -> ([u64; 3], Option<[u64; 3]>),
    ) -> Result<Vec<Launch>> {
        let source = render(template, &self.tensors(), parameters)
            .with_context(|| format!("kernel {entry}"))?;
        let launch = |split: &Split| {
            let (global, local) = global(split.units);
            let before = split.first_column * (self.n / self.out_n);
            let columns = split.accumulators.min(self.n - before);
            let launch = Launch::new(source.clone(), entry, self.arguments(split), global, local);
            Launch { flops: 2 * (self.m() * self.k * columns) as u64, ..launch }
        };
        Ok(splits.iter().map(launch).collect())
    }

    /// The ranges of panels of each launch. `workers` is the number of panels computed side by
    /// side.
    pub fn panel_splits(&self, width: usize, workers: usize) -> Vec<Split> {
        let panels = crate::packing::panel_count(self.n, width, self.gated());
        let (bytes, most) = (self.panel_bytes(width), self.problem.max_weight_bytes);
        self.unit_splits(panels, width, self.out_width(width), bytes, most, workers)
    }

    /// Stored columns of a panel of `width` accumulator columns.
    pub fn out_width(&self, width: usize) -> usize {
        if self.gated() { width / 2 } else { width }
    }

    /// The ranges of output columns of each launch of a row-major kernel. `None` if GEGLU's values
    /// and gates do not fit one launch.
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
            DType::I8 => QuantizedPanel::new(self.k, width, self.scale_group().max(1)).len as u64,
            dtype => (width * self.k) as u64 * dtype.size_bytes(),
        }
    }

    pub(super) fn unit_splits(
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

    /// The lowering `naive` of both ops, with one work-item an element.
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
