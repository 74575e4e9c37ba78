//! The ahead-of-time compiler: graphs and a checkpoint in, one bundle out.
//!
//! [`plan_model`] decides everything and [`emit::emit`] writes it. They know no architecture (a [`Model`] is given to it) and
//! no OpenCL (a device is a [`device::DeviceProfile`]).
#![forbid(unsafe_code)]

pub mod device;
pub mod emit;
pub mod passes;
pub mod plan;
pub mod quantize;
pub mod weights;

use anyhow::{Context, Result};
use kiln_bundle::plan::{Manifest, Phase, Plan};
use kiln_bundle::rationale::Attempt;
use kiln_ir::{DType, Graph, verify};

use plan::lower::{Known, NetworkGraph};
use plan::time::Prediction;
use plan::{Draft, Outcome, PlanRequest, Planned, Strategy};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// A diffusion model as graphs.
pub trait Model {
    /// The text encoder for `batch` prompts: `tokens` -> `embedding`.
    fn text_encoder(&self, batch: usize) -> Result<Graph>;
    /// The U-Net for `batch` latents: `latent`, `timestep`, `context` -> `eps`.
    fn unet(&self, batch: usize) -> Result<Graph>;
    /// The decoder for one latent: `latent` -> `image`.
    fn decoder(&self) -> Result<Graph>;
    /// The encoder for one picture, where the bundle is to have it: `image` -> `mean`.
    fn encoder(&self) -> Result<Option<Graph>> {
        Ok(None)
    }
    /// Its numbers; precision, profile and guidance batch are filled in by the compiler.
    fn manifest(&self) -> Manifest;
}

/// Prompts of one picture: the negative and the positive one.
const PROMPTS: usize = 2;

/// Timesteps whose projections are computed together: all of an ordinary run.
const TIMESTEP_ROWS: usize = 64;

/// Weights of the repeated network that a plan may keep in memory, beside as many as fit: reading them
/// ahead of the first pass must not take longer than all the waiting that it saves.
const KEPT_BYTES: [u64; 6] = [0, 64 << 20, 128 << 20, 256 << 20, 512 << 20, 1 << 30];

/// Plans a model under a budget, without reading any weights: of the strategies that fit the one with
/// the least predicted time of a picture.
///
/// Errors: the budget is too small (with the smallest feasible one and what sets it); an op has
/// no kernel for the device.
pub fn plan_model(
    model: &dyn Model,
    profile_name: &str,
    precision: &str,
    request: &PlanRequest,
) -> Result<Planned> {
    let mut fastest: Option<(u64, Draft, Plan)> = None;
    let mut least: Option<plan::explain::Shortfall> = None;
    let mut attempts = Vec::new();
    let (mut known, mut graphs) = (Known::default(), HashMap::new());
    for strategy in plan::strategies(request) {
        let key = (strategy.guidance_batch, strategy.activations, strategy.recompute);
        let networks = match graphs.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(networks(model, strategy)?),
        };
        let manifest = Manifest {
            precision: precision.to_string(),
            profile: profile_name.to_string(),
            compiler: env!("CARGO_PKG_VERSION").to_string(),
            guidance_batch: strategy.guidance_batch as u32,
            timestep_rows: TIMESTEP_ROWS as u32,
            ..model.manifest()
        };
        let draft = Draft::new(networks, manifest, strategy, request, &mut known)?;
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
                let needs_bytes = Some(shortfall.needs_bytes);
                attempts.push(Attempt { strategy: strategy.to_string(), needs_bytes });
                if least.as_ref().is_none_or(|l| shortfall.needs_bytes < l.needs_bytes) {
                    least = Some(shortfall);
                }
            }
        }
    }
    let Some((mut ns, draft, mut plan)) = fastest else {
        let shortfall = least.context("no strategy was tried")?;
        return Err(DoesNotFit { budget_bytes: request.budget_bytes, shortfall }.into());
    };
    for most_kept_bytes in KEPT_BYTES {
        let Outcome::Fits(next) = draft.place(request, most_kept_bytes)? else { continue };
        let next_ns = Prediction::new(&next).picture_ns(&next);
        if next_ns < ns {
            (ns, plan) = (next_ns, *next);
        }
    }
    attempts.push(Attempt { strategy: draft.strategy.to_string(), needs_bytes: None });
    let mut planned = draft.finish(plan, request)?;
    planned.plan.rationale.attempts = attempts;
    Ok(planned)
}

/// The budget is too small for any strategy.
#[derive(Debug)]
pub struct DoesNotFit {
    /// What was allowed.
    pub budget_bytes: u64,
    /// The most frugal strategy's need.
    pub shortfall: plan::explain::Shortfall,
}

impl std::fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.shortfall.allocation {
            Some(_) => write!(f, "the device's allocations are too small: {}", self.shortfall),
            None => {
                let budget = plan::explain::mib(self.budget_bytes);
                write!(f, "the budget of {budget} is too small: {}", self.shortfall)
            }
        }
    }
}

impl std::error::Error for DoesNotFit {}

/// The optimized networks in execution order.
pub fn networks(model: &dyn Model, strategy: Strategy) -> Result<Vec<NetworkGraph>> {
    let optimized = |mut graph: Graph| -> Result<Graph> {
        passes::optimize(&mut graph)?;
        if strategy.activations == DType::F16 {
            passes::halve::run(&mut graph)?;
        }
        Ok(graph)
    };
    let autoencoder = |graph: Graph| -> Result<Graph> {
        let mut graph = optimized(graph)?;
        if strategy.recompute {
            passes::chain::run(&mut graph)?;
            verify::verify(&graph).with_context(|| format!("{} after chaining", graph.name))?;
        }
        Ok(graph)
    };
    let unet = optimized(model.unet(PROMPTS)?)?;
    let hoisted = passes::hoist::hoist(&unet, TIMESTEP_ROWS)?;
    let step = if strategy.guidance_batch == PROMPTS {
        hoisted.step
    } else {
        let unet = optimized(model.unet(strategy.guidance_batch)?)?;
        passes::hoist::hoist(&unet, TIMESTEP_ROWS)?.step
    };
    let parts = [
        ("encoder", Phase::Prompt, model.encoder()?.map(autoencoder).transpose()?),
        ("text_encoder", Phase::Prompt, Some(optimized(model.text_encoder(PROMPTS)?)?)),
        ("unet_prompt", Phase::Prompt, hoisted.prompt),
        ("unet_time", Phase::Timesteps, hoisted.timestep),
        ("unet", Phase::Step, Some(step)),
        ("decoder", Phase::Picture, Some(autoencoder(model.decoder()?)?)),
    ];
    Ok(parts
        .into_iter()
        .filter_map(|(name, phase, graph)| {
            graph.map(|graph| NetworkGraph { name: name.to_string(), phase, graph })
        })
        .collect())
}

/// The optimized graphs that hold a model's weights, whatever the plan, to be measured by
/// [`quantize::measure`].
pub fn weight_graphs(model: &dyn Model) -> Result<Vec<Graph>> {
    let mut graphs = vec![model.text_encoder(PROMPTS)?, model.unet(PROMPTS)?, model.decoder()?];
    graphs.extend(model.encoder()?);
    for graph in &mut graphs {
        passes::optimize(graph)?;
    }
    Ok(graphs)
}
