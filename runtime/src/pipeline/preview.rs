//! A preview of a latent without the decoder: one colour for each of its pixels.
//!
//! Owns the colours. They are a linear map for each autoencoder. It keeps brightness and hue, and
//! no detail finer than a pixel of the latent.

use super::png::{PngError, RgbImage};
use kiln_bundle::plan::Size;

/// Channels of the latents that can be shown.
pub const CHANNELS: usize = 4;

/// Least width of a preview in pixels. Smaller latents are shown in larger squares.
const MIN_PX: usize = 128;

/// Colours of a latent: RGB from -1 to 1 is `latent * weights + bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Projection {
    /// Weights of red, green and blue for each channel.
    pub weights: [[f32; 3]; CHANNELS],
    /// Addends of red, green and blue.
    pub bias: [f32; 3],
}

/// The autoencoder of Stable Diffusion 1 and 2.
///
/// Source: K. Turner, "Decoding latents to RGB without upscaling", Hugging Face forum, 2022.
const STABLE_DIFFUSION: Projection = Projection {
    weights: [
        [0.298, 0.207, 0.208],
        [0.187, 0.286, 0.173],
        [-0.158, 0.189, 0.264],
        [-0.184, -0.271, -0.473],
    ],
    bias: [0.0; 3],
};

/// Least squares over images of the model and their inversions, averaged in squares of 8 pixels
/// (`models/make_golden.py`). The error is 0.13 on the scale from -1 to 1.
const EMOJI: Projection = Projection {
    weights: [
        [-0.3674, 0.1374, -0.2409],
        [0.0421, 0.0714, -0.2963],
        [0.3796, 0.4188, 0.0321],
        [0.2376, -0.1999, -0.3913],
    ],
    bias: [0.3193, 0.1110, 0.0664],
};

impl Projection {
    /// The projection for a model's latents, by the model's name.
    pub fn of_model(name: &str) -> &'static Projection {
        if name.starts_with("emoji") { &EMOJI } else { &STABLE_DIFFUSION }
    }

    /// The image `decoded` if it is not empty, else the latent in colours. `sizes` are those of the
    /// latent and of the image.
    pub fn preview(
        &self,
        latent: &[f32],
        decoded: &[f32],
        (size, image): (Size, Size),
    ) -> Result<RgbImage, PngError> {
        match decoded {
            [] => self.show(latent, size),
            _ => RgbImage::from_decoder(image.width_px, image.height_px, decoded),
        }
    }

    /// Renders a latent.
    ///
    /// Shapes: `latent: [CHANNELS, height, width]` -> squares of at least one pixel; the image is
    /// at least 128 pixels wide.
    /// Errors: [`PngError::Size`] if the latent has another shape.
    pub fn show(&self, latent: &[f32], size: Size) -> Result<RgbImage, PngError> {
        let [height, width] = size.axes();
        let (plane, square) = (height * width, MIN_PX.div_ceil(width.max(1)).max(1));
        let mut values = Vec::with_capacity(plane * square * square * 3);
        if latent.len() == CHANNELS * plane {
            for pixel in 0..plane * square * square {
                let (y, x) = (pixel / (width * square) / square, pixel % (width * square) / square);
                values.extend(self.color(|channel| latent[channel * plane + y * width + x]));
            }
        }
        RgbImage::from_decoder((width * square) as u32, (height * square) as u32, &values)
    }

    fn color(&self, channel: impl Fn(usize) -> f32) -> [f32; 3] {
        let mut color = self.bias;
        for (index, weights) in self.weights.iter().enumerate() {
            let value = channel(index);
            color.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += value * weight);
        }
        color
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_of_a_latent_become_squares() {
        let mut latent = [0.0; 16];
        // Channel 0 of the lower left pixel.
        latent[2] = 10.0;
        let weights = [[0.1, -0.1, 0.0], [9.0; 3], [9.0; 3], [9.0; 3]];
        let projection = Projection { weights, bias: [0.0, 0.0, 1.0] };
        let square = Size { width_px: 2, height_px: 2 };
        let image = projection.show(&latent, square).unwrap();
        assert_eq!((image.width(), image.height()), (128, 128));
        let pixel = |x: usize, y: usize| &image.pixels()[(y * 128 + x) * 3..][..3];
        assert_eq!(pixel(63, 64), [255, 0, 255]);
        assert_eq!(pixel(64, 64), [128, 128, 255]);
        assert_eq!(pixel(63, 63), [128, 128, 255]);
        let wide = Size { width_px: 4, height_px: 1 };
        let image = projection.show(&latent, wide).unwrap();
        assert_eq!((image.width(), image.height()), (128, 32));
        assert_eq!([95, 64, 63].map(|x| image.pixels()[x * 3]), [255, 255, 128]);
        assert!(projection.show(&latent[1..], square).is_err());
        assert!(projection.show(&[], Size { width_px: 0, height_px: 0 }).is_err());
    }
}
