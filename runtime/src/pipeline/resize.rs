//! Scales an image to a model's size.

use std::borrow::Cow;

use super::png::{PngError, RgbImage};

const CHANNELS: usize = 3;

/// Scales an image to cover `width` x `height` and cuts the excess off evenly on both sides.
///
/// Numerics: see [`Cover`]. An image of the requested size is returned unchanged.
/// Errors: [`PngError::Size`] if the size is zero.
pub fn cover(image: &RgbImage, width: u32, height: u32) -> Result<Cow<'_, RgbImage>, PngError> {
    if (image.width(), image.height()) == (width, height) {
        return Ok(Cow::Borrowed(image));
    }
    let mut cover = Cover::new((image.width(), image.height()), (width, height))?;
    let row_bytes = image.width() as usize * CHANNELS;
    for (y, row) in image.pixels().chunks_exact(row_bytes.max(1)).enumerate() {
        cover.add(y, (0, 1), row);
    }
    cover.finish().map(Cow::Owned)
}

/// An image that is scaled while its source is read, so that the source is never in memory.
///
/// Numerics: a triangle filter (bilinear). Its radius is one source pixel where the image grows,
/// and one target pixel where it shrinks, so that every source pixel counts.
pub struct Cover {
    size: (u32, u32),
    columns: Vec<Taps>,
    rows: Vec<Taps>,
    /// A source row, scaled to the target's width.
    line: Vec<f32>,
    /// The target.
    sums: Vec<f32>,
}

impl Cover {
    /// A target of size `to` that a source of size `from` will cover. Sizes are width and height.
    ///
    /// Errors: [`PngError::Size`] if a size is zero.
    pub fn new(from: (u32, u32), to: (u32, u32)) -> Result<Cover, PngError> {
        for (width, height) in [from, to] {
            if width == 0 || height == 0 {
                return Err(PngError::Size { width, height, elems: 0 });
            }
        }
        // Source pixels for each target pixel. The smaller ratio covers the whole target.
        let ratio = |from: u32, to: u32| f64::from(from) / f64::from(to);
        let scale = ratio(from.0, to.0).min(ratio(from.1, to.1));
        let columns = taps(from.0 as usize, to.0 as usize, scale);
        let rows = taps(from.1 as usize, to.1 as usize, scale);
        let line = vec![0.0; columns.len() * CHANNELS];
        let sums = vec![0.0; rows.len() * line.len()];
        Ok(Cover { size: to, columns, rows, line, sums })
    }

    /// Adds pixels of row `y`, as red, green and blue: one at column `first`, and one every `step`
    /// columns after it. Each pixel of the source must be added once, in any order.
    pub fn add(&mut self, y: usize, (first, step): (usize, usize), rgb: &[u8]) {
        let Cover { columns, rows, line, sums, .. } = self;
        let pixels = rgb.as_chunks::<CHANNELS>().0;
        for (sum, taps) in line.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(columns) {
            // The first of the pixels that is among the taps.
            let from = taps.first.saturating_sub(first).div_ceil(step);
            *sum = [0.0; CHANNELS];
            for (index, pixel) in pixels.iter().enumerate().skip(from) {
                let Some(weight) = taps.weight(first + index * step) else { break };
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += weight * f32::from(*value);
                }
            }
        }
        for (row, taps) in sums.chunks_exact_mut(line.len()).zip(rows) {
            let Some(weight) = taps.weight(y) else { continue };
            for (sum, value) in row.iter_mut().zip(&*line) {
                *sum += weight * value;
            }
        }
    }

    /// The image.
    pub fn finish(self) -> Result<RgbImage, PngError> {
        let byte = |sum: &f32| sum.round_ties_even().clamp(0.0, 255.0) as u8;
        let (width, height) = self.size;
        RgbImage::from_pixels(width, height, self.sums.iter().map(byte).collect())
    }
}

/// The source pixels of one target pixel.
struct Taps {
    first: usize,
    /// Weights of the source pixels; they sum to 1.
    weights: Vec<f32>,
}

impl Taps {
    /// Weight of a source pixel; `None` if it is not among them.
    fn weight(&self, index: usize) -> Option<f32> {
        self.weights.get(index.checked_sub(self.first)?).copied()
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
        assert_eq!(*cover(&same, 7, 5).unwrap(), same);
    }

    #[test]
    fn rows_may_come_in_any_order_and_in_parts() {
        let source = image(50, 40, |x, y| [(x * 5) as u8, (y * 6) as u8, (x * y) as u8]);
        for (width, height) in [(50, 40), (16, 16), (70, 60)] {
            let mut parts = Cover::new((50, 40), (width, height)).unwrap();
            for (y, row) in source.pixels().chunks_exact(150).enumerate().rev() {
                for first in [2, 0, 1] {
                    let part = row.chunks_exact(3).skip(first).step_by(3);
                    let part: Vec<u8> = part.flatten().copied().collect();
                    parts.add(y, (first, 3), &part);
                }
            }
            let (found, expected) =
                (parts.finish().unwrap(), cover(&source, width, height).unwrap());
            let differs = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 1;
            assert!(!found.pixels().iter().zip(expected.pixels()).any(differs));
        }
    }

    #[test]
    fn what_is_over_is_cut_off_on_both_sides() {
        // Red, green, blue, each 4 pixels wide.
        let wide = image(12, 4, |x, _| [0, 1, 2].map(|c| if c == x / 4 { 255 } else { 0 }));
        assert_eq!(*cover(&wide, 4, 4).unwrap(), image(4, 4, |_, _| [0, 255, 0]));
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
        let ramp = image(2, 2, |x, _| [x as u8 * 200; 3]);
        let ramp = cover(&ramp, 8, 8).unwrap();
        let line: Vec<u8> = ramp.pixels()[..24].iter().step_by(3).copied().collect();
        assert_eq!(line, [0, 0, 25, 75, 125, 175, 200, 200]);
        assert!(cover(&checks, 0, 8).is_err());
    }
}
