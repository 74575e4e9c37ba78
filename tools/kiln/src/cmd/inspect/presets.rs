//! Predicted times of pictures with steps that cost less.

use kiln_bundle::plan::{Plan, Role};
use kiln_compiler::plan::time::{NetworkTime, Prediction, passes, sampler_steps};
use kiln_runtime::pipeline::fast::{Fast, PRESETS, Saving};

/// Time of a picture with each preset from 1 on, in nanoseconds, as [`Prediction::picture_ns`] is
/// without. Empty for a plan without variants of the denoiser.
pub fn pictures_ns(plan: &Plan, prediction: &Prediction) -> Vec<u64> {
    let of_role = |role| plan.with_role(role).map(|index| prediction.networks[index]);
    let Some(whole) = of_role(Role::Denoiser).filter(|_| plan.manifest.fast) else { return vec![] };
    let whole_ns = whole.total_ns(passes(&plan.manifest, Role::Denoiser));
    let rest_ns = prediction.picture_ns(plan).saturating_sub(whole_ns);
    let time = |saving: Saving| {
        let is_conditional = !saving.guided && plan.manifest.guidance_branches > 1;
        of_role(Role::denoiser(saving.shallow, is_conditional)).unwrap_or_default()
    };
    let steps_ns = |preset: &Fast| {
        let steps = sampler_steps(&plan.manifest) as usize;
        let times: Vec<NetworkTime> = preset.savings(0..steps, steps).map(time).collect();
        let begin_ns =
            times.first().map_or(0, |first| first.total_ns(1).saturating_sub(first.pass_ns));
        begin_ns + times.iter().map(|time| time.pass_ns).sum::<u64>()
    };
    PRESETS[1..].iter().map(|preset| rest_ns.saturating_add(steps_ns(preset))).collect()
}
