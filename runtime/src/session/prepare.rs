//! Prepares an image before the first network runs: tokens, a sampler, noise.

use super::canvas::Canvas;
use super::generate::Request;
use super::settings::Settings;
use super::{Session, latent_elems};
use crate::error::RuntimeError;
use crate::pipeline::emphasis::{self, Piece};
use crate::pipeline::rng::NormalRng;
use crate::pipeline::sampler::Sampler;
use crate::pipeline::tokenizer::CONTEXT_LENGTH;

/// The first step of a run from an image. The strength is the share of the steps that run.
///
/// Errors: `Input` if the strength is not over 0 and up to 1.
pub(super) fn first_step(strength: f64, steps: usize) -> Result<usize, RuntimeError> {
    if !(strength > 0.0 && strength <= 1.0) {
        let message = format!("strength is {strength}, it must be over 0 and at most 1");
        return Err(RuntimeError::Input(message));
    }
    Ok(steps - ((steps as f64 * strength) as usize).clamp(1, steps))
}

/// The prompts of a request, one for each branch of guidance.
#[derive(Default)]
pub(super) struct TokenizedPrompts {
    /// Tokens of all prompts, [`CONTEXT_LENGTH`] each.
    pub tokens: Vec<i32>,
    /// Weights of the tokens of each prompt.
    pub weights: Vec<Vec<f32>>,
}

impl TokenizedPrompts {
    /// Whether a token has another weight than 1.
    pub fn are_weighted(&self) -> bool {
        self.weights.iter().flatten().any(|weight| *weight != 1.0)
    }
}

impl Session {
    /// Tokens of the prompts, one for each branch of guidance, the negative one first, and
    /// warnings.
    pub(super) fn tokenize(
        &self,
        request: &Request<'_>,
    ) -> Result<(TokenizedPrompts, Vec<String>), RuntimeError> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(RuntimeError::Input("the bundle has no tokenizer".into()));
        };
        let (mut read, mut warnings) = (TokenizedPrompts::default(), Vec::new());
        let prompts = [("negative prompt", &request.negative_prompt), ("prompt", &request.prompt)];
        let unused = prompts.len() - self.host.branches.len().min(prompts.len());
        if unused > 0 && !request.negative_prompt.is_empty() {
            warnings
                .push("the bundle has no guidance, so the negative prompt has no effect".into());
        }
        for (name, prompt) in prompts.into_iter().skip(unused) {
            let pieces = match request.plain_prompt {
                true => vec![Piece { text: prompt.clone(), weight: 1.0 }],
                false => emphasis::pieces(prompt),
            };
            let texts = pieces.iter().map(|piece| piece.text.as_str());
            let (encoding, part_of) = tokenizer.tokenize_parts(texts);
            read.tokens.extend(encoding.padded());
            let weight = |part: &Option<usize>| part.map_or(1.0, |part| pieces[part].weight);
            let mut weights: Vec<f32> = part_of.iter().map(weight).collect();
            weights.resize(CONTEXT_LENGTH, 1.0);
            read.weights.push(weights);
            if encoding.truncated {
                let message = format!("the {name} is longer than {CONTEXT_LENGTH} tokens");
                warnings.push(message + "; its end was cut off");
            }
        }
        Ok((read, warnings))
    }

    /// The sampler from the first step that runs on, and noise of variance 1 in `self.host.latent`.
    pub(super) fn prepare(
        &mut self,
        request: &Request<'_>,
        settings: &Settings,
        canvas: Option<&Canvas<'_>>,
    ) -> Result<(Sampler, NormalRng), RuntimeError> {
        let elems = latent_elems(self.plan());
        let first = match canvas {
            Some(canvas) => first_step(canvas.strength, settings.steps)?,
            None => 0,
        };
        let sampler = settings.sampler(&self.plan().manifest.schedule, first, elems)?;
        let mut rng = NormalRng::from_seed(request.seed);
        match &request.initial_latent {
            None => rng.fill(&mut self.host.latent),
            Some(latent) if latent.len() == elems && latent.iter().all(|x| x.is_finite()) => {
                self.host.latent.copy_from_slice(latent);
            }
            Some(latent) => {
                let found = latent.len();
                let message =
                    format!("the initial latent needs {elems} finite values, has {found}");
                return Err(RuntimeError::Input(message));
            }
        }
        Ok((sampler, rng))
    }
}
