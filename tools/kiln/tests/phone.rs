//! Plans for a phone: no launch is too long, no allocation too large, whatever the model.

use kiln_bundle::plan::{BufferKind, Dispatch, Plan, Step};
use kiln_bundle::rationale::Choice;
use kiln_compiler::device::DeviceProfile;
use kiln_compiler::plan::cost::{code_of, single_issue_ns};
use kiln_compiler::plan::time::Prediction;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;
use kiln_compiler::{Model, plan_model};
use kiln_graphs::config::ModelConfig;
use kiln_models::ConfiguredModel;

fn mali() -> DeviceProfile {
    DeviceProfile::load("mali-g78").expect("it ships").1
}

fn plan(name: &str, profile: &DeviceProfile, budget_bytes: u64) -> anyhow::Result<Plan> {
    let request = PlanRequest::new(profile, Storage::FP16, budget_bytes);
    plan_of(&kiln_models::find(name)?, &request)
}

fn plan_of(model: &dyn Model, request: &PlanRequest) -> anyhow::Result<Plan> {
    Ok(plan_model(model, "mali-g78", "fp16", request)?.plan)
}

/// Weights as large as those of sd21-base, and feature maps as small as can be: the innermost have
/// one pixel.
fn small_sd21() -> ConfiguredModel {
    let sd21 = kiln_models::find("sd21-base").expect("it is known").0;
    ConfiguredModel(ModelConfig { width_px: 64, height_px: 64, ..sd21 })
}

fn dispatches(plan: &Plan) -> Vec<&Dispatch> {
    let steps = plan.networks.iter().flat_map(|network| &network.steps);
    steps.filter_map(as_dispatch).collect()
}

fn as_dispatch(step: &Step) -> Option<&Dispatch> {
    match step {
        Step::Dispatch(dispatch) => Some(dispatch),
        _ => None,
    }
}

fn items(sizes: [u64; 3]) -> u64 {
    sizes.iter().product()
}

#[test]
fn no_launch_of_sd21_base_is_predicted_above_the_limit() {
    let profile = mali();
    let limit_ns = profile.rates.max_dispatch_ms * 1_000_000;
    assert!(limit_ns > 0, "the profile has a limit");
    let plan = plan("sd21-base", &profile, 1 << 30).expect("it fits");
    let all = dispatches(&plan);
    let longest = all.iter().map(|d| d.predicted_ns).max().expect("launches");
    assert!(longest <= limit_ns, "{longest} ns");
    assert_eq!(plan.requirements.max_dispatch_ns, limit_ns);

    // Parts are as many work-items as the launches they were cut from, and without the limit some
    // would have been longer.
    let parts: Vec<_> = all.iter().filter(|d| d.global != d.range).collect();
    let begun: u64 = parts.iter().filter(|d| d.offset == [0; 3]).map(|d| items(d.range)).sum();
    assert_eq!(parts.iter().map(|d| items(d.global)).sum::<u64>(), begun);
    let mut whole_ns = 0;
    let mut longest_ns = 0;
    for part in parts {
        whole_ns = if part.offset == [0; 3] { 0 } else { whole_ns } + part.predicted_ns;
        longest_ns = longest_ns.max(whole_ns);
    }
    assert!(longest_ns > limit_ns, "{longest_ns} ns: nothing had to be cut");
    assert!(plan.memory.arena_bytes <= profile.memory.max_alloc_bytes);
}

#[test]
fn times_of_contractions_and_attention_follow_from_machine_code() {
    let plan = plan("emoji-256", &mali(), 1 << 30).expect("it fits");
    assert_eq!(plan.rationale.code.len(), plan.kernels.len());
    for dispatch in dispatches(&plan) {
        let entry = &plan.kernels[dispatch.kernel.index()].entry;
        let is_sum = ["contraction_", "attention_"].iter().any(|start| entry.starts_with(start));
        assert_eq!(code_of(&plan, dispatch).is_some(), is_sum, "{entry}");
        assert!(single_issue_ns(&plan, dispatch) >= dispatch.predicted_ns, "{entry}");
    }
    let picture_ns = |time: Prediction| time.picture_ns(&plan);
    let (least, most) = (Prediction::new(&plan), Prediction::single_issue(&plan));
    assert!(picture_ns(least) < picture_ns(most));
}

