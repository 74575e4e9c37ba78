//! Rules that the sizes of a model keep.

use super::{ModelConfig, UnetConfig};

/// Number of groups of every group normalization of the model family.
const NORM_GROUPS: usize = 32;
/// Largest width and height of an image.
const MAX_PX: usize = 1 << 14;

impl ModelConfig {
    /// The model for images of another size.
    ///
    /// Errors: the size is no multiple of [`ModelConfig::step_px`].
    pub fn at_size(&self, width_px: usize, height_px: usize) -> Result<ModelConfig, String> {
        let sized = ModelConfig { width_px, height_px, ..self.clone() };
        sized.check().map(|()| sized)
    }

    /// Checks that the sizes fit together. Errors: field and fault.
    pub(super) fn check(&self) -> Result<(), String> {
        levels("vae.channels", &self.vae.channels)?;
        self.unet.check()?;
        let text = &self.text;
        divides("text.heads", text.heads, text.width)?;
        if self.unet.context_width != text.width {
            let (found, width) = (self.unet.context_width, text.width);
            return Err(format!("unet.context_width: {found}, but text.width is {width}"));
        }
        let step_px = self.step_px();
        for (field, px) in [("width_px", self.width_px), ("height_px", self.height_px)] {
            if px == 0 || px > MAX_PX || !px.is_multiple_of(step_px) {
                return Err(format!("{field}: {px} is no multiple of {step_px} up to {MAX_PX}"));
            }
        }
        Ok(())
    }

    /// The pixels of an image along one side are a multiple of this, so that every level of every
    /// network halves its feature map exactly.
    pub fn step_px(&self) -> usize {
        self.vae.factor() << (self.unet.channels.len() - 1)
    }
}

impl UnetConfig {
    fn check(&self) -> Result<(), String> {
        levels("unet.channels", &self.channels)?;
        let count = self.channels.len();
        if self.heads.len() != count {
            return Err(format!("unet.heads: {} entries for {count} levels", self.heads.len()));
        }
        for (heads, channels) in self.heads.iter().zip(&self.channels) {
            divides("unet.heads", *heads, *channels)?;
        }
        for (field, list) in [
            ("down_attention", &self.down_attention),
            ("up_attention", &self.up_attention),
            ("only_cross_attention", &self.only_cross_attention),
        ] {
            if let Some(level) = list.iter().find(|level| **level >= count) {
                return Err(format!("unet.{field}: there is no level {level}"));
            }
        }
        if self.res_blocks == 0 {
            return Err("unet.res_blocks: 0".into());
        }
        for (field, count) in [("guidance_width", self.guidance_width), ("classes", self.classes)] {
            if count == Some(0) {
                return Err(format!("unet.{field}: 0"));
            }
        }
        Ok(())
    }
}

fn levels(field: &str, channels: &[usize]) -> Result<(), String> {
    if channels.is_empty() {
        return Err(format!("{field}: there are no levels"));
    }
    match channels.iter().find(|c| **c == 0 || !c.is_multiple_of(NORM_GROUPS)) {
        Some(c) => Err(format!("{field}: {c} is no multiple of {NORM_GROUPS}")),
        None => Ok(()),
    }
}

fn divides(field: &str, heads: usize, channels: usize) -> Result<(), String> {
    if heads == 0 || !channels.is_multiple_of(heads) {
        return Err(format!("{field}: {heads} heads for {channels} channels"));
    }
    Ok(())
}
