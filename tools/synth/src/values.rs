//! The values of a synthetic tensor: a pure function of (seed, name, index), the same in every
//! language.
//!
//! ```text
//! h(i)  = splitmix64(fnv1a64(name) ^ seed + i * 0x9E3779B97F4A7C15)       for i = 0, 1, ...
//! u(i)  = (h(i) >> 40) * 2^-23 - 1                                        in [-1, 1), f32
//! value = offset + gain * u(i)                                            rounded to f32
//! ```
//!
//! where `offset` and `gain` follow from the tensor's role and keep activations near unit
//! variance. The DDPM schedule's buffers have their true values.

/// The standard deviation of a uniform variable on [-1, 1) is 1 over this.
const SQRT_3: f64 = 1.732_050_807_568_877_2;
const TRAIN_STEPS: usize = 1000;

/// A tensor's values, generated from any index on.
#[derive(Debug, Clone)]
pub enum Values {
    /// `offset + gain * u(i)`.
    Uniform {
        /// The generator's state at index 0.
        base: u64,
        /// The mean.
        offset: f32,
        /// The largest distance from the mean.
        gain: f32,
    },
    /// Listed values.
    Listed(Vec<f32>),
}

impl Values {
    /// The values of the tensor `name`.
    pub fn of(name: &str, shape: &[usize], seed: u64) -> Self {
        if let Some(list) = schedule(name) {
            return Self::Listed(list.into_iter().map(|v| v as f32).collect());
        }
        if name.ends_with("logit_scale") {
            return Self::Listed(vec![100f64.ln() as f32]);
        }
        let (offset, gain) = role(name, shape);
        Self::Uniform { base: fnv1a64(name) ^ seed, offset: offset as f32, gain: gain as f32 }
    }

    /// Calls `put` with each value from `start_elem` on.
    pub fn generate(&self, start_elem: usize, len: usize, mut put: impl FnMut(f32)) {
        match self {
            Self::Uniform { base, offset, gain } => {
                for i in start_elem..start_elem + len {
                    put(offset + gain * uniform(*base, i as u64));
                }
            }
            Self::Listed(list) => list[start_elem..start_elem + len].iter().for_each(|v| put(*v)),
        }
    }
}

