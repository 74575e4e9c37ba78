//! Scales an image to a model's size.

use super::png::{PngError, RgbImage};

const CHANNELS: usize = 3;

/// Scales an image to cover `width` x `height` and cuts the excess off evenly on both sides.
///
/// Numerics: a triangle filter (bilinear). Its radius is one source pixel where the image grows,
/// and one target pixel where it shrinks, so that every source pixel counts. An image of the
/// requested size is returned unchanged.
/// Errors: [`PngError::Size`] if the size is zero.
pub fn cover(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage, PngError> {
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 {
        return Err(PngError::Size { width, height, elems: image.pixels().len() });
    }
    // Source pixels for each target pixel. The smaller ratio covers the whole target.
    let ratio = |from: u32, to: u32| f64::from(from) / f64::from(to);
    let scale = ratio(image.width(), width).min(ratio(image.height(), height));
    let columns = taps(from_width, width as usize, scale);
    let rows = taps(from_height, height as usize, scale);
    let pixels = image.pixels();
    let mut lines = vec![0.0f32; from_height * columns.len() * CHANNELS];
    let places = lines.chunks_exact_mut((columns.len() * CHANNELS).max(1));
    for (line, source) in places.zip(pixels.chunks_exact(from_width * CHANNELS)) {
        for (pixel, taps) in line.chunks_exact_mut(CHANNELS).zip(&columns) {
            for (index, weight) in taps.indexed() {
                for (sum, value) in pixel.iter_mut().zip(&source[index * CHANNELS..]) {
                    *sum += weight * f32::from(*value);
                }
            }
        }
    }
    let line_elems = columns.len() * CHANNELS;
    let mut out = Vec::with_capacity(rows.len() * line_elems);
    for taps in &rows {
        for elem in 0..line_elems {
            let sum: f32 = taps.indexed().map(|(y, w)| w * lines[y * line_elems + elem]).sum();
            out.push(sum.round_ties_even().clamp(0.0, 255.0) as u8);
        }
    }
    RgbImage::from_pixels(width, height, out)
}

/// The source pixels of one target pixel.
struct Taps {
    first: usize,
    /// Weights of the source pixels; they sum to 1.
    weights: Vec<f32>,
}

impl Taps {
    fn indexed(&self) -> impl Iterator<Item = (usize, f32)> + '_ {
        self.weights.iter().enumerate().map(|(index, weight)| (self.first + index, *weight))
    }
}

/// The source pixels of each of `count` target pixels, which are `scale` source pixels wide.
fn taps(from: usize, count: usize, scale: f64) -> Vec<Taps> {
    let margin = (from as f64 - count as f64 * scale) / 2.0;
    let reach = scale.max(1.0);
    let tap = |target: usize| {
        let center = margin + (target as f64 + 0.5) * scale;
        let first = (center - reach).floor().max(0.0) as usize;
        let end = ((center + reach).ceil() as usize).min(from);
        let weight = |index: usize| (1.0 - (index as f64 + 0.5 - center).abs() / reach).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|weight| (weight / sum) as f32).collect() }
    };
    (0..count).map(tap).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, color: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
        let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
        let pixels = places.flat_map(|(x, y)| color(x, y)).collect();
        RgbImage::from_pixels(width, height, pixels).unwrap()
    }

    #[test]
    fn a_picture_of_the_size_stays_as_it_is() {
        let same = image(7, 5, |x, y| [(x * 31) as u8, (y * 47) as u8, (x * y) as u8]);
        assert_eq!(cover(&same, 7, 5).unwrap(), same);
    }

    #[test]
    fn what_is_over_is_cut_off_on_both_sides() {
        // Red, green, blue, each 4 pixels wide.
        let wide = image(12, 4, |x, _| [0, 1, 2].map(|c| if c == x / 4 { 255 } else { 0 }));
        assert_eq!(cover(&wide, 4, 4).unwrap(), image(4, 4, |_, _| [0, 255, 0]));
        let tall = image(4, 12, |_, y| [0, 1, 2].map(|c| if c == y / 4 { 255 } else { 0 }));
        let small = cover(&tall, 2, 2).unwrap();
        assert_eq!((small.width(), small.height()), (2, 2));
        assert!(small.pixels().chunks(3).all(|p| p[1] > 200), "{:?}", small.pixels());
    }

    #[test]
    fn shrinking_averages_and_growing_blends() {
        let checks = image(64, 64, |x, y| [if (x + y) % 2 == 0 { 0 } else { 255 }; 3]);
        let gray = cover(&checks, 8, 8).unwrap();
        assert!(gray.pixels().iter().all(|p| (126..=129).contains(p)), "{:?}", gray.pixels());
        let ramp = cover(&image(2, 2, |x, _| [x as u8 * 200; 3]), 8, 8).unwrap();
        let line: Vec<u8> = ramp.pixels()[..24].iter().step_by(3).copied().collect();
        assert_eq!(line, [0, 0, 25, 75, 125, 175, 200, 200]);
        assert!(cover(&checks, 0, 8).is_err());
    }
}
