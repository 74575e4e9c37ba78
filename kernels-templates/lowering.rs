//! An op as kernel launches, before anything has an address.

use crate::{Packing, Problem};
use anyhow::{Result, bail, ensure};
use std::sync::Arc;

/// A kernel argument.
#[derive(Clone, PartialEq, Debug)]
pub enum Argument {
    /// A region of an input. For a constant, of its packed form.
    Input {
        /// Which input.
        index: usize,
        /// Start of the region.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// The whole output.
    Output,
    /// Scratch memory, by index into [`Lowering::scratch_bytes`].
    Scratch {
        /// Which.
        index: usize,
        /// The launch writes it (all of it, over the launches up to the first that reads it).
        written: bool,
    },
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
    /// An argument that [`Launch::bind`] replaces. A finished lowering has none.
    Late(Slot),
}

/// What a launch is told when it takes its place among others: a kernel over a stripe of lines is
/// rendered once and launched for many stripes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// Row of the output at which a stripe begins.
    FirstRow,
    /// Chunk of moments at which a stripe begins.
    FirstChunk,
    /// First feature map of the batch that a stripe reads.
    FirstMap,
    /// Line of a feature map at the top of a stripe; negative for the zeros above.
    Top,
    /// Line, counted over the whole batch, at which a source begins.
    SourceFirst,
    /// Scratch memory of a stripe, whose index follows those of the kernel that reads it.
    Lines {
        /// As in [`Argument::Scratch`].
        written: bool,
    },
}

/// One kernel launch.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// OpenCL C, complete.
    pub source: Arc<str>,
    /// Name of the kernel function.
    pub entry: &'static str,
    /// Arguments in order.
    pub args: Vec<Argument>,
    /// Global work size.
    pub global: [u64; 3],
    /// Local work size; `None` leaves it to the driver.
    pub local: Option<[u64; 3]>,
    /// Local memory that the kernel declares.
    pub local_mem_bytes: u64,
    /// Arithmetic of this launch.
    pub flops: u64,
    /// Most of it is in FP16: at another rate, and only where the device has `cl_khr_fp16`.
    pub half_arithmetic: bool,
    /// What it reads and writes, if that is not all of its arguments.
    pub bytes: Option<u64>,
}

impl Launch {
    /// A launch without local memory or arithmetic, whose bytes are those of its arguments.
    pub fn new(
        source: Arc<str>,
        entry: &'static str,
        args: Vec<Argument>,
        global: [u64; 3],
        local: Option<[u64; 3]>,
    ) -> Self {
        let (local_mem_bytes, flops, half_arithmetic, bytes) = (0, 0, false, None);
        Self { source, entry, args, global, local, local_mem_bytes, flops, half_arithmetic, bytes }
    }

    /// Replaces the arguments that wait for `slot`.
    ///
    /// Errors: there is none.
    pub(crate) fn bind(&mut self, slot: Slot, argument: Argument) -> Result<()> {
        ensure!(self.args.contains(&Argument::Late(slot)), "kernel {} has no {slot:?}", self.entry);
        self.replace(slot, &argument);
        Ok(())
    }

    /// [`Launch::bind`] where not every launch waits for the slot.
    pub(crate) fn replace(&mut self, slot: Slot, argument: &Argument) {
        let waiting = self.args.iter_mut().filter(|a| **a == Argument::Late(slot));
        waiting.for_each(|place| *place = argument.clone());
    }
}

/// An op as launches.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Lowering {
    /// In order.
    pub launches: Vec<Launch>,
    /// Temporary buffers, live over the launches of this op.
    pub scratch_bytes: Vec<u64>,
    /// How each constant input is packed, by input index. Constants without an entry are
    /// [`Packing::RowMajor`].
    pub packings: Vec<(usize, Packing)>,
    /// Inputs whose memory the output may take, beside the residual: each byte of them is written after
    /// the last launch or work-item that reads it.
    pub in_place: Vec<usize>,
}

impl Lowering {
    /// One launch without scratch memory or packed constants.
    pub(crate) fn of(launch: Launch) -> Self {
        Self { launches: vec![launch], ..Self::default() }
    }

    /// Errors: an argument is still to be bound.
    pub(crate) fn expect_bound(self) -> Result<Self> {
        for launch in &self.launches {
            if let Some(Argument::Late(slot)) =
                launch.args.iter().find(|a| matches!(a, Argument::Late(_)))
            {
                bail!("kernel {} was not told {slot:?}", launch.entry);
            }
        }
        Ok(self)
    }
}

/// The inputs whose memory the output of a lowering may take: those it names, and the residual of a
/// contraction, each element of which is read where it is added and stored.
pub fn in_place(problem: &Problem, lowering: &Lowering) -> Vec<usize> {
    let same = |index: &usize| problem.inputs[*index].ty == *problem.output;
    lowering.in_place.iter().copied().chain(problem.op.residual()).filter(same).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bound_by_name() {
        let args = vec![Argument::Output, Argument::Late(Slot::Top), Argument::U32(1)];
        let mut launch = Launch::new("".into(), "k", args, [1; 3], None);
        let unbound = Lowering::of(launch.clone()).expect_bound().unwrap_err();
        assert_eq!(unbound.to_string(), "kernel k was not told Top");
        let unknown = launch.bind(Slot::FirstRow, Argument::U32(7)).unwrap_err();
        assert_eq!(unknown.to_string(), "kernel k has no FirstRow");
        launch.bind(Slot::Top, Argument::U32(7)).unwrap();
        let bound = Lowering::of(launch).expect_bound().unwrap();
        assert_eq!(bound.launches[0].args[1], Argument::U32(7));
    }
}
