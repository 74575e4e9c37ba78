//! Classifier-free guidance, and the guidance that is an input of a distilled network.

use super::{SamplerError, check_lengths};

/// Classifier-free guidance: `unconditional += guidance * (conditional - unconditional)`.
///
/// `rescale`: share, 0 to 1, by which the result's standard deviation becomes the conditional
/// output's.
/// Shapes: both are network outputs of the same length.
/// Errors: [`SamplerError::Length`] if the lengths differ.
/// Source: Ho & Salimans 2022 (arXiv:2207.12598); rescaling from Lin et al. 2023
/// (arXiv:2305.08891), section 3.4.
pub fn guide(
    unconditional: &mut [f32],
    conditional: &[f32],
    guidance: f32,
    rescale: f32,
) -> Result<(), SamplerError> {
    check_lengths(unconditional, conditional)?;
    for (output, conditional) in unconditional.iter_mut().zip(conditional) {
        *output += guidance * (conditional - *output);
    }
    if rescale > 0.0 {
        let ratio = deviation(conditional) / deviation(unconditional);
        let factor = if ratio.is_finite() { 1.0 + rescale * (ratio - 1.0) } else { 1.0 };
        unconditional.iter_mut().for_each(|output| *output *= factor);
    }
    Ok(())
}

fn deviation(values: &[f32]) -> f32 {
    let mean = |of: &dyn Fn(f64) -> f64| {
        values.iter().map(|&value| of(value.into())).sum::<f64>() / values.len() as f64
    };
    let middle = mean(&|value| value);
    mean(&|value| (value - middle).powi(2)).sqrt() as f32
}

/// The embedding of a scale of guidance, the input of a network that was distilled with guidance
/// (LCM): sines, then cosines of `1000 (guidance - 1)` at falling frequencies.
///
/// Shapes: `[channels]`.
/// Numerics: f64, given as f32.
/// Source: diffusers' `get_guidance_scale_embedding` of `guidance - 1`.
pub fn guidance_embedding(guidance: f32, channels: usize) -> impl Iterator<Item = f32> {
    let half = channels / 2;
    let scaled = (f64::from(guidance) - 1.0) * 1000.0;
    (0..channels).map(move |channel| {
        let rate = 10_000f64.ln() / (half.max(2) - 1) as f64;
        let angle = scaled * (-rate * (channel % half.max(1)) as f64).exp();
        match channel / half.max(1) {
            0 => angle.sin() as f32,
            1 => angle.cos() as f32,
            // The pad of an odd number.
            _ => 0.0,
        }
    })
}
