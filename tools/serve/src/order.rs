//! What a client asks for, and the order that it becomes once everything in it is checked.

use std::borrow::Cow;

use kiln_bundle::plan::Size;
use kiln_runtime::Request;
use kiln_runtime::pipeline::mask::Mask;
use kiln_runtime::session::{Decoder, Init, Settings};
use serde::Deserialize;

use crate::account::{Account, PROMPT_BYTES, picture_bytes_of};
use crate::error::Refusal;
use crate::models::{Model, Models};
use crate::upload;

/// Most pictures of a request.
pub const MAX_COUNT: usize = 8;

/// A request for pictures, in this server's own interface. The others are translated into it.
#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Wish<'a> {
    pub model: Option<String>,
    pub prompt: String,
    pub negative_prompt: String,
    pub plain_prompt: bool,
    /// Drawn if none.
    pub seed: Option<u64>,
    pub count: Option<usize>,
    pub steps: Option<usize>,
    pub guidance: Option<f32>,
    pub guidance_rescale: f32,
    pub sampler: Option<String>,
    pub spacing: Option<String>,
    pub eta: Option<f32>,
    /// `512x768`; the bundle's first size if none.
    pub size: Option<String>,
    /// A PNG file in base64, or as a data URL.
    #[serde(borrow)]
    pub init_image: Option<Cow<'a, str>>,
    pub strength: Option<f64>,
    /// White is repainted.
    #[serde(borrow)]
    pub mask: Option<Cow<'a, str>>,
    pub decoder: Option<String>,
    pub preview: Preview,
    #[serde(skip)]
    pub mask_kind: MaskKind,
}

/// What of a mask is repainted.
#[derive(Clone, Copy, Default)]
pub enum MaskKind {
    #[default]
    White,
    /// As in OpenAI's interface.
    Transparent,
}

/// Pictures between steps.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preview {
    None,
    /// A colour for each pixel of the latent, which costs nothing.
    #[default]
    Latent,
    /// By the tiny decoder, after each step.
    Decoder,
}

/// A checked request.
pub struct Order {
    /// Index of the bundle.
    pub model: usize,
    pub size: Size,
    /// Number of pictures. Seeds count up.
    pub count: usize,
    pub settings: Settings,
    pub preview: Preview,
    pub prompt: String,
    pub negative_prompt: String,
    pub plain_prompt: bool,
    pub seed: u64,
    pub init: Option<Init>,
    decoder: Option<Decoder>,
    sampler: Option<String>,
    spacing: Option<String>,
    eta: Option<f32>,
}

impl Order {
    /// Checks a wish. Its pictures are decoded here.
    ///
    /// `default_model`: index of the bundle for a wish that names none.
    /// Errors: 400 for all that is wrong, 404 for an unknown bundle.
    pub fn of(
        wish: Wish<'_>,
        models: &Models,
        default_model: usize,
        account: &Account,
    ) -> Result<Order, Refusal> {
        let model = match &wish.model {
            Some(name) => models.find(name)?,
            None => default_model,
        };
        let entry = &models.all()[model];
        let asked = wish.size.as_deref().map(str::parse).transpose();
        let asked = asked.map_err(|error| Refusal::bad(format!("size: {error}")))?;
        let of_size = entry.size(asked)?;
        let count = wish.count.unwrap_or(1);
        let fits = account.pictures_bytes / picture_bytes_of(of_size.size);
        let most = MAX_COUNT.min(fits.saturating_sub(1).max(1) as usize);
        if !(1..=most).contains(&count) {
            return Err(Refusal::bad(format!("count is {count}, it must be from 1 to {most}")));
        }
        for (name, text) in [("prompt", &wish.prompt), ("negative prompt", &wish.negative_prompt)] {
            if text.len() > PROMPT_BYTES {
                let message = format!("the {name} has {} bytes, over {PROMPT_BYTES}", text.len());
                return Err(Refusal::bad(message));
            }
        }
        let decoder: Option<Decoder> =
            wish.decoder.as_deref().map(str::parse).transpose().map_err(Refusal::bad)?;
        check_decoders(entry, decoder, wish.preview)?;
        let seed = match wish.seed {
            Some(seed) => seed,
            None => u64::from(getrandom::u32().map_err(Refusal::busy)?),
        };
        let asked = Request {
            steps: wish.steps,
            guidance: wish.guidance,
            guidance_rescale: wish.guidance_rescale,
            sampler: wish.sampler.clone(),
            spacing: wish.spacing.clone(),
            eta: wish.eta,
            ..Request::default()
        };
        let settings = asked.settings(&of_size.manifest)?;
        let pictures = (wish.init_image.as_deref(), wish.mask.as_deref());
        let init = init(entry, of_size.size, pictures, wish.strength, wish.mask_kind)?;
        Ok(Order {
            model,
            size: of_size.size,
            count,
            settings,
            preview: wish.preview,
            prompt: wish.prompt,
            negative_prompt: wish.negative_prompt,
            plain_prompt: wish.plain_prompt,
            seed,
            init,
            decoder,
            sampler: wish.sampler,
            spacing: wish.spacing,
            eta: wish.eta,
        })
    }