fn fnv1a64(name: &str) -> u64 {
    name.bytes()
        .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

fn uniform(base: u64, index: u64) -> f32 {
    let z = base.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    let z = z ^ (z >> 31);
    // 24 bits are exact in f32, and so is the product with a power of two.
    (z >> 40) as f32 * (1.0 / 8_388_608.0) - 1.0
}

/// Offset and gain of a tensor.
fn role(name: &str, shape: &[usize]) -> (f64, f64) {
    if name.ends_with(".bias") || name.ends_with("in_proj_bias") {
        return (0.0, 0.1);
    }
    // The scale of a normalization.
    if shape.len() == 1 {
        return (1.0, 0.2);
    }
    if name.contains("token_embedding") || name.contains("positional_embedding") {
        return (0.0, 0.5);
    }
    if name.contains("text_projection") {
        return (0.0, SQRT_3 / (shape[0] as f64).sqrt());
    }
    let fan_in: usize = shape.iter().skip(1).product();
    let gain = SQRT_3 / (fan_in as f64).sqrt();
    // Peaked attention, like that of trained models.
    if name.ends_with("to_q.weight") || name.ends_with("to_k.weight") {
        return (0.0, gain * 1.5);
    }
    if name.ends_with("in_proj_weight") {
        return (0.0, gain * 1.2);
    }
    (0.0, gain)
}

/// The DDPM buffers that the checkpoint also stores: scaled linear betas, 1000 steps.
fn schedule(name: &str) -> Option<Vec<f64>> {
    let (first, last) = (0.000_85f64.sqrt(), 0.0120f64.sqrt());
    let step = (last - first) / (TRAIN_STEPS - 1) as f64;
    let root = |i| if i == TRAIN_STEPS - 1 { last } else { i as f64 * step + first };
    let beta = |i| root(i) * root(i);
    // Product of 1 - beta up to each step, and up to the step before.
    let mut cumulative = Vec::with_capacity(TRAIN_STEPS);
    let mut previous = Vec::with_capacity(TRAIN_STEPS);
    let mut product = 1.0;
    for i in 0..TRAIN_STEPS {
        previous.push(product);
        product *= 1.0 - beta(i);
        cumulative.push(product);
    }
    let (ac, prev) = (|i: usize| cumulative[i], |i: usize| previous[i]);
    let variance = |i| beta(i) * (1.0 - prev(i)) / (1.0 - ac(i));
    let each = |f: &dyn Fn(usize) -> f64| Some((0..TRAIN_STEPS).map(f).collect());
    match name {
        "betas" => each(&beta),
        "alphas_cumprod" => each(&ac),
        "alphas_cumprod_prev" => each(&prev),
        "sqrt_alphas_cumprod" => each(&|i| ac(i).sqrt()),
        "sqrt_one_minus_alphas_cumprod" => each(&|i| (1.0 - ac(i)).sqrt()),
        "log_one_minus_alphas_cumprod" => each(&|i| (1.0 - ac(i)).ln()),
        "sqrt_recip_alphas_cumprod" => each(&|i| (1.0 / ac(i)).sqrt()),
        "sqrt_recipm1_alphas_cumprod" => each(&|i| (1.0 / ac(i) - 1.0).sqrt()),
        "posterior_variance" => each(&variance),
        "posterior_log_variance_clipped" => each(&|i| variance(i).max(1e-20).ln()),
        "posterior_mean_coef1" => each(&|i| beta(i) * prev(i).sqrt() / (1.0 - ac(i))),
        "posterior_mean_coef2" => {
            each(&|i| (1.0 - prev(i)) * (1.0 - beta(i)).sqrt() / (1.0 - ac(i)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(name: &str, shape: &[usize], seed: u64, at: &[usize]) -> Vec<u32> {
        let values = Values::of(name, shape, seed);
        let one = |i: &usize| {
            let mut bits = 0;
            values.generate(*i, 1, |v| bits = v.to_bits());
            bits
        };
        at.iter().map(one).collect()
    }

    /// The expected bits come from the NumPy program that defines these values.
    #[test]
    fn values_of_every_role() {
        let block = "model.diffusion_model.input_blocks.1";
        let text = "cond_stage_model.model";
        let cases: [(String, &[usize], u64, [u32; 4]); 8] = [
            (
                format!("{block}.0.in_layers.2.weight"),
                &[320, 320, 3, 3],
                0,
                [0xbbb7b80f, 0x3bce266f, 0xbb31377b, 0x3b98be51],
            ),
            (
                format!("{block}.0.in_layers.2.weight"),
                &[320, 320, 3, 3],
                12345,
                [0x3cd39c88, 0xbcc2b509, 0xbcda3769, 0x3ce545a8],
            ),
            (
                format!("{block}.1.transformer_blocks.0.attn1.to_q.weight"),
                &[320, 320],
                0,
                [0x3e0b20c9, 0x3dbc1864, 0xbe0d2b7f, 0x3dfade68],
            ),
            (
                "model.diffusion_model.out.0.weight".to_owned(),
                &[320],
                0,
                [0x3f85f0dd, 0x3f5d9840, 0x3f89fb3f, 0x3f7dee9f],
            ),
            (
                "model.diffusion_model.out.0.bias".to_owned(),
                &[320],
                12345,
                [0xbd8f051b, 0x3dc7889b, 0x3cb98900, 0x3cae5040],
            ),
            (
                format!("{text}.transformer.resblocks.0.attn.in_proj_weight"),
                &[3072, 1024],
                0,
                [0xbd7a8b6a, 0x3b9c5653, 0xbd7a617c, 0x3c12d879],
            ),
            (
                format!("{text}.text_projection"),
                &[1024, 1024],
                0,
                [0xbc05281d, 0x3ca1be6b, 0xbb3e2a36, 0x3bbcc4a6],
            ),
            (
                format!("{text}.token_embedding.weight"),
                &[49408, 1024],
                0,
                [0x3de40d40, 0xbe26c7e8, 0xbee06d46, 0x3e56cc34],
            ),
        ];
        for (name, shape, seed, want) in cases {
            assert_eq!(bits(&name, shape, seed, &[0, 1, 2, 3]), want, "{name}");
        }
        assert_eq!(bits("a.logit_scale", &[], 0, &[0]), [0x40935d8e]);
    }

    #[test]
    fn the_schedule() {
        let cases = [
            ("betas", [0x3a5ed289, 0x3a600ddb, 0x3b9dc6c3, 0x3c449ba6]),
            ("alphas_cumprod", [0x3f7fc84b, 0x3f7f9054, 0x3e8d7b7a, 0x3b98b3bd]),
            ("log_one_minus_alphas_cumprod", [0xc0e23fb0, 0xc0cbfe4e, 0xbea597c4, 0xbb990f1c]),
            ("posterior_log_variance_clipped", [0xc23834f1, 0xc0f853e8, 0xc0aacfe5, 0xc08d8871]),
            ("posterior_mean_coef2", [0x0, 0x3eff4b48, 0x3f7ee940, 0x3f7e71e5]),
        ];
        for (name, want) in cases {
            assert_eq!(bits(name, &[1000], 7, &[0, 1, 500, 999]), want, "{name}");
        }
    }
}
