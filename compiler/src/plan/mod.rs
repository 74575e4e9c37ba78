//! The memory plan: the address and the live range of every buffer.
//!
//! For each strategy: [`lower`] (variants of kernels, in scheduled order) -> [`blocks`] (constants)
//! -> [`edges`] -> [`lifetime`] -> [`residency`] (addresses in the [`arena`], resident weights) ->
//! [`assemble`] (the plan). The fastest plan that fits the budget is taken.

pub mod arena;
pub mod assemble;
pub mod blocks;
pub mod cost;
pub mod dispatch;
pub mod draft;
pub mod edges;
pub mod lifetime;
mod lora;
pub mod lower;
mod memory;
pub mod rationale;
pub mod residency;
pub mod schedule;
pub mod select;
pub mod shortfall;
pub mod time;

use anyhow::{Context, Result};
use kiln_bundle::plan::{Manifest, Plan};
use kiln_bundle::rationale::Attempt;

use crate::model::{Model, TIMESTEP_ROWS};
use crate::request::PlanRequest;
use crate::size::{MIB, mib};
use crate::strategy::{Strategy, strategies};
pub use draft::Planned;
use draft::{Draft, Outcome};
use lower::{LoweringCache, lower_model};
use shortfall::{Allocation, Shortfall};
use time::Prediction;

/// Limits of the denoiser's resident weights, in bytes, that are tried in addition to "as many as
/// fit". Resident weights are read before the first pass, so more of them may make an image of
/// few steps slower. Each limit costs a placement, so the list is short.
const RESIDENT_LIMITS_BYTES: [u64; 6] = [0, 64 * MIB, 128 * MIB, 256 * MIB, 512 * MIB, 1024 * MIB];

/// Plans a model under a budget, without reading any weights. Takes the fitting strategy with the
/// least predicted time of an image.
///
/// Errors: the budget is too small (the error has the smallest feasible budget and its reason); an
/// op has no kernel for the device.
pub fn plan_model(
    model: &dyn Model,
    profile_name: &str,
    precision: &str,
    request: &PlanRequest,
) -> Result<Planned> {
    let PlanRequest { profile, storage, .. } = *request;
    let of_model = Manifest {
        precision: precision.to_string(),
        profile: profile_name.to_string(),
        adapted: profile.adapted.clone(),
        compiler: env!("CARGO_PKG_VERSION").to_string(),
        timestep_rows: TIMESTEP_ROWS as u32,
        fast: request.fast,
        ..model.manifest()
    };
    let branches = request.branches(&of_model);
    let mut of_model = Manifest { guidance_branches: branches as u32, ..of_model };
    if branches == 1 && of_model.guidance_channels == 0 {
        of_model.schedule.guidance = 1.0;
    }
    let guidance_batch = if request.fast { Some(branches) } else { request.guidance_batch };
    let mut cache = LoweringCache::default();
    let mut fastest: Option<(u64, Draft, Plan)> = None;
    let mut least: Option<Shortfall> = None;
    let mut attempts = Vec::new();
    for strategy in strategies(profile, storage.activations, branches, guidance_batch) {
        let networks = lower_model(model, strategy, request, &mut cache)?;
        let guidance_batch = strategy.guidance_batch as u32;
        let manifest = Manifest { guidance_batch, ..of_model.clone() };
        let draft = Draft::new(networks, manifest, strategy, request)?;
        if fastest.as_ref().is_some_and(|(ns, ..)| draft.least_ns() >= *ns) {
            continue;
        }
        match draft.place(request, u64::MAX)? {
            Outcome::Fits(plan) => {
                let ns = Prediction::new(&plan).picture_ns(&plan);
                if fastest.as_ref().is_none_or(|(least_ns, ..)| ns < *least_ns) {
                    fastest = Some((ns, draft, *plan));
                }
            }
            Outcome::TooLarge(shortfall) => {
                attempts.push(attempt(strategy, Some(shortfall.needs_bytes)));
                // A larger budget does not help if the device cannot make an allocation.
                let rank = |s: &Shortfall| (s.allocation.is_some(), s.needs_bytes);
                if least.as_ref().is_none_or(|l| rank(&shortfall) < rank(l)) {
                    least = Some(shortfall);
                }
            }
        }
    }
    let Some((mut ns, draft, mut plan)) = fastest else {
        let shortfall = least.context("no strategy was tried")?;
        let (budget_bytes, precision) = (request.budget_bytes, precision.to_string());
        return Err(DoesNotFit { budget_bytes, precision, shortfall }.into());
    };
    for limit_bytes in RESIDENT_LIMITS_BYTES {
        let Outcome::Fits(next) = draft.place(request, limit_bytes)? else { continue };
        let next_ns = Prediction::new(&next).picture_ns(&next);
        if next_ns < ns {
            (ns, plan) = (next_ns, *next);
        }
    }
    attempts.push(attempt(draft.strategy, None));
    let mut planned = draft.finish(plan, request)?;
    planned.plan.rationale.attempts = attempts;
    Ok(planned)
}

fn attempt(strategy: Strategy, needs_bytes: Option<u64>) -> Attempt {
    Attempt { strategy: strategy.to_string(), needs_bytes }
}

/// The budget is too small for any strategy.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", self.what(), shortfall)]
pub struct DoesNotFit {
    /// The budget, in bytes.
    pub budget_bytes: u64,
    /// The precision, as on the command line.
    pub precision: String,
    /// Shortfall of the strategy with the smallest need.
    pub shortfall: Shortfall,
}

impl DoesNotFit {
    /// The limit that is too small, and what to do.
    fn what(&self) -> String {
        if let Some(Allocation { what, len_bytes, most_bytes }) = &self.shortfall.allocation {
            return format!(
                "the device's allocations are too small: {what} of {} is one allocation, of which \
                 the device's largest is {}",
                mib(*len_bytes),
                mib(*most_bytes)
            );
        }
        let other = match &*self.precision {
            "fp32" => ", or try --precision fp16 or int8",
            "fp16" => ", or try --precision int8",
            _ => "",
        };
        format!(
            "the budget of {} is too small: the smallest feasible budget is {}; raise --budget{other}",
            mib(self.budget_bytes),
            mib(self.shortfall.needs_bytes)
        )
    }
}
