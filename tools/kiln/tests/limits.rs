//! Plans for devices with limits that no profile has: every plan keeps them.

use kiln_bundle::plan::{AVX512_VNNI, Feed, HALF_EXTENSION, Plan, Role, Source};
use kiln_compiler::device::{DeviceLimits, DeviceProfile};
use kiln_compiler::plan::time::Prediction;
use kiln_compiler::plan_model;
use kiln_compiler::quantize::Choices;
use kiln_compiler::request::PlanRequest;
use kiln_compiler::storage::Storage;

const MIB: u64 = 1 << 20;

/// The least that OpenCL 1.2 allows a device, but for its work-groups and its memory.
const LEAST: DeviceLimits = DeviceLimits {
    base_align_bytes: 128,
    max_alloc_bytes: 0,
    local_mem_bytes: 32 << 10,
    max_work_group: 256,
    compute_units: 1,
    half_arithmetic: false,
    vnni_widths: &[],
};

/// Plans the model that ships with every profile, adapted to the limits, and holds each plan
/// against them.
fn plans(limits: DeviceLimits) -> impl Iterator<Item = (&'static str, Plan)> {
    DeviceProfile::names().map(move |name| {
        let plan = plan(name, &limits);
        let needs = &plan.requirements;
        assert!(needs.base_align_bytes.is_multiple_of(limits.base_align_bytes), "{name}");
        assert!(needs.local_mem_bytes <= limits.local_mem_bytes, "{name}: {needs:?}");
        assert!(needs.work_group_size <= limits.max_work_group, "{name}: {needs:?}");
        let unlimited = limits.max_alloc_bytes == 0;
        assert!(unlimited || needs.max_alloc_bytes <= limits.max_alloc_bytes, "{name}: {needs:?}");
        let has_half = needs.extensions.iter().any(|name| name == HALF_EXTENSION);
        assert!(limits.half_arithmetic || !has_half, "{name}: {needs:?}");
        (name, plan)
    })
}

fn plan(name: &str, limits: &DeviceLimits) -> Plan {
    let (_, mut profile) = DeviceProfile::load(name).expect("it ships");
    profile.adapt(limits);
    let request = PlanRequest::new(&profile, Storage::FP16, 1 << 30);
    let model = kiln_models::find("emoji-256").expect("it ships");
    let planned = plan_model(&model, name, "fp16", &request);
    planned.unwrap_or_else(|error| panic!("{name}, {limits:?}: {error:#}")).plan
}

#[test]
fn little_local_memory_small_allocations_and_a_wide_alignment_are_kept() {
    let limits = DeviceLimits {
        base_align_bytes: 512,
        max_alloc_bytes: 128 * MIB,
        local_mem_bytes: 16 << 10,
        ..LEAST
    };
    for (name, plan) in plans(limits) {
        assert!(plan.buffers.iter().all(|b| b.offset_bytes.is_multiple_of(512)), "{name}");
        let adapted = &plan.manifest.adapted;
        let is_listed = |field: &str| adapted.iter().any(|a| a == field);
        assert!(is_listed("local_mem_bytes = 16384"), "{name}: {adapted:?}");
        assert_eq!(is_listed("base_align_bytes = 512"), name != "nvidia", "{name}: {adapted:?}");
    }
}

#[test]
fn small_work_groups_without_local_memory_are_kept() {
    let limits = DeviceLimits { local_mem_bytes: 0, max_work_group: 64, ..LEAST };
    assert_eq!(plans(limits).count(), DeviceProfile::names().count());
}

#[test]
fn a_bundle_for_guidance_one_alone_takes_less_memory_and_time() {
    let (name, profile) = DeviceProfile::load("cpu-avx2").expect("it ships");
    let model = kiln_models::find("emoji-256").expect("it ships");
    let plan = |guidance_branches, budget_bytes| {
        let request = PlanRequest {
            guidance_branches: Some(guidance_branches),
            ..PlanRequest::new(&profile, Storage::FP32, budget_bytes)
        };
        plan_model(&model, &name, "fp32", &request)
    };
    let [one, two] = [1, 2].map(|branches| plan(branches, 1 << 30).expect("it fits").plan);
    let picture_ns = |plan: &Plan| Prediction::new(plan).picture_ns(plan);
    println!("{} ns a picture, {} ns with guidance", picture_ns(&one), picture_ns(&two));
    assert!(picture_ns(&one) * 10 < picture_ns(&two) * 9);
    assert!(one.memory.arena_lower_bound_bytes < two.memory.arena_lower_bound_bytes);
    let tokens = |plan: &Plan| {
        let text_encoder = plan.with_role(Role::TextEncoder).expect("it is required");
        plan.networks[text_encoder].inputs[0].port.shape.clone()
    };
    assert_eq!((tokens(&one), tokens(&two)), (vec![1, 77], vec![2, 77]));
    let manifest = &one.manifest;
    assert_eq!((manifest.guidance_branches, manifest.guidance_batch), (1, 1));
}

#[test]
fn a_model_that_takes_the_scale_of_guidance_has_one_branch_and_is_given_the_scale() {
    let (name, profile) = DeviceProfile::load("mali-g78").expect("it ships");
    let model = kiln_models::find("lcm-dreamshaper").expect("it ships");
    let request = PlanRequest::new(&profile, Storage::FP16, 1 << 30);
    let plan = plan_model(&model, &name, "fp16", &request).expect("it fits").plan;
    let manifest = &plan.manifest;
    assert_eq!((manifest.guidance_branches, manifest.guidance_channels), (1, 256));
    assert_eq!((manifest.schedule.guidance, manifest.schedule.steps), (8.5, 4));
    let time = plan.with_role(Role::TimestepProjection).expect("timesteps are projected");
    let mut inputs = plan.networks[time].inputs.iter();
    let input = inputs.find(|input| input.source == Source::Host(Feed::Guidance));
    // A row for each timestep.
    assert_eq!(input.expect("it is given").port.shape, [manifest.timestep_rows, 256]);
}

/// The plan names the instructions of its kernels, so that a device without them refuses it.
#[test]
fn plans_for_vnni_require_it() {
    let (_, mut profile) = DeviceProfile::load("cpu-avx512").expect("it ships");
    profile.adapt(&DeviceLimits { vnni_widths: &[16], max_work_group: 4096, ..LEAST });
    let choices = Choices::default();
    let request = PlanRequest::new(&profile, Storage::int8(&choices), 1 << 30);
    let model = kiln_models::find("emoji-256").expect("it ships");
    let plan = plan_model(&model, "cpu-avx512", "int8", &request).expect("it fits").plan;
    assert_eq!(plan.requirements.extensions, [AVX512_VNNI]);
    let (integers, others): (Vec<_>, Vec<_>) =
        plan.kernels.iter().partition(|kernel| kernel.instructions.is_some());
    assert!(integers.len() > 10 && integers.iter().all(|kernel| kernel.variant == "int8_vnni"));
    assert!(others.iter().all(|kernel| !kernel.entry.starts_with("contraction_dot_cpu")));
}
