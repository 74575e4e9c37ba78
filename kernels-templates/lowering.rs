//! An op as kernel launches, without addresses.

use crate::{Packing, Problem};
use anyhow::{Result, bail, ensure};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// OpenCL C of kilobytes. A clone shares the text, and a map by sources hashes eight bytes: a plan
/// looks a thousand of them up, many times.
#[derive(Clone, Debug)]
pub struct SourceText {
    text: Arc<str>,
    /// XXH3 of the text.
    hash: u64,
}

impl<T: Into<Arc<str>>> From<T> for SourceText {
    fn from(text: T) -> Self {
        let text = text.into();
        Self { hash: xxh3_64(text.as_bytes()), text }
    }
}

impl Deref for SourceText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl PartialEq for SourceText {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || (self.hash == other.hash && self.text == other.text)
    }
}

impl Eq for SourceText {}

impl Hash for SourceText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A kernel argument.
#[derive(Clone, PartialEq, Debug)]
pub enum Argument {
    /// A region of an input; for a constant, of its packed form.
    Input {
        /// Index of the input.
        index: usize,
        /// Start of the region, in bytes.
        offset_bytes: u64,
        /// Length of the region, in bytes.
        len_bytes: u64,
    },
    /// The whole output.
    Output,
    /// Scratch memory, by index into [`Lowering::scratch_bytes`].
    Scratch {
        /// Index of the buffer.
        index: usize,
        /// Whether the launch writes it. The launches before the first reader write all of it.
        written: bool,
    },
    /// A 32-bit unsigned scalar.
    U32(u32),
    /// A 32-bit floating-point scalar.
    F32(f32),
    /// An argument that [`Launch::bind`] replaces. A finished lowering has none.
    Late(Slot),
}

/// A value that a launch receives when its position among others is known. A kernel over a stripe
/// of lines is rendered once and launched for many stripes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// First row of a stripe's output.
    FirstRow,
    /// First chunk of moments of a stripe.
    FirstChunk,
    /// First feature map of the batch that a stripe reads.
    FirstMap,
    /// Line of a feature map at the top of a stripe. Negative for zeros above the feature map.
    Top,
    /// First line of a source, counted over the whole batch.
    SourceFirst,
    /// Scratch memory of a stripe. Its index follows the indices of the kernel that reads it.
    Lines {
        /// As in [`Argument::Scratch`].
        written: bool,
    },
}

/// One kernel launch.
#[derive(Clone, PartialEq, Debug)]
pub struct Launch {
    /// Complete OpenCL C.
    pub source: SourceText,
    /// Name of the kernel function.
    pub entry: &'static str,
    /// Arguments in order.
    pub args: Vec<Argument>,
    /// Global work size.
    pub global: [u64; 3],
    /// Local work size; `None` lets the driver choose.
    pub local: Option<[u64; 3]>,
    /// Local memory that the kernel declares, in bytes.
    pub local_mem_bytes: u64,
    /// Arithmetic of this launch, in FLOP.
    pub flops: u64,
    /// Whether most of the arithmetic is in FP16. It has a rate of its own, and needs
    /// `cl_khr_fp16`.
    pub half_arithmetic: bool,
    /// Whether it has instructions of [`Target::vnni`](crate::Target::vnni).
    pub vnni: bool,
    /// Bytes read and written, if they differ from the sum of all arguments.
    pub bytes: Option<u64>,
}

impl Launch {
    /// A launch without local memory or arithmetic. Its bytes are those of its arguments.
    pub fn new(
        source: SourceText,
        entry: &'static str,
        args: Vec<Argument>,
        global: [u64; 3],
        local: Option<[u64; 3]>,
    ) -> Self {
        Self {
            source,
            entry,
            args,
            global,
            local,
            local_mem_bytes: 0,
            flops: 0,
            half_arithmetic: false,
            vnni: false,
            bytes: None,
        }
    }

    /// Number of work-items.
    pub fn work_items(&self) -> u64 {
        self.global.iter().product()
    }

    /// Appends numbers to the arguments.
    pub(crate) fn add_numbers(&mut self, values: &[usize]) {
        self.args.extend(values.iter().map(|value| Argument::U32(*value as u32)));
    }

    /// Replaces the arguments that wait for `slot`.
    ///
    /// Errors: no argument waits for `slot`.
    pub(crate) fn bind(&mut self, slot: Slot, argument: Argument) -> Result<()> {
        ensure!(self.args.contains(&Argument::Late(slot)), "kernel {} has no {slot:?}", self.entry);
        self.replace(slot, &argument);
        Ok(())
    }

    /// [`Launch::bind`] for launches that need not wait for the slot.
    pub(crate) fn replace(&mut self, slot: Slot, argument: &Argument) {
        let waiting = self.args.iter_mut().filter(|a| **a == Argument::Late(slot));
        waiting.for_each(|place| *place = argument.clone());
    }
}

/// An op as launches.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Lowering {
    /// The launches in order.
    pub launches: Vec<Launch>,
    /// Bytes of temporary buffers, which are live over the launches of this op.
    pub scratch_bytes: Vec<u64>,
    /// How each constant input is packed, by input index. Constants without an entry are
    /// [`Packing::RowMajor`].
    pub packings: Vec<(usize, Packing)>,
    /// Inputs whose memory the output may reuse, in addition to the residual. Each of their bytes
    /// is overwritten only after the last launch or work-item that reads it.
    pub in_place: Vec<usize>,
}

impl Lowering {
    /// One launch without scratch memory or packed constants.
    pub(crate) fn of(launch: Launch) -> Self {
        Self { launches: vec![launch], ..Self::default() }
    }

    /// Errors: an argument is not bound.
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

/// The inputs whose memory the output of a lowering may reuse: the lowering's own list, and the
/// residual of a contraction. Each element of a residual is read where the sum is stored.
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
