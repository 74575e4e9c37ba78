//! The image that a request begins with, and what a mask keeps of it.

use std::borrow::Cow;

#[cfg(doc)]
use kiln_bundle::plan::Feed;
use kiln_bundle::plan::{Plan, Role};

use super::generate::{Init, check_finite};
use super::{HostInputs, Session, prepare};
use crate::error::RuntimeError;
use crate::pipeline::mask::Mask;
use crate::pipeline::png::RgbImage;
use crate::pipeline::resize;
use crate::pipeline::sampler::{Level, Sampler};
use crate::stream::Stream;
use crate::tensor;

/// An initial image and its mask, at the model's size.
pub(super) struct Canvas<'a> {
    image: Cow<'a, RgbImage>,
    pub mask: Option<Mask>,
    pub strength: f64,
    /// Whether the denoiser reads mask and masked image.
    reads_mask: bool,
}

/// Checks that a request has the images that the model reads, and that the bundle can encode them.
///
/// Errors: `Input` if an image or a mask is missing or of no use, the strength is not over 0 and up
/// to 1, or the bundle has no image encoder.
pub(crate) fn check_init(plan: &Plan, init: Option<&Init>) -> Result<(), RuntimeError> {
    Canvas::of(plan, init).map(drop)
}

impl<'a> Canvas<'a> {
    /// The canvas of a request, if it has one; with the errors of [`check_init`].
    pub fn of(plan: &Plan, init: Option<&'a Init>) -> Result<Option<Canvas<'a>>, RuntimeError> {
        let manifest = &plan.manifest;
        let fault = |message: &str| Err(RuntimeError::Input(message.into()));
        // The mask and the latent of the masked image.
        let reads_mask = manifest.condition_channels == manifest.latent_channels + 1;
        if manifest.condition_channels > 0 && !reads_mask {
            return fault(
                "the model reads a picture beside the latent (depth), which a run cannot give it; \
                 kiln eval runs its networks",
            );
        }
        if reads_mask && init.is_none_or(|init| init.mask.is_none()) {
            return fault(
                "the model repaints a part of a picture; give --init-image, and --mask with that \
                 part in white",
            );
        }
        let Some(init) = init else { return Ok(None) };
        prepare::first_step(init.strength, 1)?;
        if plan.with_role(Role::ImageEncoder).is_none() {
            return fault(
                "the bundle has no encoder for a picture to begin with; \
                 compile it with --with-encoder",
            );
        }
        let (width, height) = (manifest.image.width_px, manifest.image.height_px);
        let at_size = |image| resize::cover(image, width, height);
        let mask = init.mask.as_ref().map(at_size).transpose()?.map(|image| Mask::of(&image));
        let [latent_height, latent_width] = manifest.latent.axes();
        match &mask {
            Some(mask) if mask.keeps_all() => {
                return fault("the mask has no white, so nothing would be repainted");
            }
            Some(mask) if mask.repaints_all() => {
                return fault("the mask is white everywhere, so nothing would be kept");
            }
            Some(mask) if mask.latent(latent_width, latent_height).iter().all(|x| *x == 0.0) => {
                return fault(
                    "the white parts of the mask are smaller than a pixel of the latent; make \
                     them larger",
                );
            }
            _ => {}
        }
        Ok(Some(Canvas { image: at_size(&init.image)?, mask, strength: init.strength, reads_mask }))
    }

    /// Whether the run begins with noise alone: a mask at full strength leaves nothing of what it
    /// hides.
    fn begins_with_noise(&self) -> bool {
        self.mask.is_some() && self.strength == 1.0
    }

    /// The mask, if the denoiser reads it.
    fn condition(&self) -> Option<&Mask> {
        self.mask.as_ref().filter(|_| self.reads_mask)
    }

    /// The mask, if latents are blended, as the denoiser does not read it.
    fn blended(&self) -> Option<&Mask> {
        self.mask.as_ref().filter(|_| !self.reads_mask)
    }

    /// Whether the image itself is encoded.
    fn encodes_image(&self) -> bool {
        self.blended().is_some() || !self.begins_with_noise()
    }

    /// Runs of the encoder.
    pub fn encodings(&self) -> usize {
        usize::from(self.encodes_image()) + usize::from(self.condition().is_some())
    }

    /// The image as the encoder reads it.
    fn values(&self) -> Vec<f32> {
        self.image.pixels().iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect()
    }

    /// Puts what the mask keeps into the finished image.
    pub fn keep(&self, image: &mut RgbImage) {
        if let Some(mask) = &self.mask {
            mask.keep(&self.image, image);
        }
    }
}

/// What the canvas gives to the steps.
#[derive(Default)]
pub(super) struct Ground {
    /// [`Feed::Condition`] of an image: the mask and the latent of the masked image.
    pub condition: Vec<f32>,
    /// What blending keeps.
    pub kept: Option<Kept>,
}

/// What blending keeps in the latents of every step: the encoded image, with the noise of the
/// step's level.
///
/// Source: diffusers' `StableDiffusionInpaintPipeline` for U-Nets of 4 channels.
pub(super) struct Kept {
    /// Latent of the image, NCHW.
    image: Vec<f32>,
    /// The noise that the run begins with, NCHW.
    noise: Vec<f32>,
    /// [`Mask::latent`].
    mask: Vec<f32>,
}

impl Kept {
    /// Replaces the kept part of latents at a level, NCHW.
    pub fn blend(&self, level: Level, latent: &mut [f32]) {
        let (of_image, of_noise) = (level.picture as f32, level.noise as f32);
        let masks = self.mask.iter().cycle();
        for (((latent, image), noise), mask) in
            latent.iter_mut().zip(&self.image).zip(&self.noise).zip(masks)
        {
            if *mask == 0.0 {
                *latent = of_image * image + of_noise * noise;
            }
        }
    }
}

impl Session {
    /// Makes the noise in `host.latent` the latent of the first step.
    pub(super) fn begin(
        &mut self,
        canvas: Option<&Canvas<'_>>,
        encoder: Option<usize>,
        sampler: &Sampler,
        stream: &mut Stream,
    ) -> Result<Ground, RuntimeError> {
        let mut ground = Ground::default();
        let sigma = sampler.init_noise_sigma();
        let (Some(canvas), Some(encoder)) = (canvas, encoder) else {
            self.host.latent.iter_mut().for_each(|value| *value *= sigma);
            return Ok(ground);
        };
        let manifest = &self.plan().manifest;
        let channels = manifest.latent_channels as usize;
        let [height, width] = manifest.latent.axes();
        let mut values = canvas.values();
        let noise = canvas.blended().map(|_| self.host.latent.clone());
        let mut image = Vec::new();
        if canvas.encodes_image() {
            self.encode(encoder, &values, stream)?;
            image.extend(tensor::to_channels_first(&self.host.values, channels));
        }
        if canvas.begins_with_noise() {
            self.host.latent.iter_mut().for_each(|value| *value *= sigma);
        } else {
            let level = sampler.level(0)?;
            let (of_image, of_noise) = (level.picture as f32, level.noise as f32);
            for (latent, image) in self.host.latent.iter_mut().zip(&image) {
                *latent = of_image * image + of_noise * *latent;
            }
        }
        let kept = canvas.blended().zip(noise);
        ground.kept =
            kept.map(|(mask, noise)| Kept { image, noise, mask: mask.latent(width, height) });
        if let Some(mask) = canvas.condition() {
            mask.hide(&mut values);
            self.encode(encoder, &values, stream)?;
            let rows = mask.latent(width, height).into_iter();
            let rows = rows.zip(self.host.values.chunks_exact(channels));
            let row = |(mask, latent): (f32, &[f32])| [&[mask], latent].concat();
            ground.condition = rows.flat_map(row).collect();
        }
        Ok(ground)
    }

    /// Leaves the latent of an image in `host.values`, channels last.
    fn encode(
        &mut self,
        encoder: usize,
        image: &[f32],
        stream: &mut Stream,
    ) -> Result<(), RuntimeError> {
        self.run(encoder, HostInputs { image, ..HostInputs::default() }, stream)?;
        self.read_output(encoder, 0)?;
        check_finite(self.plan(), encoder, None, &self.host.values)
    }
}
