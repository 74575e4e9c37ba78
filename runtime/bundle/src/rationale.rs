//! The reasons for the decisions of a plan, for people and tools.
//!
//! The runtime does not read them and the checker does not check them. Readers must therefore check
//! every index.

use serde::{Deserialize, Serialize};

use crate::plan::ElementType;

/// Facts and choices of the planner.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rationale {
    /// Sustained rates that the planner assumed of the device.
    pub rates: Rates,
    /// The strategies that were tried, in order. The last one is the plan's.
    pub attempts: Vec<Attempt>,
    /// The choices of variants. Ops that differ only in their names share one.
    pub choices: Vec<Choice>,
    /// The ops in execution order over all networks.
    pub ops: Vec<OpChoice>,
    /// The storage of the weights of contractions, each constant once.
    pub weights: Vec<StoredWeight>,
    /// Machine code of each of [`Plan::kernels`](crate::plan::Plan::kernels), where it is known.
    /// Empty if none is.
    pub code: Vec<Option<KernelCode>>,
}

/// Machine code of a kernel, counted for the instruction set of the device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KernelCode {
    /// The kernel that was counted, if it is another one of the same variant. Its cycles are scaled
    /// by the multiply-adds of a work-item.
    pub scaled_from: Option<String>,
    /// Pipe with most cycles in the hottest loop: `FMA`, `CVT`, `SFU` or `LS`.
    pub pipe: String,
    /// 32-bit registers of a work-item.
    pub registers: u32,
    /// Work-items that a core runs at once, in percent of its most.
    pub occupancy_percent: u32,
    /// Registers stored to memory and loaded again, in instructions.
    pub spills: u32,
    /// Cycles of the busiest pipe for a work-item, on its lane.
    pub busiest_cycles: u64,
    /// Instructions of a work-item: its cycles if only one is issued at a time.
    pub issued_cycles: u64,
}

/// A constant operand of a contraction.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredWeight {
    /// Names of its tensors in the checkpoint.
    pub name: String,
    /// Extents, output channels first.
    pub shape: Vec<u32>,
    /// Storage type.
    pub dtype: ElementType,
    /// For INT8, the length of a scale group along the K axis.
    pub block: Option<u32>,
    /// Relative L2 error of the stored values, if it was measured.
    pub relative_error: Option<f64>,
}

/// Sustained rates of a device; 0 if unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// FP32 arithmetic, two for each multiply-add.
    pub flops_per_s: u64,
    /// FP16 arithmetic.
    pub half_flops_per_s: u64,
    /// Device memory.
    pub memory_bytes_per_s: u64,
    /// Reading weights from storage.
    pub io_bytes_per_s: u64,
    /// Overhead of a launch.
    pub launch_ns: u64,
}

impl Rates {
    /// Time of arithmetic (in FP16 if `half`) or of memory traffic, whichever is longer.
    ///
    /// Units: nanoseconds, rounded up.
    pub fn work_ns(&self, flops: u64, half: bool, bytes: u64) -> u64 {
        let flops_per_s = if half { self.half_flops_per_s } else { self.flops_per_s };
        duration_ns(flops, flops_per_s).max(duration_ns(bytes, self.memory_bytes_per_s))
    }

    /// Time of work-items that take `cycles` each. A lane of the device does one multiply-add of
    /// FP32 a cycle.
    ///
    /// Units: nanoseconds, rounded up.
    pub fn cycles_ns(&self, work_items: u64, cycles: u64) -> u64 {
        duration_ns(work_items.saturating_mul(cycles), self.flops_per_s / 2)
    }

    /// Time to read `bytes` of weights from storage.
    ///
    /// Units: nanoseconds, rounded up.
    pub fn load_ns(&self, bytes: u64) -> u64 {
        duration_ns(bytes, self.io_bytes_per_s)
    }
}

fn duration_ns(amount: u64, per_s: u64) -> u64 {
    if per_s == 0 {
        return 0;
    }
    let ns = (u128::from(amount) * 1_000_000_000).div_ceil(u128::from(per_s));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// A strategy to spend the budget, and whether it fits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Description of the strategy, for people.
    pub strategy: String,
    /// Least budget that the strategy needs; `None` for the strategy that fits.
    pub needs_bytes: Option<u64>,
}

/// The choice of a variant for one or more ops.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Types of the inputs and of the output, and the op's attributes.
    pub problem: String,
    /// Shape of the output.
    pub shape: Vec<u32>,
    /// All variants of the op's family, in the order in which they were considered.
    pub alternatives: Vec<Alternative>,
}

/// A variant that the planner considered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alternative {
    /// Name of the variant.
    pub variant: String,
    /// The verdict on the variant.
    pub verdict: Verdict,
}

/// The reason why a variant was chosen or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// The plan uses the variant.
    Chosen(Cost),
    /// Another variant is better.
    Later(Cost),
    /// The variant takes more scratch memory than the strategy allows.
    Scratch(Cost),
    /// The variant cannot compute the problem on this device.
    DoesNotApply,
    /// The variant needs larger weights, and is not faster if their reading counts.
    Weights(Cost),
    /// A single work-group of the variant takes longer than the profile allows a launch.
    TooLong(Cost),
}

impl Verdict {
    /// The predicted cost, if the variant applies.
    pub fn cost(&self) -> Option<Cost> {
        match self {
            Verdict::Chosen(cost)
            | Verdict::Later(cost)
            | Verdict::Scratch(cost)
            | Verdict::Weights(cost)
            | Verdict::TooLong(cost) => Some(*cost),
            Verdict::DoesNotApply => None,
        }
    }
}

/// Predicted cost of a variant for one op.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Number of launches.
    pub launches: u32,
    /// Scratch memory.
    pub scratch_bytes: u64,
    /// Arithmetic.
    pub flops: u64,
    /// Bytes read and written by the launches, each region once.
    pub bytes: u64,
    /// Predicted time of the launches.
    pub predicted_ns: u64,
}

/// The choice that applies to an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpChoice {
    /// Instant of its first launch.
    pub instant: u32,
    /// Index into [`Rationale::choices`].
    pub choice: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_as_its_bottleneck() {
        let rates = Rates {
            flops_per_s: 100,
            half_flops_per_s: 200,
            memory_bytes_per_s: 10,
            io_bytes_per_s: 1,
            launch_ns: 0,
        };
        assert_eq!(rates.work_ns(100, false, 1), 1_000_000_000);
        assert_eq!(rates.work_ns(100, true, 1), 500_000_000);
        assert_eq!(rates.work_ns(1, true, 20), 2_000_000_000);
        assert_eq!(rates.load_ns(3), 3_000_000_000);
        // 50 lanes and cycles a second.
        assert_eq!(rates.cycles_ns(20, 5), 2_000_000_000);
    }

    #[test]
    fn absurd_rates_and_amounts_have_times() {
        assert_eq!(Rates::default().work_ns(1, true, 1), 0);
        let slow = Rates { flops_per_s: 1, ..Rates::default() };
        assert_eq!(slow.work_ns(u64::MAX, false, 0), u64::MAX);
    }
}
