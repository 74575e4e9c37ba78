//! Splits launches that would occupy the device for too long.
//!
//! A phone's driver stops kernels that run for too long, and its screen waits for the others. A
//! long launch becomes several parts along one axis of its global size, which run in sequence. Each
//! part begins at the end of the previous one (`global_work_offset`), so kernels, arguments and
//! results are the same.

use anyhow::{Result, bail};
use kiln_kernels::{Launch, Lowering};

use super::time::LaunchCost;

/// The position of a launch in the launch that it is a part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    /// First work-item.
    pub offset: [u64; 3],
    /// Global size of the whole launch. [`Launch::global`] is the size of this part.
    pub range: [u64; 3],
}

/// Splits the launches of a lowering, and their costs, so that none is predicted to take more than
/// `max_ns` nanoseconds (0: no limit). Returns one part for each resulting launch.
///
/// `launch_ns` is the fixed time of a launch, in nanoseconds.
/// Errors: a single work-group takes longer.
pub fn cut(
    lowering: &mut Lowering,
    costs: &mut Vec<LaunchCost>,
    max_ns: u64,
    launch_ns: u64,
) -> Result<Vec<Part>> {
    let mut parts = Vec::with_capacity(costs.len());
    let mut launches = Vec::with_capacity(costs.len());
    let mut shares = Vec::with_capacity(costs.len());
    for (launch, cost) in std::mem::take(&mut lowering.launches).into_iter().zip(costs.drain(..)) {
        let range = launch.global;
        if max_ns == 0 || cost.ns <= max_ns {
            parts.push(Part { offset: [0; 3], range });
            launches.push(launch);
            shares.push(cost);
            continue;
        }
        let (axis, step) = axis(&launch, cost, max_ns, launch_ns)?;
        for first in (0..range[axis]).step_by(step as usize) {
            let (mut part, mut offset) = (launch.clone(), [0; 3]);
            let end = range[axis].min(first + step);
            (offset[axis], part.global[axis]) = (first, end - first);
            let up_to = |amount, items| share(amount, items, range[axis]);
            let between = |amount| up_to(amount, end) - up_to(amount, first);
            let work_ns = up_to(cost.ns.saturating_sub(launch_ns), end - first);
            part.flops = between(launch.flops);
            launches.push(part);
            shares.push(LaunchCost { bytes: between(cost.bytes), ns: work_ns + launch_ns });
            parts.push(Part { offset, range });
        }
    }
    lowering.launches = launches;
    *costs = shares;
    Ok(parts)
}

/// The axis along which a launch is split, the outermost one that is long enough, and the
/// work-items of a part.
fn axis(launch: &Launch, cost: LaunchCost, max_ns: u64, launch_ns: u64) -> Result<(usize, u64)> {
    let work_ns = cost.ns.saturating_sub(launch_ns);
    let group = launch.local.unwrap_or([1; 3]);
    for axis in [2, 1, 0] {
        let groups = launch.global[axis] / group[axis];
        let most = share(groups, max_ns.saturating_sub(launch_ns), work_ns);
        if most > 0 {
            let even = groups.div_ceil(groups.div_ceil(most));
            return Ok((axis, even * group[axis]));
        }
    }
    bail!(
        "a launch of {:?} work-items in groups of {group:?} would take {:.0} ms: no part of it is \
         short enough for the {:.0} ms that the profile allows",
        launch.global,
        cost.ns as f64 / 1e6,
        max_ns as f64 / 1e6
    )
}

/// `amount * part / whole`, rounded down.
fn share(amount: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(amount) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(global: [u64; 3], local: Option<[u64; 3]>) -> Launch {
        let (source, entry, args) = ("".into(), "", vec![]);
        Launch {
            source,
            entry,
            args,
            global,
            local,
            local_mem_bytes: 0,
            flops: 1001,
            half_arithmetic: false,
            bytes: None,
        }
    }

    fn cut_one(
        launch: Launch,
        ns: u64,
        max_ns: u64,
    ) -> Result<(Vec<Launch>, Vec<LaunchCost>, Vec<Part>)> {
        let mut lowering = Lowering { launches: vec![launch], ..Lowering::default() };
        let mut costs = vec![LaunchCost { bytes: 777, ns }];
        let parts = cut(&mut lowering, &mut costs, max_ns, 5)?;
        Ok((lowering.launches, costs, parts))
    }

    #[test]
    fn parts_follow_one_another_and_none_is_too_long() {
        for (global, local, ns, axis) in [
            ([7, 10, 1], None, 1005, 1),
            ([7, 3, 40], None, 2005, 2),
            ([64, 3, 2], Some([16, 1, 1]), 365, 0),
            ([9, 96, 1], Some([1, 32, 1]), 290, 1),
        ] {
            let (launches, costs, parts) = cut_one(launch(global, local), ns, 110).unwrap();
            assert!(launches.len() > 1);
            let mut next = 0;
            for ((launch, cost), part) in launches.iter().zip(&costs).zip(&parts) {
                let mut expected = global;
                expected[axis] = launch.global[axis];
                assert_eq!((launch.global, part.range), (expected, global));
                assert_eq!(part.offset[axis], next);
                assert_eq!(launch.global[axis] % local.map_or(1, |l| l[axis]), 0);
                assert!(cost.ns <= 110, "{costs:?}");
                next += launch.global[axis];
            }
            assert_eq!(next, global[axis]);
            assert_eq!(launches.iter().map(|l| l.flops).sum::<u64>(), 1001);
            assert_eq!(costs.iter().map(|c| c.bytes).sum::<u64>(), 777);
        }
    }

    #[test]
    fn short_launches_and_devices_without_a_limit_are_left_alone() {
        let whole = launch([7, 10, 1], None);
        for (ns, max_ns) in [(110, 110), (5000, 0)] {
            let (launches, costs, parts) = cut_one(whole.clone(), ns, max_ns).unwrap();
            assert_eq!((launches, costs[0].ns), (vec![whole.clone()], ns));
            assert_eq!(parts, [Part { offset: [0; 3], range: [7, 10, 1] }]);
        }
    }

    #[test]
    fn one_work_group_that_is_too_long_is_refused() {
        for max_ns in [110, 5, 3] {
            let error = cut_one(launch([16, 1, 1], Some([16, 1, 1])), 200, max_ns).unwrap_err();
            assert!(error.to_string().contains("[16, 1, 1]"), "{error}");
        }
    }
}
