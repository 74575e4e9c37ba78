//! Strategies: the ways to spend a budget that the planner tries.

use kiln_bundle::plan::Role;
use kiln_ir::DType;
use std::fmt;

use crate::device::DeviceProfile;
use crate::model::GUIDANCE_BRANCHES;
use crate::size::{MIB, mib};

/// One way to spend the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// Branches of guidance: prompts of the text encoder, and U-Net rows of a step.
    pub guidance_branches: usize,
    /// Rows of a U-Net pass. 2 computes both branches of guidance together: they share each read of
    /// the weights and need twice the activations. 1 computes them one after the other.
    pub guidance_batch: usize,
    /// Limit of the scratch memory of a kernel variant.
    pub scratch: Scratch,
    /// Largest run of weights that one launch reads, in bytes: the size of a slot for streamed
    /// weights.
    pub max_block_bytes: u64,
    /// Storage type of values between ops.
    pub activations: DType,
    /// Price of weight traffic in the repeated network; see [`Strategy::selection`].
    pub read_price: ReadPrice,
    /// Whether each reader of the autoencoder's largest feature maps recomputes them, stripe by
    /// stripe. The feature maps are then never in memory.
    pub recompute: bool,
}

/// Limit of the scratch memory of a kernel variant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scratch {
    /// No limit. Variants are chosen for speed alone.
    Unlimited,
    /// At most this many bytes. If every variant needs more, the one with the least is taken.
    AtMost(u64),
}

impl Scratch {
    /// The limit in bytes.
    pub fn limit_bytes(self) -> u64 {
        match self {
            Scratch::Unlimited => u64::MAX,
            Scratch::AtMost(bytes) => bytes,
        }
    }
}

/// Price of weight traffic when variants are compared, in percent of the read time. Variants whose
/// packing enlarges weights (Winograd) pay it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPrice(pub u64);

impl ReadPrice {
    /// Weights are resident, or every read is hidden behind arithmetic.
    pub const FREE: Self = Self(0);
    /// A quarter of the read time is waited for.
    pub const MOSTLY_HIDDEN: Self = Self(25);
    /// Every byte is waited for.
    pub const FULL: Self = Self(100);
    /// A hundred times the read time, so that weights stay as small as possible.
    pub const PROHIBITIVE: Self = Self(10_000);
}

/// Criteria for the variants of one network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Limit of scratch memory.
    pub scratch: Scratch,
    /// Largest run of weights that one launch reads, in bytes.
    pub max_weight_bytes: u64,
    /// Price of weight traffic.
    pub read_price: ReadPrice,
}

impl Strategy {
    /// Criteria for the variants of a network. Only the denoiser's reads can hide behind the
    /// arithmetic of an earlier pass. Other networks pay the full price, or the prohibitive one.
    pub fn selection(&self, role: Role) -> Selection {
        let own_price = role.is_denoiser() || self.read_price == ReadPrice::PROHIBITIVE;
        Selection {
            scratch: self.scratch,
            max_weight_bytes: self.max_block_bytes,
            read_price: if own_price { self.read_price } else { ReadPrice::FULL },
        }
    }
}

/// Strategies to try, the most frugal last. The planner takes the fastest one that fits.
///
/// `narrowest` is the narrowest type of activations. FP16 comes first if the device profits from
/// it, otherwise after all of FP32. If given, `guidance_batch` is the batch of every strategy.
pub fn strategies(
    profile: &DeviceProfile,
    narrowest: DType,
    guidance_branches: usize,
    guidance_batch: Option<usize>,
) -> Vec<Strategy> {
    let activations: &[DType] = match (narrowest, profile.target.half_activations) {
        (DType::F16, true) => &[DType::F16],
        (DType::F16, false) => &[DType::F32, DType::F16],
        _ => &[DType::F32],
    };
    let list = by_frugality(profile.memory.max_block_bytes);
    let with = |activations: DType| {
        list.iter().map(move |strategy| Strategy {
            guidance_branches,
            guidance_batch: guidance_batch
                .unwrap_or(strategy.guidance_batch)
                .min(guidance_branches),
            activations,
            ..*strategy
        })
    };
    activations.iter().flat_map(|dtype| with(*dtype)).collect()
}

