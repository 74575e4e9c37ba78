//! Work sizes that a device accepts, and split launches.

use super::violation::{Place, Violation};
use crate::plan::{Dispatch, Requirements};

/// Checks the sizes of one launch and its predicted time.
pub(super) fn check(
    dispatch: &Dispatch,
    requirements: &Requirements,
    place: impl Fn() -> Box<Place>,
) -> Result<(), Violation> {
    let Dispatch { global, offset, local, predicted_ns, .. } = dispatch;
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
    let max_ns = requirements.max_dispatch_ns;
    if max_ns != 0 && *predicted_ns > max_ns {
        return Err(Violation::TooLong { place: place(), predicted_ns: *predicted_ns, max_ns });
    }
    let Some(local) = *local else { return Ok(()) };
    let max = requirements.work_group_size;
    let size = local.iter().try_fold(1u64, |product, &extent| product.checked_mul(extent));
    if size.is_none_or(|size| size > max) {
        return Err(Violation::WorkGroup { place: place(), local, max });
    }
    Ok(())
}

/// A split launch of which some parts are still to run.
pub(super) struct Begun<'a> {
    last: &'a Dispatch,
    /// Work-items of its parts; those at the end of an axis may have fewer.
    tile: [u64; 3],
    /// First work-item of the next part.
    next: [u64; 3],
}

impl<'a> Begun<'a> {
    /// Returns the state after `dispatch`: the launch if parts of it are still to run.
    ///
    /// Requires: [`check`] accepts `dispatch`. Errors: it is neither the first part of a launch nor
    /// the next part of the one that has begun.
    pub(super) fn follow(
        begun: Option<Begun<'a>>,
        dispatch: &'a Dispatch,
        place: impl Fn() -> Box<Place>,
    ) -> Result<Option<Begun<'a>>, Violation> {
        let Dispatch { global, offset, range, .. } = dispatch;
        let (tile, next) = match begun {
            Some(Begun { last, tile, next }) => {
                let same = |d: &Dispatch| (d.kernel, d.range, d.local);
                if same(last) != same(dispatch) || last.args != dispatch.args {
                    return Err(parts(dispatch, place));
                }
                (tile, next)
            }
            None => (*global, [0; 3]),
        };
        let left = |axis: usize| range[axis].saturating_sub(next[axis]);
        if *offset != next || (0..3).any(|axis| global[axis] != tile[axis].min(left(axis))) {
            return Err(parts(dispatch, place));
        }
        let next = following(next, global, range);
        Ok(next.map(|next| Begun { last: dispatch, tile, next }))
    }

    /// The violation of a launch that ends before its last part.
    pub(super) fn broken_off(&self, place: impl Fn() -> Box<Place>) -> Violation {
        parts(self.last, place)
    }
}

/// First work-item of the part after that at `first`: along the innermost axis that goes on.
fn following(first: [u64; 3], global: &[u64; 3], range: &[u64; 3]) -> Option<[u64; 3]> {
    let mut next = first;
    for axis in 0..3 {
        next[axis] += global[axis];
        if next[axis] < range[axis] {
            return Some(next);
        }
        next[axis] = 0;
    }
    None
}

fn parts(dispatch: &Dispatch, place: impl Fn() -> Box<Place>) -> Violation {
    let Dispatch { global, offset, range, .. } = *dispatch;
    Violation::Parts { place: place(), global, offset, range }
}
