//! Looks for the first op of a bundle whose numbers are not finite.

use std::sync::Arc;

use half::f16;
use kiln_bundle::plan::{Access, Arg, Dispatch, Plan, Step};

use super::Session;
use super::measure::Inputs;
use crate::error::RuntimeError;

/// An op whose output is not finite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotFiniteOp {
    /// Name of the network.
    pub network: String,
    /// Name of the op.
    pub op: String,
}

/// The last launch of an op, after which its output is whole.
struct Last {
    network: usize,
    step: usize,
    /// Elements of the output.
    elems: u64,
}

impl Session {
    /// Runs every network once on ordinary numbers, reads each op's output, and returns the first
    /// op that gives an infinity or NaN. Memory beside the plan: one output.
    ///
    /// Errors: those of a run.
    pub fn first_not_finite(&mut self) -> Result<Option<NotFiniteOp>, RuntimeError> {
        let (inputs, bundle) = (Inputs::of(self), Arc::clone(&self.bundle));
        let plan = bundle.plan();
        let lasts = lasts(plan);
        let sequence: Vec<usize> = (0..plan.networks.len()).collect();
        let mut found = None;
        self.with_stream(&sequence, |session, stream| {
            for &network in &sequence {
                let entry = &plan.networks[network];
                let mut provide = |input| session.provide(entry, input, inputs.values());
                entry.inputs.iter().try_for_each(&mut provide)?;
                session.executor.run_watched(network, stream, &mut |executor, step| {
                    let here = |last: &&Last| (last.network, last.step) == (network, step);
                    let Some(last) = lasts.iter().find(here).filter(|_| found.is_none()) else {
                        return Ok(());
                    };
                    let Step::Dispatch(dispatch) = &entry.steps[step] else { return Ok(()) };
                    for (buffer, offset_bytes, len_bytes) in written(dispatch) {
                        let mut bytes = vec![0; len_bytes as usize];
                        executor.read_region(buffer, offset_bytes, &mut bytes)?;
                        if !is_finite(&bytes, len_bytes.checked_div(last.elems)) {
                            let (network, op) = (entry.name.clone(), dispatch.name.clone());
                            found = Some(NotFiniteOp { network, op });
                        }
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// The last launch of each op, with the elements of its output.
fn lasts(plan: &Plan) -> Vec<Last> {
    let ops = &plan.rationale.ops;
    let mut lasts: Vec<Option<Last>> = ops.iter().map(|_| None).collect();
    let steps = plan.networks.iter().enumerate();
    let steps = steps.flat_map(|(network, n)| (0..n.steps.len()).map(move |step| (network, step)));
    for (instant, (network, step)) in (0u32..).zip(steps) {
        let after = ops.partition_point(|op| op.instant <= instant);
        let is_launch = matches!(plan.networks[network].steps[step], Step::Dispatch(_));
        let Some(index) = after.checked_sub(1).filter(|_| is_launch) else { continue };
        let choice = plan.rationale.choices.get(ops[index].choice as usize);
        let elems = choice.map_or(0, |c| c.shape.iter().map(|&axis| u64::from(axis)).product());
        lasts[index] = Some(Last { network, step, elems });
    }
    lasts.into_iter().flatten().collect()
}

/// The regions that a launch writes.
fn written(
    dispatch: &Dispatch,
) -> impl Iterator<Item = (kiln_bundle::plan::BufferId, u64, u64)> + '_ {
    dispatch.args.iter().filter_map(|arg| match *arg {
        Arg::Buffer { buffer, offset_bytes, len_bytes, access: Access::Write } => {
            Some((buffer, offset_bytes, len_bytes))
        }
        _ => None,
    })
}

/// Whether all numbers are finite. Regions with other than 2 or 4 bytes an element are no output.
fn is_finite(bytes: &[u8], elem_bytes: Option<u64>) -> bool {
    match elem_bytes {
        Some(2) => bytes.as_chunks().0.iter().all(|&b| f16::from_le_bytes(b).is_finite()),
        Some(4) => bytes.as_chunks().0.iter().all(|&b| f32::from_le_bytes(b).is_finite()),
        _ => true,
    }
}
