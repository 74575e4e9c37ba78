//! The plan section: a plan for each size of picture, the default first.
//!
//! ```text
//! 0    width and height of the picture (4 bytes each), length of the plan (8 bytes)
//! 16   the plan, as `codec` encodes it
//!      the next one
//! ```

use super::{u32_at, u64_at};
use crate::codec::{self, CodecError};
use crate::plan::{Plan, Size};

const HEAD_BYTES: usize = 16;

/// Encodes plans of different sizes.
///
/// Errors: as [`codec::encode`].
pub fn encode_plans(plans: &[Plan]) -> Result<Vec<u8>, CodecError> {
    let mut section = Vec::new();
    for plan in plans {
        let (bytes, size) = (codec::encode(plan)?, plan.manifest.image);
        section.extend(size.width_px.to_le_bytes());
        section.extend(size.height_px.to_le_bytes());
        section.extend((bytes.len() as u64).to_le_bytes());
        section.extend(bytes);
    }
    Ok(section)
}

/// The sizes of a section's plans, and the bytes of each. `None` if it is damaged or empty.
pub(super) fn split(mut section: &[u8]) -> Option<Vec<(Size, &[u8])>> {
    let mut plans = Vec::new();
    while !section.is_empty() {
        let (head, rest) = section.split_at_checked(HEAD_BYTES)?;
        let size = Size { width_px: u32_at(head, 0), height_px: u32_at(head, 4) };
        let (plan, rest) = rest.split_at_checked(usize::try_from(u64_at(head, 8)).ok()?)?;
        plans.push((size, plan));
        section = rest;
    }
    (!plans.is_empty()).then_some(plans)
}
