//! Splits launches that would occupy the device for too long.
//!
//! A phone's driver stops kernels that run for too long, and its screen waits for the others. A
//! long launch becomes several parts, which run in sequence. The parts are tiles of the launch's
//! work-items, all of one size. Each begins at its own `global_work_offset`, so kernels, arguments
//! and results are the same.

use anyhow::{Result, bail};
use kiln_kernels::{Launch, Lowering};

use super::cost::LaunchCost;

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
        let tile = tile(&launch, cost, max_ns, launch_ns)?;
        let mut done = 0;
        for offset in offsets(range, tile) {
            let mut part = launch.clone();
            part.global = [0, 1, 2].map(|axis| tile[axis].min(range[axis] - offset[axis]));
            let items = volume(part.global);
            let up_to = |amount, items| share(amount, items, volume(range));
            let own = |amount| up_to(amount, done + items) - up_to(amount, done);
            part.flops = own(launch.flops);
            let work_ns = up_to(cost.ns.saturating_sub(launch_ns), items);
            shares.push(LaunchCost { bytes: own(cost.bytes), ns: work_ns + launch_ns });
            parts.push(Part { offset, range });
            launches.push(part);
            done += items;
        }
    }
    lowering.launches = launches;
    *costs = shares;
    Ok(parts)
}

/// Whether [`cut`] splits a lowering without an error.
pub fn can_cut(lowering: &Lowering, costs: &[LaunchCost], max_ns: u64, launch_ns: u64) -> bool {
    let mut launches = lowering.launches.iter().zip(costs);
    let is_short = |cost: &LaunchCost| max_ns == 0 || cost.ns <= max_ns;
    launches.all(|(launch, cost)| is_short(cost) || tile(launch, *cost, max_ns, launch_ns).is_ok())
}

/// First work-items of the tiles of a range, in the order in which they run.
fn offsets(range: [u64; 3], tile: [u64; 3]) -> impl Iterator<Item = [u64; 3]> {
    let along = move |axis: usize| (0..range[axis]).step_by(tile[axis] as usize);
    along(2).flat_map(move |z| along(1).flat_map(move |y| along(0).map(move |x| [x, y, z])))
}

/// The work-items of a part. A launch is split along the outermost axis whose slices are short
/// enough. If there is none, the outer axes are cut to single work-groups, as many as it takes.
fn tile(launch: &Launch, cost: LaunchCost, max_ns: u64, launch_ns: u64) -> Result<[u64; 3]> {
    let work_ns = cost.ns.saturating_sub(launch_ns);
    let room_ns = max_ns.saturating_sub(launch_ns);
    let (global, group) = (launch.global, launch.local.unwrap_or([1; 3]));
    let groups = [0, 1, 2].map(|axis| global[axis] / group[axis]);
    // Work-items along an axis, of parts of like length; `None` if a single work-group is too long.
    let along = |axis: usize, work_ns: u64| {
        let most = share(groups[axis], room_ns, work_ns);
        let even = groups[axis].div_ceil(groups[axis].div_ceil(most.max(1)));
        (most > 0).then_some(even * group[axis])
    };
    for axis in [2, 1, 0] {
        if let Some(items) = along(axis, work_ns) {
            let mut tile = global;
            tile[axis] = items;
            return Ok(tile);
        }
    }
    let (mut tile, mut slice_ns) = (global, work_ns);
    for axis in [2, 1, 0] {
        if let Some(items) = along(axis, slice_ns) {
            tile[axis] = items;
            return Ok(tile);
        }
        tile[axis] = group[axis];
        slice_ns = slice_ns.div_ceil(groups[axis]);
    }
    bail!(
        "a single work-group of {group:?} work-items would take {:.0} ms, longer than the {:.0} ms \
         that the profile allows a launch",
        slice_ns.saturating_add(launch_ns) as f64 / 1e6,
        max_ns as f64 / 1e6
    )
}

/// Work-items of a size.
fn volume(size: [u64; 3]) -> u64 {
    size.iter().product()
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
            vnni: false,
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
    fn a_launch_is_cut_along_as_many_axes_as_it_takes() {
        // A slice across any axis takes more than 105 ns, a row of four work-groups 100.
        let whole = launch([64, 12, 3], Some([16, 1, 1]));
        let (launches, costs, parts) = cut_one(whole, 5 + 3 * 12 * 100, 110).unwrap();
        assert!(launches.iter().all(|l| l.global == [64, 1, 1]));
        let rows = (0..3).flat_map(|z| (0..12).map(move |y| [0, y, z]));
        assert!(parts.iter().map(|part| part.offset).eq(rows));
        assert!(costs.iter().all(|c| c.ns == 105), "{costs:?}");
        assert_eq!(launches.iter().map(|l| l.flops).sum::<u64>(), 1001);
        assert_eq!(costs.iter().map(|c| c.bytes).sum::<u64>(), 777);
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
            assert!(error.to_string().starts_with("a single work-group"), "{error}");
        }
    }
}
