//! The settings of an image: those that the request gives, and the model's defaults for the others.

use kiln_bundle::plan::Schedule;
use serde::Serialize;

use super::Request;
use crate::error::RuntimeError;
use crate::pipeline::sampler::{self, SamplerOptions};

/// Longest prompt in bytes. It bounds the tokenizer's memory.
const MAX_PROMPT_BYTES: usize = 64 << 10;
/// Largest scale of guidance, either way.
const MAX_GUIDANCE: f32 = 1000.0;

/// How an image is sampled. Reports and image files record it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Settings {
    /// Name of the sampler.
    pub sampler: String,
    /// Steps of the sampler.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance: f32,
    /// Noise that each step adds, 0 to 1.
    pub eta: f32,
}

impl Request<'_> {
    /// Checks the request for a model, and fills in the model's defaults.
    ///
    /// Errors: `Input` for prompts and guidance; `Sampler` for its name, steps or eta.
    pub fn settings(&self, schedule: &Schedule) -> Result<Settings, RuntimeError> {
        let prompts = [("prompt", &self.prompt), ("negative prompt", &self.negative_prompt)];
        for (name, prompt) in prompts {
            if prompt.len() > MAX_PROMPT_BYTES {
                let found = prompt.len();
                let message = format!("the {name} has {found} bytes, over {MAX_PROMPT_BYTES}");
                return Err(RuntimeError::Input(message));
            }
        }
        let guidance = self.guidance.unwrap_or(schedule.guidance);
        if !(-MAX_GUIDANCE..=MAX_GUIDANCE).contains(&guidance) {
            let range = format!("it must be from -{MAX_GUIDANCE} to {MAX_GUIDANCE}");
            return Err(RuntimeError::Input(format!("guidance is {guidance:?}, {range}")));
        }
        let name = self.sampler.as_ref().unwrap_or(&schedule.sampler);
        let steps = self.steps.unwrap_or(schedule.steps as usize);
        let settings = Settings { sampler: name.clone(), steps, guidance, eta: self.eta };
        settings.sampler(schedule, 0)?;
        Ok(settings)
    }
}

impl Settings {
    /// The sampler for latents of this many elements.
    ///
    /// Errors: `Sampler`.
    pub(super) fn sampler(
        &self,
        schedule: &Schedule,
        latent_elems: usize,
    ) -> Result<Box<dyn sampler::Sampler>, RuntimeError> {
        let options = SamplerOptions::of(schedule, self.steps, latent_elems);
        Ok(sampler::by_name(&self.sampler, &SamplerOptions { eta: self.eta, ..options })?)
    }
}