/// The strategies for activations in FP32. Later ones need less memory and more time.
/// `kiln compile --budget-sweep` prints the strategy for each budget.
fn by_frugality(profile_block_bytes: u64) -> Vec<Strategy> {
    let fast = Strategy {
        guidance_branches: GUIDANCE_BRANCHES,
        guidance_batch: GUIDANCE_BRANCHES,
        scratch: Scratch::Unlimited,
        max_block_bytes: profile_block_bytes,
        activations: DType::F32,
        read_price: ReadPrice::FULL,
        recompute: false,
    };
    // One row a pass, smaller slots.
    let narrow = Strategy { guidance_batch: 1, max_block_bytes: profile_block_bytes / 4, ..fast };
    let narrowest = Strategy { max_block_bytes: profile_block_bytes / 16, ..narrow };
    let scratch_mib = |mib: u64| Scratch::AtMost(mib * MIB);
    vec![
        Strategy { read_price: ReadPrice::FREE, ..fast },
        Strategy { read_price: ReadPrice::MOSTLY_HIDDEN, ..fast },
        Strategy { read_price: ReadPrice::FULL, ..fast },
        Strategy { read_price: ReadPrice::PROHIBITIVE, ..fast },
        Strategy { guidance_batch: GUIDANCE_BRANCHES, ..narrow },
        Strategy { guidance_batch: GUIDANCE_BRANCHES, scratch: scratch_mib(16), ..narrow },
        Strategy { guidance_batch: GUIDANCE_BRANCHES, scratch: scratch_mib(16), ..narrowest },
        Strategy { scratch: scratch_mib(4), ..narrow },
        Strategy { scratch: scratch_mib(4), ..narrowest },
        Strategy { scratch: scratch_mib(1), ..narrowest },
        // Stripes of recomputed feature maps need scratch memory too, so these strategies have more
        // of it.
        Strategy {
            guidance_batch: GUIDANCE_BRANCHES,
            scratch: scratch_mib(16),
            recompute: true,
            ..narrow
        },
        Strategy { scratch: scratch_mib(16), recompute: true, ..narrow },
        Strategy {
            scratch: scratch_mib(16),
            read_price: ReadPrice::PROHIBITIVE,
            recompute: true,
            ..narrowest
        },
        Strategy {
            scratch: scratch_mib(8),
            read_price: ReadPrice::PROHIBITIVE,
            recompute: true,
            ..narrowest
        },
        Strategy {
            scratch: scratch_mib(6),
            max_block_bytes: profile_block_bytes / 32,
            read_price: ReadPrice::PROHIBITIVE,
            recompute: true,
            ..narrowest
        },
    ]
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.guidance_branches, self.guidance_batch) {
            (1, _) => f.write_str("one U-Net pass a step")?,
            (_, 1) => f.write_str("two U-Net passes a step")?,
            (_, n) => write!(f, "one U-Net pass of batch {n} a step")?,
        }
        match self.scratch {
            Scratch::Unlimited => f.write_str(", the fastest variants")?,
            Scratch::AtMost(0) => f.write_str(", the variants with the least scratch memory")?,
            Scratch::AtMost(bytes) => {
                write!(f, ", variants with up to {} of scratch memory", mib(bytes))?;
            }
        }
        write!(f, ", weight blocks of up to {}", mib(self.max_block_bytes))?;
        match self.read_price {
            ReadPrice::FREE => f.write_str(", weights as large as is fast")?,
            ReadPrice::PROHIBITIVE => f.write_str(", weights as small as can be")?,
            ReadPrice(percent) => write!(f, ", reading of weights at {percent} % of its time")?,
        }
        if self.recompute {
            f.write_str(", the largest feature maps recomputed by stripes")?;
        }
        match self.activations {
            DType::F16 => f.write_str(", activations in FP16"),
            _ => Ok(()),
        }
    }
}
