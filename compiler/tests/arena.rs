//! The arena planner against published hard instances, brute force and random problems.

use std::path::Path;

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;
use kiln_compiler::plan::arena::{
    ArenaProblem, Buffer, Limits, ProblemError, Solution, check, conflict, run_csv, solve,
};

/// What the published instances are to be fitted into.
const MINIMALLOC_CAPACITY_BYTES: u64 = 1 << 20;

#[test]
fn the_minimalloc_instances_are_solved() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/minimalloc");
    for name in "ABCDEFGHIJK".chars() {
        let text = std::fs::read_to_string(folder.join(format!("{name}.1048576.csv"))).unwrap();
        let report = run_csv(&text, Some(MINIMALLOC_CAPACITY_BYTES), None).unwrap();
        assert!(report.fits(), "{name}: {report}");
    }
}

/// Few steps, so that many problems are tried.
const LIMITS: Limits = Limits { search_steps: 200_000, time: None };

fn any_buffer(u: &mut Unstructured, time_count: u32, size_limit: u64) -> Result<Buffer> {
    let lower = u.int_in_range(0..=time_count - 1)?;
    let upper = u.int_in_range(lower + 1..=time_count)?;
    let align_bytes = *u.choose(&[1, 1, 2, 3, 8, 64])?;
    Ok(Buffer::new(lower, upper, u.int_in_range(1..=size_limit)?, align_bytes))
}

fn any_problem(u: &mut Unstructured, buffer_limit: usize, time_count: u32) -> Result<ArenaProblem> {
    let count = u.int_in_range(0..=buffer_limit)?;
    let buffers = (0..count).map(|_| any_buffer(u, time_count, 100)).collect::<Result<_>>()?;
    Ok(ArenaProblem { buffers, capacity_bytes: None, part_bytes: None })
}

fn meet(a: &Buffer, b: &Buffer) -> bool {
    a.lower < b.upper && b.lower < a.upper
}

#[test]
fn solutions_are_accepted_and_not_below_the_lower_bound() {
    arbtest(|u| {
        let mut problem = any_problem(u, 40, 20)?;
        let solution = solve(&problem, &LIMITS).unwrap();
        assert_eq!(check(&problem, &solution), Ok(()));
        assert!(solution.height_bytes >= problem.lower_bound_bytes());
        assert_eq!(solve(&problem, &LIMITS).unwrap(), solution, "the same every time");

        problem.capacity_bytes = Some(solution.height_bytes);
        let fitting = solve(&problem, &LIMITS).unwrap();
        assert_eq!(check(&problem, &fitting), Ok(()));
        Ok(())
    });
}

#[test]
fn no_buffer_is_in_two_parts() {
    arbtest(|u| {
        let mut problem = any_problem(u, 40, 20)?;
        // A multiple of every alignment, and no smaller than a buffer.
        problem.part_bytes = Some(192 * u.int_in_range(1..=3)?);
        let solution = solve(&problem, &LIMITS).unwrap();
        assert_eq!(check(&problem, &solution), Ok(()));
        problem.capacity_bytes = Some(solution.height_bytes);
        assert_eq!(check(&problem, &solve(&problem, &LIMITS).unwrap()), Ok(()));
        Ok(())
    });
}

#[test]
fn a_buffer_larger_than_a_part_is_refused() {
    let buffers = vec![Buffer::new(0, 1, 64, 64), Buffer::new(0, 1, 65, 64)];
    let problem = ArenaProblem { buffers, capacity_bytes: None, part_bytes: Some(64) };
    let error = solve(&problem, &LIMITS).unwrap_err();
    assert_eq!(error, ProblemError::Part { buffer: 1, part_bytes: 64 });
}

#[test]
fn fixed_buffers_stay_where_they_are() {
    arbtest(|u| {
        let mut problem = any_problem(u, 20, 10)?;
        // Some placement, a little higher up, so that there is room below.
        let mut solution = solve(&problem, &Limits { search_steps: 0, time: None }).unwrap();
        let lift = 192 * u.int_in_range(0..=1)?;
        solution.offsets.iter_mut().for_each(|offset| *offset += lift);
        for (buffer, &offset) in problem.buffers.iter_mut().zip(&solution.offsets) {
            if u.ratio(1, 4)? {
                buffer.fixed_offset = Some(offset);
            }
        }
        let solution = solve(&problem, &LIMITS).unwrap();
        assert_eq!(check(&problem, &solution), Ok(()));
        assert!(solution.height_bytes >= problem.lower_bound_bytes());
        Ok(())
    });
}

#[test]
fn a_mutated_solution_is_rejected() {
    arbtest(|u| {
        let problem = any_problem(u, 30, 8)?;
        let good = solve(&problem, &LIMITS).unwrap();
        let buffers = &problem.buffers;
        if buffers.is_empty() {
            return Ok(());
        }
        let i = u.choose_index(buffers.len())?;

        let mut bad = good.clone();
        bad.height_bytes =
            if u.arbitrary()? { good.height_bytes + 1 } else { good.height_bytes - 1 };
        assert!(check(&problem, &bad).is_err(), "height");

        let mut bad = good.clone();
        bad.offsets[i] += 1;
        if buffers[i].align_bytes > 1 {
            assert!(check(&problem, &bad).is_err(), "alignment");
        }

        // A buffer moved to where one that it meets is.
        let j = u.choose_index(buffers.len())?;
        let mut bad = good.clone();
        bad.offsets[i] = good.offsets[j];
        if i != j && meet(&buffers[i], &buffers[j]) {
            assert!(check(&problem, &bad).is_err(), "overlap");
        }

        let mut bad = good.clone();
        bad.offsets.truncate(i);
        assert!(check(&problem, &bad).is_err(), "count");

        let mut tight = problem.clone();
        tight.capacity_bytes = Some(good.height_bytes - 1);
        assert!(check(&tight, &good).is_err(), "capacity");
        Ok(())
    });
}

