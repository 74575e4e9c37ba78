//! A mask: which part of an image is repainted, and which is kept.
//!
//! White is repainted, black is kept, gray mixes the two images.

use super::png::{Repaint, RgbImage};

const CHANNELS: usize = 3;
/// Least value that is repainted in latents.
const REPAINTED: u8 = 128;

/// A share of new paint for each pixel, row by row: 0 keeps the pixel, 255 repaints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    shares: Vec<u8>,
}

impl Mask {
    /// The mask that an image shows.
    ///
    /// Numerics: luminance by ITU-R BT.601, `(299 R + 587 G + 114 B) / 1000`, to the nearest.
    pub fn of(image: &RgbImage) -> Mask {
        let luminance = |&[r, g, b]: &[u8; CHANNELS]| {
            let [r, g, b] = [r, g, b].map(u32::from);
            ((299 * r + 587 * g + 114 * b + 500) / 1000) as u8
        };
        let shares = image.pixels().as_chunks().0.iter().map(luminance).collect();
        Mask { width: image.width() as usize, shares }
    }

    /// Whether no pixel is repainted.
    pub fn keeps_all(&self) -> bool {
        self.shares.iter().all(|share| *share < REPAINTED)
    }

    /// Whether every pixel is repainted.
    pub fn repaints_all(&self) -> bool {
        self.shares.iter().all(|share| *share == u8::MAX)
    }

    /// Share of the image that is repainted, 0 to 1.
    fn share(&self) -> f64 {
        let sum: u64 = self.shares.iter().map(|share| u64::from(*share)).sum();
        sum as f64 / (self.shares.len().max(1) as f64 * f64::from(u8::MAX))
    }

    /// The record of the mask.
    pub fn record(&self) -> Repaint {
        let checksum = format!("{:016x}", kiln_bundle::hash(&self.shares));
        Repaint { share: self.share(), checksum }
    }

    /// The mask at the size of a latent: 1 is repainted, 0 is kept. Each latent pixel is the mask's
    /// at its upper left corner, as in diffusers.
    pub fn latent(&self, width: usize, height: usize) -> Vec<f32> {
        let rows = self.shares.len() / self.width.max(1);
        let at = |y: usize, x: usize| {
            let (y, x) = (y * rows / height.max(1), x * self.width / width.max(1));
            let share = self.shares.get(y * self.width + x).copied().unwrap_or(0);
            f32::from(u8::from(share >= REPAINTED))
        };
        (0..height).flat_map(|y| (0..width).map(move |x| at(y, x))).collect()
    }

    /// Makes the repainted part of an image gray, which models for inpainting read.
    ///
    /// Shapes: `values: [height, width, 3]`, -1 to 1.
    pub fn hide(&self, values: &mut [f32]) {
        for (pixel, share) in values.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(&self.shares) {
            if *share >= REPAINTED {
                *pixel = [0.0; CHANNELS];
            }
        }
    }

    /// Puts the kept part of `original` into an image of the same size.
    pub fn keep(&self, original: &RgbImage, image: &mut RgbImage) {
        let pixels = image.pixels_mut().chunks_exact_mut(CHANNELS);
        let kept = original.pixels().chunks_exact(CHANNELS);
        for ((pixel, kept), share) in pixels.zip(kept).zip(&self.shares) {
            let share = u32::from(*share);
            for (new, old) in pixel.iter_mut().zip(kept) {
                let sum = u32::from(*new) * share + u32::from(*old) * (255 - share);
                *new = ((sum + 127) / 255) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, pixels: &[[u8; 3]]) -> RgbImage {
        let height = pixels.len() as u32 / width;
        RgbImage::from_pixels(width, height, pixels.concat()).unwrap()
    }

    #[test]
    fn colours_are_read_by_their_luminance() {
        // PIL's convert("L") of these: 255, 0, 76, 150, 29, 128.
        let colours = [[255; 3], [0; 3], [255, 0, 0], [0, 255, 0], [0, 0, 255], [128; 3]];
        assert_eq!(Mask::of(&image(3, &colours)).shares, [255, 0, 76, 150, 29, 128]);
    }

    #[test]
    fn black_keeps_white_repaints_and_gray_mixes() {
        let mask = Mask::of(&image(3, &[[0; 3], [255; 3], [51; 3]]));
        let original = image(3, &[[10, 20, 30]; 3]);
        let mut made = image(3, &[[200, 100, 50]; 3]);
        mask.keep(&original, &mut made);
        assert_eq!(made.pixels(), [10, 20, 30, 200, 100, 50, 48, 36, 34]);
        assert!(!mask.keeps_all() && !mask.repaints_all());
        assert!((mask.share() - 0.4).abs() < 1e-9, "{}", mask.share());
        let all = |level: u8| Mask::of(&image(2, &[[level; 3]; 4]));
        assert!(all(127).keeps_all() && all(255).repaints_all());
        assert!(!all(254).repaints_all() && !all(128).keeps_all());
    }

    #[test]
    fn latent_pixels_are_those_of_their_corners() {
        let levels = [127, 0, 128, 255, 255, 255, 0, 0, 128, 0, 0, 0, 9, 9, 9, 9];
        let mask = Mask::of(&image(4, &levels.map(|level| [level; 3])));
        assert_eq!(mask.latent(2, 2), [0.0, 1.0, 1.0, 0.0]);
        let mut values = vec![0.5; 48];
        mask.hide(&mut values);
        let hidden = [2, 3, 4, 5, 8];
        let is_hidden = |pixel: usize| values[pixel * 3..][..3] == [0.0; 3];
        assert!((0..16).all(|pixel| is_hidden(pixel) == hidden.contains(&pixel)), "{values:?}");
    }
}
