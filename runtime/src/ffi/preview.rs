//! A rough picture of latents while the sampler is at work.
//!
//! One pixel for each place of the latents, through the linear fit of their four channels to
//! colours that is known for Stable Diffusion's decoder.

/// What each latent channel adds to red, green and blue.
const FACTORS: [[f32; 3]; 4] = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
];

/// Writes the colours of latents, channel by channel, as `[height, width, 3]` into `rgb`.
pub(super) fn draw(latent: &[f32], rgb: &mut Vec<u8>) {
    let pixels = latent.len() / FACTORS.len();
    rgb.clear();
    for pixel in 0..pixels {
        for colour in 0..3 {
            let channels = FACTORS.iter().enumerate();
            let sum: f32 = channels
                .map(|(channel, factors)| latent[channel * pixels + pixel] * factors[colour])
                .sum();
            // The conversion saturates.
            rgb.push(((sum + 1.0) * 127.5) as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_is_grey_and_too_much_is_bounded() {
        let mut rgb = Vec::new();
        super::draw(&[0.0, 1e9, 0.0, 0.0, 0.0, 0.0, 0.0, f32::NAN], &mut rgb);
        assert_eq!(rgb, [127, 127, 127, 0, 0, 0]);
    }
}
