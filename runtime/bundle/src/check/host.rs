//! Values that cross between the host and the networks: feeds that it writes, outputs that it
//! reads.
//!
//! The host sizes its own buffers by the manifest. A port of another length would leave bytes of a
//! feed unwritten, or give the host fewer numbers than it takes.

use super::violation::{Violation, port_len_bytes};
use crate::plan::{ElementType, Feed, Input, Manifest, Network, Plan, Role, Source};

/// Checks every input that the host writes, and the first output of every network whose output the
/// host reads.
pub(super) fn check(plan: &Plan) -> Result<(), Violation> {
    for network in &plan.networks {
        network.inputs.iter().try_for_each(|input| check_feed(plan, network, input))?;
        check_output(plan, network)?;
    }
    Ok(())
}

fn check_feed(plan: &Plan, network: &Network, input: &Input) -> Result<(), Violation> {
    let Source::Host(feed) = input.source else { return Ok(()) };
    let (len_bytes, dtype, role) = (port_len_bytes(&input.port), input.port.dtype, network.role);
    let is_typed = match feed {
        Feed::Tokens => dtype == ElementType::I32,
        Feed::Latent | Feed::Image | Feed::Timestep | Feed::Guidance | Feed::Condition => {
            is_number(dtype)
        }
    };
    let elems = written_elems(&plan.manifest, role, feed);
    if is_typed && elems.is_some_and(|elems| fits(elems, dtype, len_bytes)) {
        return Ok(());
    }
    Err(Violation::Feed { by: Violation::input(network, input), feed, len_bytes, dtype, role })
}

/// Outputs after the first one are for other networks.
fn check_output(plan: &Plan, network: &Network) -> Result<(), Violation> {
    let role = network.role;
    let Some(elems) = read_elems(&plan.manifest, role) else { return Ok(()) };
    let Some(port) = network.outputs.first() else {
        let by = format!("the host's read of network {:?}", network.name);
        return Err(Violation::NoSuch { by, what: "output", id: 0, count: 0 });
    };
    let (len_bytes, dtype) = (port_len_bytes(port), port.dtype);
    if is_number(dtype) && fits(elems, dtype, len_bytes) {
        return Ok(());
    }
    Err(Violation::Output { by: Violation::output(network, port), len_bytes, dtype, role })
}

fn is_number(dtype: ElementType) -> bool {
    matches!(dtype, ElementType::F32 | ElementType::F16)
}

fn fits(elems: u128, dtype: ElementType, len_bytes: u64) -> bool {
    elems.checked_mul(dtype.size_bytes().into()) == Some(len_bytes.into())
}

// Four factors of 32 bits at most: no product overflows.

/// Elements that the host writes; `None` if a network of this role is not given the feed.
fn written_elems(manifest: &Manifest, role: Role, feed: Feed) -> Option<u128> {
    match (role, feed) {
        (Role::ImageEncoder, Feed::Image) => Some(image_elems(manifest)),
        (Role::TextEncoder, Feed::Tokens) => Some(token_count(manifest)),
        (Role::TimestepProjection, Feed::Timestep) => Some(manifest.timestep_rows.into()),
        (role, Feed::Timestep) if role.is_denoiser() => Some(1),
        // The same for each of its timesteps.
        (Role::TimestepProjection, Feed::Guidance) => {
            Some(u128::from(manifest.timestep_rows) * u128::from(manifest.guidance_channels))
        }
        (role, Feed::Guidance) if role.is_denoiser() => Some(manifest.guidance_channels.into()),
        (role, Feed::Latent) if role.is_denoiser() => Some(batch_elems(manifest, role)),
        (role, Feed::Condition) if role.is_denoiser() => Some(condition_elems(manifest, role)),
        (Role::Decoder | Role::TinyDecoder, Feed::Latent) => Some(latent_elems(manifest)),
        _ => None,
    }
}

/// Elements that the host reads of a network's first output; `None` if it reads none.
fn read_elems(manifest: &Manifest, role: Role) -> Option<u128> {
    match role {
        Role::ImageEncoder => Some(latent_elems(manifest)),
        Role::TextEncoder => Some(token_count(manifest) * u128::from(manifest.context_channels)),
        role if role.is_denoiser() => Some(batch_elems(manifest, role)),
        Role::Decoder | Role::TinyDecoder => Some(image_elems(manifest)),
        _ => None,
    }
}

fn token_count(manifest: &Manifest) -> u128 {
    u128::from(manifest.guidance_branches) * u128::from(manifest.context_tokens)
}

fn latent_elems(manifest: &Manifest) -> u128 {
    u128::from(manifest.latent.pixels()) * u128::from(manifest.latent_channels)
}

/// One latent for each batch row of a denoiser.
fn batch_elems(manifest: &Manifest, denoiser: Role) -> u128 {
    latent_elems(manifest) * u128::from(manifest.batch_of(denoiser))
}

/// Rows as of the latents, with channels of their own.
fn condition_elems(manifest: &Manifest, denoiser: Role) -> u128 {
    let rows = u128::from(manifest.latent.pixels()) * u128::from(manifest.batch_of(denoiser));
    rows * u128::from(manifest.condition_channels)
}

fn image_elems(manifest: &Manifest) -> u128 {
    u128::from(manifest.image.pixels()) * 3
}
