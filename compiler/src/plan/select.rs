//! Chooses the kernel variant of an op, and records the verdict on every other variant.
//!
//! [`Options`] lowers the candidates of a problem that any price of weight traffic may choose.
//! [`Options::best`] compares them at a given price. [`Options::verdicts`] gives the verdict on
//! each variant of the family.

use anyhow::{Context, Result};
use kiln_bundle::rationale::{Alternative, Cost, Verdict};
use kiln_kernels::{Lowering, Packing, Problem, Target, Variant, candidates, family};

use super::cost::{LaunchCost, launch_costs};
use super::dispatch;
use crate::device::DeviceProfile;
use crate::strategy::{ReadPrice, Selection};

/// A variant, lowered for a problem.
#[derive(Clone)]
pub struct Lowered {
    /// Name of the variant.
    pub variant: &'static str,
    /// Its launches.
    pub lowering: Lowering,
    /// Cost of each launch.
    pub costs: Vec<LaunchCost>,
    /// Bytes of the packed weights.
    weight_bytes: u64,
    /// A single work-group takes longer than the profile allows a launch.
    too_long: bool,
}

impl Lowered {
    fn new(
        variant: &Variant,
        problem: &Problem,
        target: &Target,
        profile: &DeviceProfile,
    ) -> Result<Self> {
        let lowering =
            variant.lower(problem, target).with_context(|| format!("variant {}", variant.name))?;
        let costs = launch_costs(problem, variant.name, &lowering, profile);
        let packed = lowering.packings.iter();
        let weight_bytes = packed.map(|(i, p)| p.size_bytes(&problem.inputs[*i].ty.shape)).sum();
        let (max_ns, launch_ns) = (profile.rates.max_dispatch_ns(), profile.rates.launch_ns);
        let too_long = !dispatch::can_cut(&lowering, &costs, max_ns, launch_ns);
        Ok(Self { variant: variant.name, lowering, costs, weight_bytes, too_long })
    }

    fn scratch_bytes(&self) -> u64 {
        self.lowering.scratch_bytes.iter().sum()
    }

    /// Whether the packing enlarges the weights over the checkpoint's layout.
    fn enlarges_weights(&self) -> bool {
        self.lowering.packings.iter().any(|(_, packing)| packing.enlarges())
    }

    /// Predicted time of the launches plus the price of reading the weights, in nanoseconds.
    fn priced_ns(&self, profile: &DeviceProfile, price: ReadPrice) -> u64 {
        let read_ns = profile.rates.in_plan().load_ns(self.weight_bytes);
        let price_ns = (read_ns / 100).saturating_mul(price.0);
        self.costs.iter().map(|c| c.ns).sum::<u64>().saturating_add(price_ns)
    }
}

/// Packed weights that the kernels of a variant of a network must read.
pub struct Packed {
    /// The target, tuned for the op that packs them.
    pub target: Target,
    /// Packings of the op's inputs.
    pub packings: Vec<(usize, Packing)>,
}

/// The candidates for a problem under a limit of scratch memory, as far as a choice may need them.
pub struct Options {
    /// The target, tuned for the problem.
    target: Target,
    /// The first candidates, in the target's order.
    lowered: Vec<Lowered>,
    /// Indices into `lowered` of the candidates to choose from.
    eligible: Vec<usize>,
}

impl Options {
    /// Lowers candidates, the target's favourite first, until one stays within the scratch limit.
    ///
    /// If this candidate enlarges the weights, the list continues to the first one that does not,
    /// so that the price of weight traffic can decide. If none stays within the limit, the
    /// candidate with the least scratch memory is the only option. A candidate with a work-group
    /// that takes too long is an option only if all have one.
    ///
    /// Errors: a template cannot be rendered.
    pub fn new(problem: &Problem, profile: &DeviceProfile) -> Result<Self> {
        let target = profile.target.tuned(problem).into_owned();
        let mut this = Self { target, lowered: vec![], eligible: vec![] };
        for variant in candidates(problem, &this.target) {
            // The oracle needs no scratch memory, but is too slow to be chosen for this.
            if variant.oracle && this.lowered.iter().any(|lowered| !lowered.too_long) {
                break;
            }
            let next = Lowered::new(variant, problem, &this.target, profile)?;
            let fits = !next.too_long && next.scratch_bytes() <= problem.max_scratch_bytes;
            let is_last = fits && !next.enlarges_weights();
            if fits {
                this.eligible.push(this.lowered.len());
            }
            this.lowered.push(next);
            if is_last {
                break;
            }
        }
        if this.eligible.is_empty() {
            let least = |i: &usize| (this.lowered[*i].too_long, this.lowered[*i].scratch_bytes());
            this.eligible.extend((0..this.lowered.len()).min_by_key(least));
        }
        Ok(this)
    }