    /// The request for picture `index` of the order, without the picture to begin with.
    pub fn request(&self, index: usize) -> Request<'static> {
        Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            plain_prompt: self.plain_prompt,
            seed: self.seed.wrapping_add(index as u64),
            steps: Some(self.settings.steps),
            guidance: Some(self.settings.guidance),
            guidance_rescale: self.settings.guidance_rescale,
            sampler: self.sampler.clone(),
            spacing: self.spacing.clone(),
            eta: self.eta,
            decoder: self.decoder,
            preview_every: usize::from(self.preview == Preview::Decoder),
            ..Request::default()
        }
    }
}

fn check_decoders(
    model: &Model,
    decoder: Option<Decoder>,
    preview: Preview,
) -> Result<(), Refusal> {
    let lacks = |name| !model.decoders.contains(&name);
    let name = &model.name;
    if (decoder == Some(Decoder::Tiny) || preview == Preview::Decoder) && lacks("tiny") {
        return Err(Refusal::bad(format!("{name} has no tiny decoder")));
    }
    if decoder == Some(Decoder::Full) && lacks("full") {
        return Err(Refusal::bad(format!("{name} has only a tiny decoder")));
    }
    Ok(())
}

/// The picture to begin with and its mask, at the size of the pictures.
fn init(
    model: &Model,
    size: Size,
    (image, mask): (Option<&str>, Option<&str>),
    strength: Option<f64>,
    kind: MaskKind,
) -> Result<Option<Init>, Refusal> {
    if model.needs_mask() && mask.is_none() {
        let message = "repaints a part of a picture: give init_image, and mask with it in white";
        return Err(Refusal::bad(format!("{} {message}", model.name)));
    }
    let Some(image) = image else {
        return match mask {
            Some(_) => Err(Refusal::bad("the mask has no picture to begin with")),
            None => Ok(None),
        };
    };
    if !model.has_encoder {
        let message = "has no encoder for a picture to begin with; compile it with --with-encoder";
        return Err(Refusal::bad(format!("{} {message}", model.name)));
    }
    let strength = strength.unwrap_or(if mask.is_some() { 1.0 } else { 0.75 });
    if !(strength > 0.0 && strength <= 1.0) {
        let message = format!("strength is {strength}, it must be over 0 and at most 1");
        return Err(Refusal::bad(message));
    }
    let image = upload::picture(image, size)?;
    let read = |mask| match kind {
        MaskKind::White => upload::picture(mask, size),
        MaskKind::Transparent => upload::alpha_mask(mask, size),
    };
    let mask = mask.map(read).transpose()?;
    let shares = mask.as_ref().map(Mask::of);
    if shares.as_ref().is_some_and(Mask::keeps_all) {
        return Err(Refusal::bad("the mask has no white, so nothing would be repainted"));
    }
    if shares.as_ref().is_some_and(Mask::repaints_all) {
        return Err(Refusal::bad("the mask is white everywhere, so nothing would be kept"));
    }
    Ok(Some(Init { image, strength, mask }))
}
