//! Work sizes that a device accepts.

use super::violation::{Place, Violation};
use crate::plan::{Dispatch, Requirements};

/// Checks the sizes of one launch.
pub(super) fn check(
    dispatch: &Dispatch,
    requirements: &Requirements,
    place: impl Fn() -> Box<Place>,
) -> Result<(), Violation> {
    let Dispatch { global, offset, local, .. } = dispatch;
    let divides = |local: &[u64; 3]| {
        let sizes = global.iter().zip(offset).zip(local);
        sizes.into_iter().all(|((global, offset), &local)| {
            local != 0 && global.is_multiple_of(local) && offset.is_multiple_of(local)
        })
    };
    let overflows = global.iter().zip(offset).any(|(g, o)| g.checked_add(*o).is_none());
    if global.contains(&0) || overflows || !local.as_ref().is_none_or(divides) {
        return Err(Violation::WorkSize { place: place(), global: *global, local: *local });
    }
    let Some(local) = *local else { return Ok(()) };
    let max = requirements.work_group_size;
    let size = local.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent));
    if size.is_none_or(|size| size > max) {
        return Err(Violation::WorkGroup { place: place(), local, max });
    }
    Ok(())
}
