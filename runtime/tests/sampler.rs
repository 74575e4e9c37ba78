//! One guided DDIM step against the latents diffusers got.

use std::fs::File;
use std::path::Path;

use kiln_runtime::npy;
use kiln_runtime::pipeline::rng::NormalRng;
use kiln_runtime::pipeline::sampler::{SamplerOptions, by_name, guide};

fn golden(prompt: usize, name: &str) -> Vec<f32> {
    let path = format!("../models/emoji-256-golden/{prompt}-{name}.npy");
    let file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a golden");
    npy::read(file).expect("an array").values
}

#[test]
fn first_step_equals_diffusers() {
    for prompt in [0, 1] {
        let mut latents = golden(prompt, "init");
        let mut output = golden(prompt, "eps-uncond");
        guide(&mut output, &golden(prompt, "eps-cond"), 7.5).expect("equal lengths");
        let options = SamplerOptions::stable_diffusion(20, latents.len());
        let mut sampler = by_name("ddim", &options).expect("DDIM");
        assert_eq!((sampler.timesteps()[0], sampler.init_noise_sigma()), (951.0, 1.0));
        let mut rng = NormalRng::from_seed(0);
        sampler.step(0, &output, &mut latents, &mut rng).expect("a step");
        let expected = golden(prompt, "latents-01");
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum();
        let error: f64 = square(&mut latents.iter().zip(&expected).map(|(a, b)| a - b));
        let norm: f64 = square(&mut expected.iter().copied());
        assert!((error / norm).sqrt() < 1e-6, "prompt {prompt}: {}", (error / norm).sqrt());
    }
}
