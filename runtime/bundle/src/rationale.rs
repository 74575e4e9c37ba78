//! Why a plan is what it is: for people and tools.
//!
//! The runtime reads none of it and the checker holds none of it, so whoever shows it takes
//! every index with care.

use serde::{Deserialize, Serialize};

use crate::plan::DType;

/// What the planner knew when it decided.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rationale {
    /// What the device was taken to sustain.
    pub rates: Rates,
    /// The strategies that were tried, in order; the last one is the plan's.
    pub attempts: Vec<Attempt>,
    /// Ops that differ in nothing but their names share a choice.
    pub choices: Vec<Choice>,
    /// The ops in execution order over all networks.
    pub ops: Vec<OpChoice>,
    /// How the weights of contractions are stored, each constant once.
    pub weights: Vec<StoredWeight>,
}

/// A constant that a contraction multiplies with.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StoredWeight {
    /// Its tensors in the checkpoint.
    pub name: String,
    /// Extents, output channels first.
    pub shape: Vec<u32>,
    /// Storage type.
    pub dtype: DType,
    /// For INT8, how many places of an output channel's sum share a scale.
    pub block: Option<u32>,
    /// Relative L2 error of the stored values, if it was measured.
    pub relative_error: Option<f64>,
}

/// Sustained rates of a device; 0 where they are not known.
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
    /// What every launch takes beside its work.
    pub launch_ns: u64,
}

impl Rates {
    /// Time of arithmetic, in FP16 if `half`, or memory traffic, whichever takes longer.
    ///
    /// Units: nanoseconds, rounded up.
    pub fn work_ns(&self, flops: u64, half: bool, bytes: u64) -> u64 {
        let flops_per_s = if half { self.half_flops_per_s } else { self.flops_per_s };
        duration_ns(flops, flops_per_s).max(duration_ns(bytes, self.memory_bytes_per_s))
    }

    /// Time of reading that many bytes of weights.
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

/// A way to spend the budget, and whether it fitted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// What sets it apart, for people.
    pub strategy: String,
    /// The budget it would have needed; `None` for the one that fits.
    pub needs_bytes: Option<u64>,
}

/// How the variant of some ops was chosen.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Choice {
    /// Types of the inputs and of the output, and the op's attributes.
    pub problem: String,
    /// Shape of the output.
    pub shape: Vec<u32>,
    /// All variants of the op's family, in the order in which they were considered.
    pub alternatives: Vec<Alternative>,
}

/// A variant that was considered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Alternative {
    /// Its name.
    pub variant: String,
    /// What spoke for or against it.
    pub verdict: Verdict,
}

/// Why a variant was taken or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// It is the plan's.
    Chosen(Cost),
    /// A better one was taken.
    Later(Cost),
    /// It takes more scratch memory than the strategy allows.
    Scratch(Cost),
    /// It cannot compute the problem on this device.
    DoesNotApply,
    /// It needs larger weights, and would not be faster, their reading included.
    Weights(Cost),
}

impl Verdict {
    /// What it would take, if it applies.
    pub fn cost(&self) -> Option<Cost> {
        match self {
            Verdict::Chosen(cost)
            | Verdict::Later(cost)
            | Verdict::Scratch(cost)
            | Verdict::Weights(cost) => Some(*cost),
            Verdict::DoesNotApply => None,
        }
    }
}

/// What a variant takes for one op.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Launches.
    pub launches: u32,
    /// Temporary memory.
    pub scratch_bytes: u64,
    /// Arithmetic.
    pub flops: u64,
    /// What the launches read and write, each region once.
    pub bytes: u64,
    /// What the launches should take.
    pub predicted_ns: u64,
}

/// An op and its choice.
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
    }

    #[test]
    fn absurd_rates_and_amounts_have_times() {
        assert_eq!(Rates::default().work_ns(1, true, 1), 0);
        let slow = Rates { flops_per_s: 1, ..Rates::default() };
        assert_eq!(slow.work_ns(u64::MAX, false, 0), u64::MAX);
    }
}
