//! The pictures from which images begin, and their masks.

use std::path::PathBuf;

use kiln_bundle::plan::Plan;

use super::formats::PictureFormats;
use super::jobs::Job;
use crate::error::RuntimeError;
use crate::pipeline::png::{RgbImage, Scaled};
use crate::session::{Init, check_init};

/// Share of the steps that change a picture; with a mask, all of them.
const STRENGTH: f64 = 0.75;

/// The pictures that were read last. Images that follow each other mostly begin with the same.
#[derive(Default)]
pub(super) struct Pictures {
    paths: [Option<PathBuf>; 2],
    images: [Option<RgbImage>; 2],
}

impl Pictures {
    /// Whether the next picture is decoded whole, which takes memory.
    pub fn decodes_whole(&self, job: &Job, formats: &dyn PictureFormats) -> bool {
        let paths = [&job.init_image, &job.mask];
        let is_whole = |path: &&PathBuf| !formats.reads_by_rows(path);
        self.paths.each_ref() != paths && paths.into_iter().flatten().any(|path| is_whole(&path))
    }

    /// The picture of an image, at the model's size.
    ///
    /// Errors: a file cannot be read; a mask without a picture, or of another shape; the model has
    /// no use for them.
    pub fn read(
        &mut self,
        job: &Job,
        plan: &Plan,
        formats: &dyn PictureFormats,
    ) -> Result<Option<Init>, RuntimeError> {
        let paths = [job.init_image.clone(), job.mask.clone()];
        if self.paths != paths {
            *self = Pictures::default();
            self.images = images(&paths, plan, formats)?;
            self.paths = paths;
        }
        let [image, mask] = self.images.clone();
        let strength = job.strength.unwrap_or(if mask.is_some() { 1.0 } else { STRENGTH });
        let init = image.map(|image| Init { image, strength, mask });
        check_init(plan, init.as_ref())?;
        Ok(init)
    }
}

fn images(
    [picture, mask]: &[Option<PathBuf>; 2],
    plan: &Plan,
    formats: &dyn PictureFormats,
) -> Result<[Option<RgbImage>; 2], RuntimeError> {
    let size = plan.manifest.image;
    let room_bytes = plan.memory.device_bytes();
    let read = |path: &PathBuf| formats.read_cover(path, size, room_bytes);
    let read = |path: &Option<PathBuf>| path.as_ref().map(read).transpose();
    if let (None, Some(mask)) = (picture, mask) {
        let message = format!("the mask {} has no picture to begin with", mask.display());
        return Err(RuntimeError::Input(message));
    }
    let [image, hidden] = [read(picture)?, read(mask)?];
    if let (Some(image), Some(hidden), Some(picture), Some(mask)) = (&image, &hidden, picture, mask)
        && !have_one_shape(image.from, hidden.from)
    {
        let ((width, height), (mask_width, mask_height)) = (image.from, hidden.from);
        let message = format!(
            "{} has {mask_width} x {mask_height} pixels, {} {width} x {height}: give a mask of the \
             picture's shape",
            mask.display(),
            picture.display()
        );
        return Err(RuntimeError::Input(message));
    }
    Ok([image, hidden].map(|read| read.map(|Scaled { image, .. }| image)))
}

/// Whether sizes have the same proportions, but for a pixel by rounding.
fn have_one_shape(one: (u32, u32), other: (u32, u32)) -> bool {
    let [one, other] = [one, other].map(|(width, height)| (u64::from(width), u64::from(height)));
    let difference = (one.0 * other.1).abs_diff(one.1 * other.0);
    difference <= one.0.max(one.1).max(other.0).max(other.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_compared_up_to_a_pixel() {
        for (one, other) in
            [((512, 512), (64, 64)), ((3000, 2000), (512, 341)), ((341, 512), (2000, 3000))]
        {
            assert!(have_one_shape(one, other), "{one:?} {other:?}");
        }
        for (one, other) in [((512, 512), (512, 500)), ((512, 768), (768, 512))] {
            assert!(!have_one_shape(one, other), "{one:?} {other:?}");
        }
    }
}
