//! Seeded Gaussian noise: the initial latents and the noise of stochastic samplers.
//!
//! Owns the order of draws. One seed gives the same noise on every device: PyTorch's `torch.randn`
//! on a CPU, so that images can be compared with the reference.

use rand_mt::Mt;

/// PyTorch fills tensors of at least 16 elements in chunks of 16.
const CHUNK_ELEMS: usize = 16;

/// A generator of standard normal numbers that follows PyTorch's CPU generator.
///
/// Numerics: equals `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` to 1e-6;
/// PyTorch's own last bits depend on its vector library. Logarithm, sine and cosine are computed in
/// f64, so that devices with different mathematical libraries agree.
/// Source: PyTorch 2, `aten/src/ATen/native/cpu/DistributionTemplates.h` and
/// `ATen/core/DistributionsHelper.h`; Box & Muller 1958; Matsumoto & Nishimura 1998 (MT19937).
#[derive(Debug, Clone)]
pub struct NormalRng {
    twister: Mt,
    /// Second half of the last pair drawn one by one.
    spare: Option<f64>,
}

impl NormalRng {
    /// Starts from a seed. Only its low 32 bits count, as in PyTorch.
    pub fn from_seed(seed: u64) -> Self {
        let [a, b, c, d, ..] = seed.to_le_bytes();
        Self { twister: Mt::new(u32::from_le_bytes([a, b, c, d])), spare: None }
    }

    /// Fills a tensor with standard normal numbers, as one call of `torch.randn` does.
    ///
    /// Shapes: any; the order is that of a contiguous (NCHW) tensor.
    pub fn fill(&mut self, values: &mut [f32]) {
        let count = values.len();
        self.for_each(count, |index, noise| {
            if let Some(value) = values.get_mut(index) {
                *value = noise;
            }
        });
    }

    /// Calls `take(index, noise)` for the indices `0..count` in order. The numbers are those of
    /// [`fill`](Self::fill), without a buffer.
    pub fn for_each(&mut self, count: usize, mut take: impl FnMut(usize, f32)) {
        if count < CHUNK_ELEMS {
            for index in 0..count {
                let noise = self.next_single();
                take(index, noise as f32);
            }
            return;
        }
        let tail_elems = count % CHUNK_ELEMS;
        // With a tail, PyTorch draws the last 16 again after all others and overwrites some.
        let kept = if tail_elems == 0 { count } else { count - CHUNK_ELEMS };
        for chunk in 0..count / CHUNK_ELEMS {
            let first = chunk * CHUNK_ELEMS;
            for (index, noise) in (first..kept).zip(self.next_chunk()) {
                take(index, noise);
            }
        }
        if tail_elems > 0 {
            for _ in 0..tail_elems {
                self.twister.next_u32();
            }
            for (index, noise) in (kept..count).zip(self.next_chunk()) {
                take(index, noise);
            }
        }
    }

    /// Sixteen numbers from sixteen draws: draws `j` and `j + 8` make numbers `j` and `j + 8`.
    fn next_chunk(&mut self) -> [f32; CHUNK_ELEMS] {
        const HALF: usize = CHUNK_ELEMS / 2;
        let mut values: [f32; CHUNK_ELEMS] = std::array::from_fn(|_| self.next_uniform());
        let (cosines, sines) = values.split_at_mut(HALF);
        for (cosine, sine) in cosines.iter_mut().zip(sines) {
            // Every intermediate result is rounded to f32, as in PyTorch.
            let log = f64::from(1.0 - *cosine).ln() as f32;
            let radius = (-2.0 * log).sqrt();
            let angle = std::f32::consts::TAU * *sine;
            let (sin, cos) = f64::from(angle).sin_cos();
            *cosine = radius * cos as f32;
            *sine = radius * sin as f32;
        }
        values
    }

    /// A uniform number in `[0, 1)` of 24 bits.
    fn next_uniform(&mut self) -> f32 {
        const BITS: u32 = 24;
        let draw = self.twister.next_u32() & ((1 << BITS) - 1);
        draw as f32 / (1u32 << BITS) as f32
    }

    /// A uniform number in `[0, 1)` of 53 bits.
    fn next_uniform_f64(&mut self) -> f64 {
        const BITS: u32 = 53;
        let high = u64::from(self.twister.next_u32());
        let draw = (high << 32 | u64::from(self.twister.next_u32())) & ((1 << BITS) - 1);
        draw as f64 / (1u64 << BITS) as f64
    }

    /// One number as PyTorch draws it for small tensors: in f64, two at a time.
    fn next_single(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = std::f64::consts::TAU * self.next_uniform_f64();
        let radius = (-2.0 * (-self.next_uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::NormalRng;

    fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
        }
    }

    /// `torch.manual_seed(0); torch.randn(4, 4)` and `torch.randn(5)`, as PyTorch prints them.
    #[test]
    fn first_numbers_equal_torch() {
        let mut values = [0.0; 16];
        NormalRng::from_seed(0).fill(&mut values);
        let expected = [-1.1258, -1.1524, -0.2506, -0.4339, 0.8487, 0.6920, -0.3160, -2.1152];
        assert_close(&values[..8], &expected, 5e-5);
        let mut few = [0.0; 5];
        NormalRng::from_seed(0).fill(&mut few);
        assert_close(&few, &[1.5410, -0.2934, -2.1788, 0.5684, -1.0845], 5e-5);
    }

    #[test]
    fn a_tail_redraws_the_last_sixteen() {
        let (mut even, mut odd) = ([0.0; 32], [0.0; 37]);
        NormalRng::from_seed(7).fill(&mut even);
        NormalRng::from_seed(7).fill(&mut odd);
        assert_eq!(even[..21], odd[..21]);
        assert_ne!(even[21..], odd[21..32]);
        let mut burnt = NormalRng::from_seed(7);
        burnt.fill(&mut even);
        for _ in 0..5 {
            burnt.next_uniform();
        }
        assert_eq!(burnt.next_chunk(), odd[21..]);
    }

    #[test]
    fn only_the_low_half_of_the_seed_counts() {
        let (mut low, mut high) = ([0.0; 16], [0.0; 16]);
        NormalRng::from_seed(5).fill(&mut low);
        NormalRng::from_seed(5 | 1 << 40).fill(&mut high);
        assert_eq!(low, high);
    }
}
