//! The settings of an image: those that the request gives, and the defaults for the others.

use kiln_bundle::plan::{Manifest, Schedule, Spacing};
use serde::Serialize;

use super::Request;
use crate::error::RuntimeError;
use crate::pipeline::fast::{Fast, GuidanceInterval, PRESETS};
use crate::pipeline::sampler::{Sampler, SamplerEntry, SamplerOptions, check_share};

/// Longest prompt in bytes. It bounds the tokenizer's memory.
const MAX_PROMPT_BYTES: usize = 64 << 10;
/// Largest scale of guidance, either way.
const MAX_GUIDANCE: f32 = 1000.0;

/// How an image is sampled. Reports and image files record it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Settings {
    /// Name of the sampler.
    pub sampler: &'static str,
    /// Spacing of its timesteps; none if the sampler has its own.
    pub spacing: Option<Spacing>,
    /// Steps of the sampler.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance: f32,
    /// Share by which the guided output's standard deviation is brought back, 0 to 1.
    pub guidance_rescale: f32,
    /// Noise that each step adds, 0 to 1.
    pub eta: f32,
    /// The preset of cheaper steps, from 0, which has none.
    pub fast: usize,
    /// The evaluations that cost less: those of the preset, unless the request says otherwise.
    #[serde(flatten)]
    pub savings: Fast,
}

impl Request<'_> {
    /// Checks the request for a model, and fills in the defaults of the model and of the sampler.
    ///
    /// Errors: `Input` for prompts and guidance; `Sampler` for its name, spacing, steps or shares.
    pub fn settings(&self, manifest: &Manifest) -> Result<Settings, RuntimeError> {
        let schedule = &manifest.schedule;
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
        let is_single = manifest.guidance_branches == 1 && manifest.guidance_channels == 0;
        if is_single && guidance != 1.0 {
            let message = format!(
                "guidance is {guidance:?}, and the bundle is for guidance 1 alone; \
                 compile it with --guidance-branches 2"
            );
            return Err(RuntimeError::Input(message));
        }
        check_share("guidance rescale", self.guidance_rescale)?;
        let savings = self.savings(manifest)?;
        let name = self.sampler.as_ref().unwrap_or(&schedule.sampler);
        let (entry, named) = SamplerEntry::find_spaced(name)?;
        let own = entry.spacings.iter().find(|&&known| known == schedule.spacing);
        let settings = Settings {
            sampler: entry.name,
            spacing: match &self.spacing {
                Some(name) => Some(entry.spacing(name)?),
                None if named.is_some() => named,
                None if entry.has_own => None,
                None => own.or(entry.spacings.first()).copied(),
            },
            steps: self.steps.unwrap_or(schedule.steps as usize),
            guidance,
            guidance_rescale: self.guidance_rescale,
            eta: self.eta.or(entry.eta).unwrap_or(0.0),
            fast: self.fast,
            savings,
        };
        settings.sampler(schedule, 0, 0)?;
        Ok(settings)
    }

    /// The evaluations that cost less, if the bundle can compute them.
    ///
    /// Errors: `Input`.
    fn savings(&self, manifest: &Manifest) -> Result<Fast, RuntimeError> {
        let Some(&preset) = PRESETS.get(self.fast) else {
            let message =
                format!("fast is {}, it must be from 0 to {}", self.fast, PRESETS.len() - 1);
            return Err(RuntimeError::Input(message));
        };
        let has_guidance = manifest.guidance_branches > 1;
        let all = GuidanceInterval::ALL;
        if !has_guidance && self.guidance_interval.is_some_and(|interval| interval != all) {
            let message = "the bundle has no guidance, so none that an interval could leave out; \
                           leave out the guidance interval";
            return Err(RuntimeError::Input(message.into()));
        }
        let of_preset = if has_guidance { preset.guidance_interval } else { all };
        let savings = Fast {
            guidance_interval: self.guidance_interval.unwrap_or(of_preset),
            cache_interval: self.cache_interval.unwrap_or(preset.cache_interval),
        };
        if savings.cache_interval == 0 {
            return Err(RuntimeError::Input(
                "the cache interval is 0, it must be 1 or more".into(),
            ));
        }
        let leaves_out = savings.guidance_interval != all && manifest.guidance_batch > 1;
        if !manifest.fast && (leaves_out || savings.cache_interval > 1) {
            let message = "the bundle has no variants of the U-Net for steps that cost less; \
                           compile it with --fast";
            return Err(RuntimeError::Input(message.into()));
        }
        Ok(savings)
    }
}

impl Settings {
    /// The sampler from step `first` on, for latents of this many elements.
    ///
    /// Errors: `Sampler`.
    pub(super) fn sampler(
        &self,
        schedule: &Schedule,
        first: usize,
        latent_elems: usize,
    ) -> Result<Sampler, RuntimeError> {
        let options = SamplerOptions {
            steps: self.steps,
            first,
            spacing: self.spacing.unwrap_or(Spacing::Leading),
            eta: self.eta,
            schedule: schedule.clone(),
            latent_elems,
        };
        Ok(SamplerEntry::find(self.sampler)?.sampler(&options)?)
    }
}
