//! Which of a plan's networks is which, and in what order they run for a picture.

use kiln_bundle::plan::{Phase, Plan};

use super::Session;
use crate::error::RuntimeError;

/// The networks of a plan that the pipeline names.
pub(super) struct Roles {
    pub prompt: Vec<usize>,
    pub timesteps: Vec<usize>,
    /// From a picture to a latent; only bundles that were made so have it.
    pub encoder: Option<usize>,
    pub text_encoder: usize,
    pub unet: usize,
    pub decoder: usize,
    /// Timesteps whose projections are made at once.
    pub rows: usize,
    /// Runs of the U-Net for a step.
    pub passes: usize,
}

impl Roles {
    pub fn of(session: &Session) -> Result<Roles, RuntimeError> {
        let plan = session.plan();
        let of_phase =
            |phase| (0..plan.networks.len()).filter(|&n| plan.networks[n].phase == phase).collect();
        let timesteps: Vec<usize> = of_phase(Phase::Timesteps);
        let encoder = plan.networks.iter().position(|network| network.name == "encoder");
        let mut prompt = of_phase(Phase::Prompt);
        prompt.retain(|network| Some(*network) != encoder);
        Ok(Roles {
            prompt,
            encoder,
            text_encoder: session.network("text_encoder")?,
            unet: session.network("unet")?,
            decoder: session.network("decoder")?,
            rows: if timesteps.is_empty() { usize::MAX } else { timestep_rows(plan) },
            timesteps,
            passes: if plan.manifest.guidance_batch == 2 { 1 } else { 2 },
        })
    }

    /// Everything that runs for a picture, in order.
    pub fn sequence(&self, steps: usize, from_picture: bool) -> Vec<usize> {
        let mut sequence: Vec<usize> = self.encoder.filter(|_| from_picture).into_iter().collect();
        sequence.extend(&self.prompt);
        for step in 0..steps {
            if step % self.rows == 0 {
                sequence.extend(&self.timesteps);
            }
            sequence.extend(std::iter::repeat_n(self.unet, self.passes));
        }
        sequence.push(self.decoder);
        sequence
    }
}

fn timestep_rows(plan: &Plan) -> usize {
    plan.manifest.timestep_rows.max(1) as usize
}
