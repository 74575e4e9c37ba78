//! The networks of a plan by their roles, and the order in which they run for an image.

use kiln_bundle::plan::{Plan, Role};

use crate::error::RuntimeError;

/// Indices of a plan's networks.
pub(super) struct Roles {
    pub image_encoder: Option<usize>,
    pub text_encoder: usize,
    pub prompt_projection: Option<usize>,
    pub timestep_projection: Option<usize>,
    pub denoiser: usize,
    pub decoder: usize,
    /// Timesteps in one run of the timestep projection.
    pub timestep_rows: usize,
    /// Runs of the denoiser in an evaluation.
    pub passes: usize,
}

impl Roles {
    /// Errors: `Plan` if a required role is missing, which the checker rules out.
    pub fn of(plan: &Plan) -> Result<Roles, RuntimeError> {
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
            denoiser: required(Role::Denoiser)?,
            decoder: required(Role::Decoder)?,
            timestep_rows: match timestep_projection {
                Some(_) => manifest.timestep_rows.max(1) as usize,
                None => usize::MAX,
            },
            passes: (manifest.guidance_branches / manifest.guidance_batch.max(1)) as usize,
        })
    }

    /// The networks that run once a prompt, in order.
    pub fn prompt(&self) -> impl Iterator<Item = usize> {
        [Some(self.text_encoder), self.prompt_projection].into_iter().flatten()
    }

    /// All runs of networks for an image with this number of evaluations, in order.
    pub fn sequence(&self, evaluations: usize, from_image: bool) -> Vec<usize> {
        let mut sequence: Vec<usize> =
            self.image_encoder.filter(|_| from_image).into_iter().chain(self.prompt()).collect();
        for index in 0..evaluations {
            if index % self.timestep_rows == 0 {
                sequence.extend(self.timestep_projection);
            }
            sequence.extend(std::iter::repeat_n(self.denoiser, self.passes));
        }
        sequence.push(self.decoder);
        sequence
    }
}
