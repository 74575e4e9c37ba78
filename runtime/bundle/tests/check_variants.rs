//! The checker on plans with variants of the denoiser: a value that one pass leaves to a later one
//! is kept by every network of the sampler's loop.

use kiln_bundle::check::{Violation, check};
use kiln_bundle::plan::{
    Access, Arg, BufferId, BufferKind, Dispatch, ElementType, Feed, Input, Network, NetworkId,
    Plan, Port, Role, Slice, Source, Step,
};
use kiln_bundle::testing;

const WEIGHTS_LEN_BYTES: u64 = 20480;
/// The denoiser's value that the shallow one reads.
const DEEP: usize = 6;

/// The small plan for one branch of guidance, with a shallow denoiser behind the denoiser.
fn plan() -> Plan {
    let mut plan = testing::plan();
    (plan.manifest.guidance_branches, plan.manifest.fast) = (1, true);
    plan.networks[0].inputs[0].port.shape = vec![1, 4];
    if let Step::Gather(gather) = &mut plan.networks[0].steps[0] {
        gather.index_count = 4;
    }
    dispatch(&mut plan, 0, 2).args[0] = argument(1, 64, Access::Read);
    plan.networks[0].outputs[0].shape = vec![4, 8];
    plan.networks[2].inputs[1].port.shape = vec![4, 8];
    dispatch(&mut plan, 2, 3).args[1] = argument(2, 128, Access::Read);

    let (loop_begins, loop_ends) = (plan.span(1).0, plan.span(2).1);
    for buffer in &mut plan.buffers {
        buffer.upper += u32::from(buffer.upper >= loop_ends);
        buffer.lower += u32::from(buffer.lower >= loop_ends);
    }
    let deep = &mut plan.buffers[DEEP];
    (deep.kind, deep.lower, deep.upper) = (BufferKind::Port, loop_begins, loop_ends + 1);
    plan.networks[2].outputs.push(port("deep", DEEP as u32, &[1, 128]));
    let shallow = shallow(dispatch(&mut plan, 1, 0).clone());
    plan.networks.insert(3, shallow);
    plan
}

fn shallow(launch: Dispatch) -> Network {
    let args = vec![
        argument(5, 256, Access::Read),
        argument(DEEP as u32, 512, Access::Read),
        argument(7, 256, Access::Write),
    ];
    let deep = Source::Output { network: NetworkId(2), output: 1, slice: Slice::InPlace };
    Network {
        name: "unet_shallow".into(),
        role: Role::ShallowDenoiser,
        inputs: vec![
            Input { port: port("latent", 5, &[1, 4, 4, 4]), source: Source::Host(Feed::Latent) },
            Input { port: port("deep", DEEP as u32, &[1, 128]), source: deep },
        ],
        outputs: vec![port("noise", 7, &[1, 4, 4, 4])],
        loads: vec![],
        overwrites: vec![],
        steps: vec![Step::Dispatch(Dispatch { name: "last".into(), args, ..launch })],
    }
}

fn port(name: &str, buffer: u32, shape: &[u32]) -> Port {
    let dtype = ElementType::F32;
    Port { name: name.into(), buffer: BufferId(buffer), dtype, shape: shape.to_vec() }
}

fn argument(buffer: u32, len_bytes: u64, access: Access) -> Arg {
    Arg::Buffer { buffer: BufferId(buffer), offset_bytes: 0, len_bytes, access }
}

fn dispatch(plan: &mut Plan, network: usize, step: usize) -> &mut Dispatch {
    match &mut plan.networks[network].steps[step] {
        Step::Dispatch(dispatch) => dispatch,
        other => panic!("{other:?} is no dispatch"),
    }
}

fn write_also(plan: &mut Plan, network: usize, step: usize, buffer: usize) {
    let arg = argument(buffer as u32, 16, Access::Write);
    dispatch(plan, network, step).args.push(arg);
}

macro_rules! rejects {
    ($($name:ident: |$plan:ident| $mutation:expr => $pattern:pat,)*) => {
        $(
            #[test]
            fn $name() {
                let mut $plan = plan();
                $mutation;
                let violation = check(&$plan, WEIGHTS_LEN_BYTES).expect_err("a rule is broken");
                assert!(matches!(violation, $pattern), "{violation}");
                assert!(!violation.to_string().contains('\n'), "{violation}");
            }
        )*
    };
}

#[test]
fn the_plan_is_valid() {
    check(&plan(), WEIGHTS_LEN_BYTES).unwrap();
}

rejects! {
    deep_value_is_lost_to_timesteps: |plan| plan.buffers[DEEP].lower += 1
        => Violation::SourceNotLive { .. },
    deep_value_dies_before_it_is_read: |plan| plan.buffers[DEEP].upper -= 1
        => Violation::NotLive { .. },
    deep_value_overwritten_by_timesteps: |plan| write_also(&mut plan, 1, 0, DEEP)
        => Violation::Overwritten { .. },
    deep_value_overwritten_by_its_reader: |plan| write_also(&mut plan, 3, 0, DEEP)
        => Violation::Overwritten { .. },
    deep_value_overwritten_by_an_input: |plan| {
        plan.networks[3].inputs[0].port.buffer = BufferId(DEEP as u32);
        plan.networks[3].inputs.truncate(1);
    } => Violation::NotWritten { .. },
    prompt_value_dies_before_the_variant: |plan| plan.buffers[2].upper -= 1
        => Violation::SourceNotLive { .. },
    deep_value_from_a_later_network: |plan| {
        let deep = &mut plan.networks[3].inputs[1];
        deep.source = Source::Output { network: NetworkId(4), output: 0, slice: Slice::InPlace };
    } => Violation::SourceNotRun { .. },
    noise_into_the_decoder: |plan| {
        let noise = &mut plan.networks[4].inputs[0];
        noise.source = Source::Output { network: NetworkId(2), output: 0, slice: Slice::Whole };
    } => Violation::SourceNotRun { .. },
    latent_of_two: |plan| plan.networks[3].inputs[0].port.shape[0] = 2 => Violation::Feed { .. },
    noise_of_half: |plan| plan.networks[3].outputs[0].shape[3] = 2 => Violation::Output { .. },
    variant_that_the_manifest_does_not_have: |plan| plan.manifest.fast = false
        => Violation::RoleUnwanted { .. },
    variant_that_is_missing: |plan| plan.networks[3].role = Role::ConditionalDenoiser
        => Violation::RoleMissing { role: Role::ShallowDenoiser },
    variants_of_passes_that_are_two: |plan| plan.manifest.guidance_branches = 2
        => Violation::GuidanceBatch { .. },
}
