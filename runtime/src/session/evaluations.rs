//! The runs of denoisers that make each evaluation of the sampler.

use std::ops::Range;

use kiln_bundle::plan::{Plan, Role, Step};

use crate::error::RuntimeError;
use crate::pipeline::fast::{Fast, Saving};
use crate::pipeline::sampler::Sampler;

/// Number of steps over which the pace is averaged.
const RECENT_STEPS: usize = 8;

/// An evaluation of the sampler.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Evaluation {
    /// The network that runs.
    pub network: usize,
    /// The first branch of guidance of each run.
    pub branches: Range<usize>,
    /// Whether the branches are mixed by the scale of guidance.
    pub guided: bool,
}

/// All evaluations of a run, in order.
///
/// Errors: `Plan` if the plan lacks a variant of the denoiser, which settings rule out.
pub(super) fn evaluations(
    plan: &Plan,
    fast: Fast,
    sampler: &Sampler,
) -> Result<Vec<Evaluation>, RuntimeError> {
    let steps_of = (0..sampler.timesteps().len()).map(|index| sampler.step_of(index).0 - 1);
    let savings = fast.savings(steps_of, sampler.steps());
    savings.map(|saving| evaluation(plan, saving)).collect()
}

fn evaluation(plan: &Plan, saving: Saving) -> Result<Evaluation, RuntimeError> {
    let branches = plan.manifest.guidance_branches as usize;
    let batch = plan.manifest.guidance_batch.max(1) as usize;
    let guided = saving.guided && branches > 1;
    // A batch of one branch leaves the other one out by itself.
    let is_conditional = !saving.guided && batch > 1;
    let role = Role::denoiser(saving.shallow, is_conditional);
    let missing = || RuntimeError::Plan(format!("no network is the {role:?}"));
    let network = plan.with_role(role).ok_or_else(missing)?;
    let branches = match guided {
        true => 0..branches / batch,
        false => branches.saturating_sub(1)..branches,
    };
    Ok(Evaluation { network, branches, guided })
}

/// Predicts the time that a run still takes, although its steps cost differently.
pub(super) struct Pace {
    /// Predicted cost of each step.
    costs: Vec<f64>,
}

impl Pace {
    pub fn new(plan: &Plan, evaluations: &[Evaluation], sampler: &Sampler) -> Pace {
        let mut costs = vec![0.0; sampler.steps()];
        for (index, evaluation) in evaluations.iter().enumerate() {
            let steps = plan.networks.get(evaluation.network).map(|network| &network.steps);
            let ns = steps.into_iter().flatten().map(|step| match step {
                Step::Dispatch(dispatch) => dispatch.predicted_ns as f64,
                _ => 0.0,
            });
            let cost = ns.sum::<f64>() * evaluation.branches.len() as f64;
            if let Some(step) = costs.get_mut(sampler.step_of(index).0 - 1) {
                *step += cost.max(1.0);
            }
        }
        Pace { costs }
    }

    /// Predicted seconds of the remaining steps, by those of the steps that are done. The first
    /// step also waits for weights, so it counts only until the second.
    pub fn seconds_left(&self, done: &[f64]) -> f64 {
        let after_first = usize::from(done.len() > 1);
        let from = after_first.max(done.len().saturating_sub(RECENT_STEPS));
        let (past, left) = self.costs.split_at(done.len().min(self.costs.len()));
        let sum = |values: &[f64]| values.iter().skip(from).sum::<f64>();
        sum(done) / sum(past).max(1.0) * left.iter().sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_cost_less_take_less_of_the_time_left() {
        let left = |costs: &[f64], done: &[f64]| Pace { costs: costs.into() }.seconds_left(done);
        assert_eq!(left(&[2.0, 2.0, 1.0, 1.0], &[9.0]), 18.0);
        assert_eq!(left(&[2.0, 2.0, 1.0, 1.0], &[9.0, 4.0]), 4.0);
        assert_eq!(left(&[2.0, 2.0, 1.0, 1.0], &[9.0, 4.0, 2.0]), 2.0);
        assert_eq!(left(&[2.0, 2.0], &[9.0, 4.0]), 0.0);
        assert_eq!(left(&[2.0; 3], &[]), 0.0);
        let slowing = [&[1.0; 20][..], &[2.0; RECENT_STEPS]].concat();
        assert_eq!(left(&[5.0; 28 + 100], &slowing), 200.0);
    }
}
