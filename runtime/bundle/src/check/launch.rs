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
    /// The axis along which the launch is split.
    axis: usize,
    /// First work-item of the next part.
    next: u64,
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
        let (axis, next) = match begun {
            Some(Begun { last, axis, next }) => {
                let same = |d: &Dispatch| (d.kernel, d.range, d.local);
                if same(last) != same(dispatch) || last.args != dispatch.args {
                    return Err(parts(dispatch, place));
                }
                (axis, next)
            }
            None => (axis_of(global, range), 0),
        };
        let right = (0..3).all(|other| match other == axis {
            true => offset[other] == next && global[other] <= range[other].saturating_sub(next),
            false => offset[other] == 0 && global[other] == range[other],
        });
        if !right {
            return Err(parts(dispatch, place));
        }
        let next = next + global[axis];
        let begun = Begun { last: dispatch, axis, next };
        Ok((next < range[axis]).then_some(begun))
    }

    /// The violation of a launch that ends before its last part.
    pub(super) fn broken_off(&self, place: impl Fn() -> Box<Place>) -> Violation {
        parts(self.last, place)
    }
}

/// The axis along which a dispatch is smaller than its range; the first one if there is none.
fn axis_of(global: &[u64; 3], range: &[u64; 3]) -> usize {
    (0..3).find(|&axis| global[axis] != range[axis]).unwrap_or(0)
}

fn parts(dispatch: &Dispatch, place: impl Fn() -> Box<Place>) -> Violation {
    let Dispatch { global, offset, range, .. } = *dispatch;
    Violation::Parts { place: place(), global, offset, range }
}