    /// Lowers candidates until one reads weights as they are packed and stays within the scratch
    /// limit. It is the only option. If none stays within the limit, it is the one with the least
    /// scratch memory.
    ///
    /// Errors: none reads the packed weights.
    pub fn packed(problem: &Problem, profile: &DeviceProfile, packed: Packed) -> Result<Self> {
        let Packed { target, packings } = packed;
        let packed_columns = packings.iter().find_map(|(_, packing)| packing.panel_columns());
        let target = Target { packed_columns, ..target };
        let mut this = Self { target, lowered: vec![], eligible: vec![] };
        let mut least = None;
        for variant in candidates(problem, &this.target) {
            let next = Lowered::new(variant, problem, &this.target, profile)?;
            let (index, needs) = (this.lowered.len(), (next.too_long, next.scratch_bytes()));
            let fits = needs <= (false, problem.max_scratch_bytes);
            let reads = next.lowering.packings == packings;
            this.lowered.push(next);
            if reads && least.is_none_or(|(_, least)| needs < least) {
                least = Some((index, needs));
            }
            if reads && fits {
                break;
            }
        }
        let (index, _) = least
            .with_context(|| format!("no variant reads weights that are packed as {packings:?}"))?;
        this.eligible.push(index);
        Ok(this)
    }

    /// Index of the option to take: the first one, unless a later one with smaller weights is as
    /// fast at the price. `None` if no variant applies.
    pub fn best(&self, profile: &DeviceProfile, selection: Selection) -> Option<usize> {
        let ns = |index: usize| self.lowered[index].priced_ns(profile, selection.read_price);
        self.eligible.iter().copied().reduce(|best, next| {
            let smaller = self.lowered[next].weight_bytes < self.lowered[best].weight_bytes;
            if smaller && ns(next) <= ns(best) { next } else { best }
        })
    }

    /// The option with an index.
    pub fn get(&self, index: usize) -> &Lowered {
        &self.lowered[index]
    }

    /// The verdict on every variant of the op's family, in the order of the target. Variants that
    /// do not apply come last.
    ///
    /// `chosen` is the index of the option that was taken, `cost` its cost in the plan. Candidates
    /// after the last option are lowered here for their cost.
    pub fn verdicts(
        &self,
        chosen: usize,
        cost: Cost,
        problem: &Problem,
        profile: &DeviceProfile,
    ) -> Result<Vec<Alternative>> {
        let target = &self.target;
        let considered = candidates(problem, target);
        let verdict = |index: usize| -> Result<Verdict> {
            if index == chosen {
                return Ok(Verdict::Chosen(cost));
            }
            let unseen;
            let lowered = match self.lowered.get(index) {
                Some(lowered) => lowered,
                None => {
                    unseen = Lowered::new(considered[index], problem, target, profile)?;
                    &unseen
                }
            };
            let cost = cost_of(&lowered.lowering, &lowered.costs);
            Ok(if lowered.too_long {
                Verdict::TooLong(cost)
            } else if cost.scratch_bytes > problem.max_scratch_bytes {
                Verdict::Scratch(cost)
            } else if index < chosen {
                Verdict::Weights(cost)
            } else {
                Verdict::Later(cost)
            })
        };
        let mut list = Vec::new();
        for (index, variant) in considered.iter().enumerate() {
            let verdict = verdict(index)?;
            list.push(Alternative { variant: variant.name.to_string(), verdict });
        }
        let family = family(problem.op.name()).map_or(&[][..], |f| f.variants);
        let others = family.iter().filter(|v| considered.iter().all(|c| c.name != v.name));
        list.extend(others.map(|variant| Alternative {
            variant: variant.name.to_string(),
            verdict: Verdict::DoesNotApply,
        }));
        Ok(list)
    }
}

/// The cost of launches in the form of the plan.
pub fn cost_of(lowering: &Lowering, costs: &[LaunchCost]) -> Cost {
    Cost {
        launches: lowering.launches.len() as u32,
        scratch_bytes: lowering.scratch_bytes.iter().sum(),
        flops: lowering.launches.iter().map(|l| l.flops).sum(),
        bytes: costs.iter().map(|c| c.bytes).sum(),
        predicted_ns: costs.iter().map(|c| c.ns).sum(),
    }
}

