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
use kiln_bundle::plan::{Manifest, Phase};
use kiln_bundle::rationale::Attempt;
use kiln_ir::{DType, Graph};

use plan::lower::NetworkGraph;
use plan::{Outcome, PlanRequest, Planned, Strategy};

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

/// Plans a model under a budget, without reading any weights.
///
/// Errors: the budget is too small (with the smallest feasible one and what sets it); an op has
/// no kernel for the device.
pub fn plan_model(
    model: &dyn Model,
    profile_name: &str,
    precision: &str,
    request: &PlanRequest,
) -> Result<Planned> {
    let mut best: Option<plan::explain::Shortfall> = None;
    let mut attempts = Vec::new();
    for strategy in plan::strategies(request) {
        let networks = networks(model, strategy)?;
        let manifest = Manifest {
            precision: precision.to_string(),
            profile: profile_name.to_string(),
            compiler: env!("CARGO_PKG_VERSION").to_string(),
            guidance_batch: strategy.guidance_batch as u32,
            timestep_rows: TIMESTEP_ROWS as u32,
            ..model.manifest()
        };
        match plan::build(&networks, manifest, strategy, request)? {
            Outcome::Fits(mut planned) => {
                attempts.push(Attempt { strategy: strategy.to_string(), needs_bytes: None });
                planned.plan.rationale.attempts = attempts;
                return Ok(*planned);
            }
            Outcome::TooLarge(shortfall) => {
                let needs_bytes = Some(shortfall.needs_bytes);
                attempts.push(Attempt { strategy: strategy.to_string(), needs_bytes });
                if best.as_ref().is_none_or(|b| shortfall.needs_bytes < b.needs_bytes) {
                    best = Some(shortfall);
                }
            }
        }
    }
    let shortfall = best.context("no strategy was tried")?;
    Err(DoesNotFit { budget_bytes: request.budget_bytes, shortfall }.into())
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
    let unet = optimized(model.unet(PROMPTS)?)?;
    let hoisted = passes::hoist::hoist(&unet, TIMESTEP_ROWS)?;
    let step = if strategy.guidance_batch == PROMPTS {
        hoisted.step
    } else {
        let unet = optimized(model.unet(strategy.guidance_batch)?)?;
        passes::hoist::hoist(&unet, TIMESTEP_ROWS)?.step
    };
    let parts = [
        ("encoder", Phase::Prompt, model.encoder()?.map(optimized).transpose()?),
        ("text_encoder", Phase::Prompt, Some(optimized(model.text_encoder(PROMPTS)?)?)),
        ("unet_prompt", Phase::Prompt, hoisted.prompt),
        ("unet_time", Phase::Timesteps, hoisted.timestep),
        ("unet", Phase::Step, Some(step)),
        ("decoder", Phase::Picture, Some(optimized(model.decoder()?)?)),
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
