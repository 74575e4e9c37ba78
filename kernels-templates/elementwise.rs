//! Common part of the element-wise ops: one loop, one geometry.

use crate::SourceText;
use crate::launch::{Call, cpu};
use crate::template::Parameters;
use crate::{Argument, Launch, Lowering, Problem, Target};
use anyhow::Result;

/// Elements of a work-item on a CPU: enough to make the cost of its start negligible.
const ELEMENTS_PER_ITEM: usize = 4096;

/// The source of an op's second operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Second {
    /// No second operand.
    None,
    /// Input 1, the same for every row.
    Repeat,
    /// The second half of each row.
    Gate,
}

/// Division of a result of `rows` times `width` elements over work-items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shares {
    /// Lanes of a vector.
    pub v: usize,
    /// Columns of a work-item.
    pub run: usize,
    /// Rows of a work-item.
    pub row_block: usize,
    /// Global work size.
    pub global: [usize; 3],
    /// Local work size.
    pub local: [usize; 3],
}

impl Shares {
    /// On a CPU a work-item has a block of some thousand elements. On a GPU it has one vector of
    /// each of `gpu_rows` rows, with neighbours side by side.
    pub fn new(rows: usize, width: usize, gpu_rows: usize, target: &Target) -> Self {
        if cpu(target) {
            let v = target.vector_width as usize;
            let run = if width <= 2 * ELEMENTS_PER_ITEM { width } else { ELEMENTS_PER_ITEM };
            let row_block = (ELEMENTS_PER_ITEM / run).max(1);
            let global = [width.div_ceil(run), rows.div_ceil(row_block), 1];
            return Self { v, run, row_block, global, local: [1, 1, 1] };
        }
        let (v, group) = (4, target.max_work_group.min(128) as usize);
        let vectors = width.div_ceil(v);
        let across = vectors.next_power_of_two().min(group);
        let local = [across, group / across, 1];
        let blocks = rows.div_ceil(gpu_rows);
        let global = [vectors.next_multiple_of(across), blocks.next_multiple_of(local[1]), 1];
        Self { v, run: v, row_block: gpu_rows, global, local }
    }

    /// Whole rows for each work-item of a CPU, of some thousand elements together.
    pub fn of_rows(rows: usize, width: usize, target: &Target) -> Self {
        let row_block = (ELEMENTS_PER_ITEM / width).max(1);
        let (v, global) = (target.vector_width as usize, [1, rows.div_ceil(row_block), 1]);
        Self { v, run: width, row_block, global, local: [1, 1, 1] }
    }

    /// Passes the shares to a template: `aligned` if all of `strides` are multiples of a vector,
    /// and the distance to the next work-item's share, `next_row` rows and `next_column` columns.
    pub fn set<'a>(&self, call: Call<'a>, strides: &[usize]) -> Call<'a> {
        call.with(|parameters| self.parameters(parameters, strides))
    }

    /// A launch over all shares.
    pub fn launch(&self, source: SourceText, entry: &'static str, args: Vec<Argument>) -> Launch {
        let [global, local] = [self.global, self.local].map(|size| size.map(|v| v as u64));
        Launch::new(source, entry, args, global, Some(local))
    }

    /// Like [`Shares::set`], for a launch without a [`Call`].
    pub fn parameters(&self, parameters: Parameters, strides: &[usize]) -> Parameters {
        let aligned = self.v == 4 && strides.iter().all(|s| s.is_multiple_of(4));
        parameters
            .set("v", &self.v)
            .set("FV", &format!("float{}", self.v))
            .set("run", &self.run)
            .set("row_block", &self.row_block)
            .set("next_row", &if self.global[0] == 1 { self.row_block } else { 0 })
            .set("next_column", &if self.global[0] == 1 { 0 } else { self.run })
            .set("single", &(self.local == [1, 1, 1]))
            .set("aligned", &aligned)
    }
}

/// Lowers an element-wise op. `definition` is a template that defines `op_float` and `op_{{ FV }}`,
/// with the parameters that `set` adds.
pub(crate) fn lower(
    problem: &Problem,
    target: &Target,
    entry: &'static str,
    definition: &str,
    second: Second,
    set: impl for<'a> FnOnce(Call<'a>) -> Call<'a>,
) -> Result<Lowering> {
    let out = problem.output;
    let (rows, width, stride) = match second {
        Second::None => (1, out.elem_count(), out.elem_count()),
        Second::Repeat => {
            let period = problem.inputs[1].ty.elem_count();
            (out.elem_count() / period, period, period)
        }
        Second::Gate => (out.rows(), out.channels(), 2 * out.channels()),
    };
    let shares = Shares::new(rows, width, 1, target);
    let mut call = Call::new(problem).input("X", 0);
    if second == Second::Repeat {
        call = call.input("Y", 1);
    }
    let kind = match second {
        Second::None => "none",
        Second::Repeat => "repeat",
        Second::Gate => "gate",
    };
    let call = shares
        .set(call.output("OUT"), &if rows > 1 { vec![width, stride] } else { vec![] })
        .set("entry", entry)
        .set("rows", &rows)
        .set("width", &width)
        .set("stride", &stride)
        .set("second", kind);
    let launch = set(call).launch(entry, definition, shares.global, Some(shares.local))?;
    Ok(Lowering::of(launch))
}