/// The variant for a problem. `None` if none applies.
pub fn choose(
    problem: &Problem,
    profile: &DeviceProfile,
    selection: Selection,
) -> Result<Option<Lowered>> {
    let options = Options::new(problem, profile)?;
    Ok(options.best(profile, selection).map(|index| options.get(index).clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Scratch;
    use kiln_ir::ops::conv2d::Conv2d;
    use kiln_ir::{Op, TensorType};
    use kiln_kernels::Operand;

    /// The verdicts for a 3x3 convolution of a square feature map.
    fn verdicts(
        channels: usize,
        extent: usize,
        price: ReadPrice,
        scratch: u64,
    ) -> Vec<Alternative> {
        let (_, profile) = DeviceProfile::load("cpu-avx512").unwrap();
        verdicts_for(&profile, channels, extent, price, scratch)
    }

    fn verdicts_for(
        profile: &DeviceProfile,
        channels: usize,
        extent: usize,
        price: ReadPrice,
        scratch: u64,
    ) -> Vec<Alternative> {
        let op: Op = Conv2d::new(3, 1).into();
        let map = TensorType::f32(&[2, extent, extent, channels]);
        let weights = TensorType::f32(&[channels, channels, 3, 3]);
        let inputs = [Operand::new(map.clone()), Operand::constant(weights)];
        let max_weight_bytes = profile.memory.max_block_bytes;
        let problem = Problem {
            op: &op,
            inputs: &inputs,
            output: &map,
            max_weight_bytes,
            max_scratch_bytes: scratch,
        };
        let scratch = Scratch::AtMost(scratch);
        let selection = Selection { scratch, max_weight_bytes, read_price: price };
        let options = Options::new(&problem, profile).unwrap();
        let best = options.best(profile, selection).unwrap();
        let lowered = options.get(best);
        let cost = cost_of(&lowered.lowering, &lowered.costs);
        options.verdicts(best, cost, &problem, profile).unwrap()
    }

    fn of<'a>(list: &'a [Alternative], variant: &str) -> &'a Verdict {
        &list.iter().find(|a| a.variant == variant).unwrap().verdict
    }

    fn chosen(channels: usize, extent: usize, price: ReadPrice, scratch: u64) -> String {
        let list = verdicts(channels, extent, price, scratch);
        let mut chosen = list.iter().filter(|a| matches!(a.verdict, Verdict::Chosen(_)));
        let name = chosen.next().unwrap().variant.clone();
        assert!(chosen.next().is_none());
        name
    }

    /// Directly, 1280 channels at 16x16 take 66 ms of arithmetic and 59 MB of weights; with 2x2
    /// tiles 37 ms and 105 MB, with 4x4 tiles 21 ms and 236 MB, a millisecond of reading each.
    #[test]
    fn larger_weights_must_pay_for_their_reading() {
        let most = u64::MAX;
        assert_eq!(chosen(1280, 16, ReadPrice::FREE, most), "winograd4");
        assert_eq!(chosen(1280, 16, ReadPrice::MOSTLY_HIDDEN, most), "winograd2");
        assert_eq!(chosen(1280, 16, ReadPrice::FULL, most), "tiled_cpu");
        assert_eq!(chosen(320, 64, ReadPrice::FULL, most), "winograd4");
        assert_eq!(chosen(320, 64, ReadPrice::FULL, 1 << 10), "tiled_cpu");
    }

    #[test]
    fn every_variant_has_its_verdict() {
        let list = verdicts(1280, 16, ReadPrice::MOSTLY_HIDDEN, u64::MAX);
        assert!(matches!(of(&list, "winograd4"), Verdict::Weights(cost) if cost.predicted_ns > 0));
        assert!(matches!(of(&list, "winograd2"), Verdict::Chosen(_)));
        assert!(matches!(of(&list, "tiled_cpu"), Verdict::Later(_)));
        assert!(matches!(of(&list, "naive"), Verdict::Later(cost) if cost.flops > 0));
        let list = verdicts(320, 64, ReadPrice::FULL, 1 << 10);
        assert!(matches!(of(&list, "winograd4"), Verdict::Scratch(cost) if cost.launches > 0));
        let family = family("conv2d").unwrap().variants;
        assert_eq!(list.len(), family.len());
        assert!(list.iter().any(|a| a.verdict == Verdict::DoesNotApply));
    }

    /// A tile of the CPU's kernel takes a second of this device, an output element of the oracle
    /// 60 ms.
    #[test]
    fn a_variant_with_shorter_work_groups_is_taken_where_others_take_too_long() {
        let (_, mut profile) = DeviceProfile::load("cpu-avx512").unwrap();
        profile.rates.flops_per_s = 1e6;
        profile.rates.max_dispatch_ms = 100;
        let list = verdicts_for(&profile, 64, 16, ReadPrice::FREE, u64::MAX);
        assert!(matches!(of(&list, "tiled_cpu"), Verdict::TooLong(cost) if cost.launches > 0));
        assert!(matches!(of(&list, "naive"), Verdict::Chosen(_)), "{list:?}");
    }
}
