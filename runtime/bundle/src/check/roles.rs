//! Roles of networks, and the values that the host writes for each.

use super::violation::{Violation, port_len_bytes};
use crate::plan::{DType, Feed, GUIDANCE_BRANCHES, Input, Manifest, Network, Plan, Role, Source};

/// Checks that each role is there at most once and in order, no required one is missing, and every
/// host input fits the value that the host writes.
pub(super) fn check(plan: &Plan) -> Result<(), Violation> {
    for pair in plan.networks.windows(2) {
        let (role, before) = (pair[1].role, pair[0].role);
        if role <= before {
            return Err(Violation::RoleOrder { network: pair[1].name.clone(), role, before });
        }
    }
    if let Some(&role) = Role::REQUIRED.iter().find(|&&role| plan.with_role(role).is_none()) {
        return Err(Violation::RoleMissing { role });
    }
    let guidance_batch = plan.manifest.guidance_batch;
    if ![1, GUIDANCE_BRANCHES].contains(&guidance_batch) {
        return Err(Violation::GuidanceBatch { guidance_batch });
    }
    for network in &plan.networks {
        network.inputs.iter().try_for_each(|input| check_feed(plan, network, input))?;
    }
    Ok(())
}

fn check_feed(plan: &Plan, network: &Network, input: &Input) -> Result<(), Violation> {
    let Source::Host(feed) = input.source else { return Ok(()) };
    let (found, dtype) = (port_len_bytes(&input.port), input.port.dtype);
    let is_typed = match feed {
        Feed::Tokens => dtype == DType::I32,
        Feed::Latent | Feed::Image | Feed::Timestep => matches!(dtype, DType::F32 | DType::F16),
    };
    let elems = elems(&plan.manifest, network.role, feed);
    let fits = elems
        .is_some_and(|elems| elems.checked_mul(dtype.size_bytes().into()) == Some(found.into()));
    if is_typed && fits {
        return Ok(());
    }
    let by = Violation::input(network, input);
    Err(Violation::Feed { by, feed, len_bytes: found, dtype, role: network.role })
}

/// Elements that the host writes; `None` for what a network of that role is not given.
fn elems(manifest: &Manifest, role: Role, feed: Feed) -> Option<u128> {
    let square = |side: u32| u128::from(side) * u128::from(side);
    let latent = square(manifest.latent_px).checked_mul(manifest.latent_channels.into());
    match (role, feed) {
        (Role::ImageEncoder, Feed::Image) => square(manifest.image_px).checked_mul(3),
        (Role::TextEncoder, Feed::Tokens) => {
            Some(u128::from(GUIDANCE_BRANCHES) * u128::from(manifest.context_tokens))
        }
        (Role::TimestepProjection, Feed::Timestep) => Some(manifest.timestep_rows.into()),
        (Role::Denoiser, Feed::Timestep) => Some(1),
        (Role::Denoiser, Feed::Latent) => latent?.checked_mul(manifest.guidance_batch.into()),
        (Role::Decoder, Feed::Latent) => latent,
        _ => None,
    }
}