#[test]
fn contractions_in_half_arithmetic_are_predicted_to_be_faster_than_in_fp32() {
    let plan = plan("sd21-base", &mali(), 1 << 30).expect("it fits");
    let predicted_ns = |choice: &Choice, variant: &str| {
        let found = choice.alternatives.iter().find(|a| a.variant == variant)?;
        Some(found.verdict.cost()?.predicted_ns)
    };
    let mut both = 0;
    for choice in &plan.rationale.choices {
        let half_ns = predicted_ns(choice, "tiled_mobile_half");
        if let (Some(half_ns), Some(ns)) = (half_ns, predicted_ns(choice, "tiled_mobile")) {
            assert!(half_ns < ns, "{}: {half_ns} and {ns} ns", choice.problem);
            both += 1;
        }
    }
    assert!(both > 50, "{both} choices");
}

#[test]
fn an_arena_larger_than_one_allocation_is_several() {
    let mut profile = mali();
    let one = plan("emoji-256", &profile, 1 << 30).expect("it fits").memory;
    assert_eq!(one.arena_parts().collect::<Vec<_>>(), [one.arena_bytes]);
    let most_bytes = one.arena_bytes / 2;
    profile.memory.max_alloc_bytes = most_bytes;
    let plan_of_parts = plan("emoji-256", &profile, 1 << 30).expect("it fits in parts");
    let parts: Vec<_> = plan_of_parts.memory.arena_parts().collect();
    assert!(parts.len() > 1 && parts.iter().all(|bytes| *bytes <= most_bytes), "{parts:?}");
    assert!(plan_of_parts.requirements.max_alloc_bytes <= most_bytes);
    let resident = |plan: &Plan| {
        let weights = plan.buffers.iter().filter(|b| b.kind == BufferKind::Weights);
        weights.map(|b| b.len_bytes).sum::<u64>()
    };
    profile.memory.max_alloc_bytes = 0;
    let unlimited = plan("emoji-256", &profile, 1 << 30).expect("it fits");
    assert_eq!(resident(&plan_of_parts), resident(&unlimited));
    profile.memory.max_alloc_bytes = 1 << 20;
    let refused = plan("emoji-256", &profile, 1 << 30).expect_err("no allocation is so small");
    let error = format!("{refused:#}");
    assert!(error.contains("allocat") && error.contains("1.0 MiB"), "{error}");
}

#[test]
fn one_branch_of_guidance_is_planned_for_feature_maps_of_one_pixel() {
    let profile = mali();
    let request = PlanRequest {
        guidance_batch: Some(1),
        ..PlanRequest::new(&profile, Storage::FP16, 1 << 30)
    };
    let plan = plan_of(&small_sd21(), &request).expect("it fits");
    assert_eq!(plan.manifest.guidance_batch, 1);
}

#[test]
fn weights_that_no_allocation_holds_are_cut_further() {
    let model = small_sd21();
    let mut profile = mali();
    // The first strategies read up to twice as much in one launch as one allocation holds.
    profile.memory.max_block_bytes = 32 << 20;
    let mut largest_block = |max_alloc_bytes| {
        profile.memory.max_alloc_bytes = max_alloc_bytes;
        let request = PlanRequest::new(&profile, Storage::FP16, 1 << 30);
        let plan = plan_of(&model, &request)?;
        assert!(plan.requirements.max_alloc_bytes <= max_alloc_bytes);
        Ok::<_, anyhow::Error>(plan.blocks.iter().map(|block| block.len_bytes).max())
    };
    let found = largest_block(16 << 20).expect("a later strategy has smaller blocks");
    assert!(found.expect("it has weights") <= 16 << 20);
    let error = format!("{:#}", largest_block(64 << 10).expect_err("no block is so small"));
    assert!(error.contains("the block of weights of"), "{error}");
}
