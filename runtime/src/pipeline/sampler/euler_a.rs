//! Euler's method with ancestral sampling: each step replaces some of the noise by fresh noise.
//!
//! Source: `sample_euler_ancestral` of k-diffusion (Crowson); as diffusers'
//! `EulerAncestralDiscreteScheduler`.

use super::SamplerEntry;
use super::euler::Euler;
use super::sigma::SigmaConfig;

/// Entry of Euler's method with ancestral sampling in the registry.
pub(super) const ENTRY: SamplerEntry = SamplerEntry {
    name: "euler-a",
    title: "Euler a",
    about: "adds fresh noise at each step; more steps give another picture",
    build: |options| Ok(Box::new(Euler::ancestral(&SigmaConfig::from(options))?)),
};