/// The least height: some order in which buffers are stacked on those they meet gives it.
fn least_height(problem: &ArenaProblem, offsets: &mut Vec<(usize, u64)>, best: &mut u64) {
    let buffers = &problem.buffers;
    if offsets.len() == buffers.len() {
        let ends = offsets.iter().map(|&(i, offset)| offset + buffers[i].size_bytes);
        *best = ends.max().unwrap_or(0).min(*best);
        return;
    }
    for (i, buffer) in buffers.iter().enumerate() {
        if offsets.iter().any(|&(placed, _)| placed == i) {
            continue;
        }
        let below = offsets.iter().filter(|&&(j, _)| meet(buffer, &buffers[j]));
        let floor = below.map(|&(j, offset)| offset + buffers[j].size_bytes).max().unwrap_or(0);
        offsets.push((i, floor.next_multiple_of(buffer.align_bytes)));
        least_height(problem, offsets, best);
        offsets.pop();
    }
}

#[test]
fn small_problems_are_solved_to_the_optimum() {
    arbtest(|u| {
        let problem = any_problem(u, 6, 6)?;
        let mut least_bytes = u64::MAX;
        least_height(&problem, &mut Vec::new(), &mut least_bytes);
        let solution = solve(&problem, &Limits::default()).unwrap();
        assert_eq!(solution.height_bytes, least_bytes, "{problem:?}");
        Ok(())
    });
}

/// Cuts a rectangle of `time_count` by `height_bytes` into buffers that fill it without a gap.
fn any_dissection(
    u: &mut Unstructured,
    time_count: u32,
    height_bytes: u64,
) -> Result<ArenaProblem> {
    let mut pieces = vec![(0, time_count, 0, height_bytes)];
    for _ in 0..u.int_in_range(0..=15)? {
        let i = u.choose_index(pieces.len())?;
        let (lower, upper, floor, end) = pieces[i];
        if u.arbitrary()? && upper - lower > 1 {
            let middle = u.int_in_range(lower + 1..=upper - 1)?;
            pieces[i] = (lower, middle, floor, end);
            pieces.push((middle, upper, floor, end));
        } else if end - floor > 1 {
            let middle = u.int_in_range(floor + 1..=end - 1)?;
            pieces[i] = (lower, upper, floor, middle);
            pieces.push((lower, upper, middle, end));
        }
    }
    let buffers =
        pieces.iter().map(|&(lower, upper, floor, end)| Buffer::new(lower, upper, end - floor, 1));
    Ok(ArenaProblem { buffers: buffers.collect(), capacity_bytes: None, part_bytes: None })
}

#[test]
fn dissected_rectangles_are_put_together_again() {
    arbtest(|u| {
        let problem = any_dissection(u, 50, 1000)?;
        let solution = solve(&problem, &Limits::default()).unwrap();
        assert_eq!(check(&problem, &solution), Ok(()));
        assert_eq!(solution.height_bytes, 1000, "{problem:?}");
        Ok(())
    });
}

#[test]
fn a_conflict_is_exactly_a_capacity_below_the_live_sizes() {
    arbtest(|u| {
        let problem = any_problem(u, 20, 10)?;
        let lower_bound_bytes = problem.lower_bound_bytes();
        assert_eq!(conflict(&problem, lower_bound_bytes), None);
        if lower_bound_bytes == 0 {
            return Ok(());
        }
        let found = conflict(&problem, lower_bound_bytes - 1).unwrap();
        assert_eq!(found.live_bytes, lower_bound_bytes);
        let live = problem.buffers.iter().filter(|b| b.lower <= found.time && found.time < b.upper);
        assert_eq!(found.buffers.len(), live.count());
        assert!(found.buffers.is_sorted_by_key(|&(_, size_bytes)| std::cmp::Reverse(size_bytes)));
        Ok(())
    });
}

/// A network's activations: a chain of short-lived buffers and skips that are nested.
fn network(buffer_count: u32) -> ArenaProblem {
    let buffer = |i: u32| {
        let life = if i.is_multiple_of(9) {
            buffer_count - 2 * i.min(buffer_count / 2 - 1)
        } else {
            2 + i % 2
        };
        Buffer::new(i, i + life, 4096 << (i * 7 % 11), 128)
    };
    ArenaProblem {
        buffers: (0..buffer_count).map(buffer).collect(),
        capacity_bytes: None,
        part_bytes: None,
    }
}

#[test]
fn thousands_of_buffers_take_no_recursion_and_no_time() {
    let problem = network(3000);
    let solution = solve(&problem, &Limits { search_steps: 20_000_000, time: None }).unwrap();
    assert_eq!(check(&problem, &solution), Ok(()));
    let empty = solve(&ArenaProblem::default(), &Limits::default()).unwrap();
    assert_eq!(empty, Solution::default());
}
