//! The networks of a plan by their roles, and the order in which they run for an image.

use kiln_bundle::plan::{Plan, Role};

use super::evaluations::Evaluation;
use super::generate::{Decoder, Request};
use crate::error::RuntimeError;
use crate::pipeline::sampler::Sampler;

/// Indices of a plan's networks.
pub(super) struct Roles {
    pub image_encoder: Option<usize>,
    pub text_encoder: usize,
    pub prompt_projection: Option<usize>,
    pub timestep_projection: Option<usize>,
    /// The decoder of the request.
    pub decoder: usize,
    /// The tiny decoder, if the request has previews.
    previewer: Option<usize>,
    /// Steps between previews.
    preview_every: usize,
    /// Timesteps in one run of the timestep projection.
    pub timestep_rows: usize,
}

impl Roles {
    /// Errors: `Input` if the plan lacks the wanted decoder; `Plan` if a required role is missing,
    /// which the checker rules out.
    pub fn of(plan: &Plan, request: &Request<'_>) -> Result<Roles, RuntimeError> {
        let required = |role| {
            let missing = || RuntimeError::Plan(format!("no network is the {role:?}"));
            plan.with_role(role).ok_or_else(missing)
        };
        let timestep_projection = plan.with_role(Role::TimestepProjection);
        let manifest = &plan.manifest;
        Ok(Roles {
            image_encoder: plan.with_role(Role::ImageEncoder),
            text_encoder: required(Role::TextEncoder)?,
            prompt_projection: plan.with_role(Role::PromptProjection),
            timestep_projection,
            decoder: decoder(plan, request.decoder)?,
            previewer: plan.with_role(Role::TinyDecoder).filter(|_| request.preview_every > 0),
            preview_every: request.preview_every.max(1),
            timestep_rows: match timestep_projection {
                Some(_) => manifest.timestep_rows.max(1) as usize,
                None => usize::MAX,
            },
        })
    }

    /// The networks that run once a prompt, in order.
    pub fn prompt(&self) -> impl Iterator<Item = usize> {
        [Some(self.text_encoder), self.prompt_projection].into_iter().flatten()
    }

    /// The network that makes a preview after `done` steps.
    pub fn preview(&self, done: usize) -> Option<usize> {
        self.previewer.filter(|_| done.is_multiple_of(self.preview_every))
    }

    /// All runs of networks for an image with a sampler and `encodings` of images, in order.
    pub fn sequence(
        &self,
        sampler: &Sampler,
        evaluations: &[Evaluation],
        encodings: usize,
    ) -> Vec<usize> {
        let mut sequence: Vec<usize> =
            self.image_encoder.into_iter().cycle().take(encodings).chain(self.prompt()).collect();
        for (index, evaluation) in evaluations.iter().enumerate() {
            if index % self.timestep_rows == 0 {
                sequence.extend(self.timestep_projection);
            }
            sequence.extend(evaluation.branches.clone().map(|_| evaluation.network));
            let (done, ends) = sampler.step_of(index);
            sequence.extend(self.preview(done).filter(|_| ends));
        }
        sequence.push(self.decoder);
        sequence
    }
}

/// The wanted decoder; by default the full one if there is one.
pub(crate) fn decoder(plan: &Plan, wanted: Option<Decoder>) -> Result<usize, RuntimeError> {
    let (full, tiny) = (plan.with_role(Role::Decoder), plan.with_role(Role::TinyDecoder));
    let (found, message) = match wanted {
        None => (full.or(tiny), "the bundle has no decoder"),
        Some(Decoder::Full) => (full, "the bundle has only a tiny decoder"),
        Some(Decoder::Tiny) => {
            (tiny, "the bundle has no tiny decoder; compile it with --tiny-decoder FILE")
        }
    };
    found.ok_or_else(|| RuntimeError::Input(message.into()))
}
