//! INT8 weights: symmetric, one scale for each scale group of an output channel.
//!
//! `w = scale * q`, `q` in `[-127, 127]`, `scale` in `f32`. A scale group is a run of K indices in
//! the order of the kernels' loops, `[ky][kx][c]`, so that consecutive steps share a scale.

/// Largest magnitude of a quantized weight. -128 is not used, for symmetry.
const LIMIT: f32 = 127.0;

/// 1.5 * 2^23. Floats of this magnitude are integers, with a distance of 1.
const INTEGERS: f32 = 12_582_912.0;

/// Quantizes a scale group into `out`. Returns the scale, 0 for a group of zeros.
///
/// The largest magnitude becomes 127, so nothing is clipped and the error of a weight is at most
/// half of the scale. Values must be finite.
pub fn quantize(values: &[f32], out: &mut [i8]) -> f32 {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = largest / LIMIT;
    for (q, v) in out.iter_mut().zip(values) {
        // The low bits of the sum are the nearest integer, without a call or a branch. A group of
        // zeros gives NaN, whose low bits are 0.
        *q = ((v / scale).clamp(-LIMIT, LIMIT) + INTEGERS).to_bits() as i8;
    }
    scale
}

/// Calls `visit` with the number of each output channel and its weights along K, `[ky][kx][c]`, of
/// a constant of shape `[N, K]` or `[N, C, k, k]`.
pub fn sums(shape: &[usize], values: &[f32], mut visit: impl FnMut(usize, &[f32])) {
    let k = shape[1..].iter().product::<usize>();
    let channels = shape.get(1).copied().unwrap_or(1);
    let window = k / channels.max(1);
    if window == 1 {
        return values.chunks_exact(k).enumerate().for_each(|(n, row)| visit(n, row));
    }
    let mut ordered = vec![0.0; k];
    for (n, row) in values.chunks_exact(k).enumerate() {
        for (c, taps) in row.chunks_exact(window).enumerate() {
            taps.iter().enumerate().for_each(|(tap, v)| ordered[tap * channels + c] = *v);
        }
        visit(n, &ordered);
    }
}

/// Relative L2 error of a constant's weights with one scale for every `scale_group` K indices. 0
/// for a constant of zeros, NaN if a value is not finite.
pub fn relative_error(shape: &[usize], values: &[f32], scale_group: usize) -> f64 {
    let mut quantized = vec![0i8; scale_group];
    let (mut squares, mut errors) = (0.0f64, 0.0f64);
    sums(shape, values, |_, sum| {
        for part in sum.chunks(scale_group) {
            let scale = quantize(part, &mut quantized);
            let (mut s, mut e) = (0.0f32, 0.0f32);
            for (v, q) in part.iter().zip(&quantized) {
                let d = v - scale * f32::from(*q);
                s += v * v;
                e += d * d;
            }
            squares += f64::from(s);
            errors += f64::from(e);
        }
    });
    if squares == 0.0 { 0.0 } else { (errors / squares).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_weight_is_off_by_more_than_half_a_scale() {
        let values: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin() * 3.0e-3).collect();
        let mut q = vec![0; 100];
        let scale = quantize(&values, &mut q);
        let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!((scale - largest / 127.0).abs() < 1e-9);
        for (v, q) in values.iter().zip(&q) {
            assert!((v - scale * f32::from(*q)).abs() <= scale * 0.5001, "{v} {q}");
        }
    }

    #[test]
    fn zeros_and_the_smallest_values_have_scales() {
        let mut q = [1i8; 3];
        assert_eq!(quantize(&[0.0; 3], &mut q), 0.0);
        assert_eq!(q, [0; 3]);
        let tiny = [f32::MIN_POSITIVE, -f32::MIN_POSITIVE / 2.0, 0.0];
        let scale = quantize(&tiny, &mut q);
        assert!(scale >= 0.0 && (scale * f32::from(q[0]) - tiny[0]).abs() <= tiny[0] * 1e-2);
    }

    #[test]
    fn smaller_blocks_follow_outliers_better() {
        let mut values: Vec<f32> = (0..256).map(|i| (i as f32 * 1.7).cos()).collect();
        values[200] = 40.0;
        let error = |block| relative_error(&[1, 256], &values, block);
        assert!(error(64) < error(256), "{} {}", error(64), error(256));
        assert!(error(32) < error(64));
    }

    #[test]
    fn a_window_is_summed_tap_by_tap() {
        // [1, 2, 2, 2]: two channels of four taps.
        let values = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        sums(&[1, 2, 2, 2], &values, |n, sum| {
            assert_eq!((n, sum), (0, &[0.0, 10.0, 1.0, 11.0, 2.0, 12.0, 3.0, 13.0][..]));
        });
    }
}
