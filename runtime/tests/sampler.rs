//! Samplers against the latents that diffusers got: one guided step of the model that ships, and
//! whole runs on a small network (`trajectories/make.py`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use kiln_bundle::plan::{Prediction, Schedule, Spacing};
use kiln_runtime::npy;
use kiln_runtime::pipeline::rng::NormalRng;
use kiln_runtime::pipeline::sampler::{
    SAMPLERS, Sampler, SamplerEntry, SamplerOptions, guidance_embedding, guide,
};

const TRAJECTORIES: &str = include_str!("trajectories/trajectories.tsv");
/// Largest relative L2 of a run's last latents.
const BOUND: f64 = 1e-3;

fn golden(prompt: usize, name: &str) -> Vec<f32> {
    let path = format!("../models/emoji-256-golden/{prompt}-{name}.npy");
    let file = File::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("a golden");
    npy::read(file).expect("an array").values
}

fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|x| f64::from(x).powi(2)).sum()
    };
    let error = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (error / square(&mut expected.iter().copied())).sqrt()
}

#[test]
fn first_step_equals_diffusers() {
    for prompt in [0, 1] {
        let mut latents = golden(prompt, "init");
        let mut output = golden(prompt, "eps-uncond");
        guide(&mut output, &golden(prompt, "eps-cond"), 7.5, 0.0).expect("equal lengths");
        let options = SamplerOptions::stable_diffusion(20, latents.len());
        let mut sampler = SamplerEntry::find("ddim").unwrap().sampler(&options).expect("DDIM");
        assert_eq!((sampler.timesteps()[0], sampler.init_noise_sigma()), (951.0, 1.0));
        let mut rng = NormalRng::from_seed(0);
        sampler.step(0, &output, &mut latents, &mut rng).expect("a step");
        let error = relative_l2(&latents, &golden(prompt, "latents-01"));
        assert!(error < 1e-6, "prompt {prompt}: {error}");
    }
}

/// The network of `make.py`.
fn network(input: &[f32], timestep: f32) -> Vec<f32> {
    let output = |(index, &x): (usize, &f32)| {
        0.6 * x + 0.4 * (0.1 * timestep + 2.0 * x + index as f32 / 2.0).sin()
    };
    input.iter().enumerate().map(output).collect()
}

/// The last latents of a run.
fn run(mut sampler: Sampler, from_noise: bool, elems: usize) -> Vec<f32> {
    let (mut latents, mut input) = (vec![0.0; elems], vec![0.0; elems]);
    NormalRng::from_seed(1).fill(&mut latents);
    if from_noise {
        let sigma = sampler.init_noise_sigma();
        latents.iter_mut().for_each(|value| *value *= sigma);
    }
    let mut noise = NormalRng::from_seed(0);
    for (index, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        sampler.scale_model_input(index, &latents, &mut input).unwrap();
        sampler.step(index, &network(&input, timestep), &mut latents, &mut noise).unwrap();
    }
    latents
}

#[test]
fn runs_equal_diffusers() {
    let mut worst: BTreeMap<&str, (f64, &str, usize)> = BTreeMap::new();
    for line in TRAJECTORIES.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, prediction, spacing, steps, first, zero_snr, eta] = fields[..7] else {
            panic!("{line}");
        };
        let expected: Vec<f32> = fields[7..].iter().map(|value| value.parse().unwrap()).collect();
        let prediction = match prediction {
            "epsilon" => Prediction::Epsilon,
            "v" => Prediction::V,
            _ => Prediction::Sample,
        };
        let schedule = Schedule { prediction, zero_snr: zero_snr == "1", ..Schedule::default() };
        let entry = SamplerEntry::find(name).unwrap();
        let options = SamplerOptions {
            steps: steps.parse().unwrap(),
            first: first.parse().unwrap(),
            spacing: entry.spacing(spacing).unwrap_or(Spacing::Leading),
            eta: eta.parse().unwrap(),
            schedule,
            latent_elems: expected.len(),
        };
        let sampler = entry.sampler(&options).unwrap();
        let error = relative_l2(&run(sampler, first == "0", expected.len()), &expected);
        let case = line.split_once(&format!("\t{}\t", fields[7])).unwrap().0;
        let entry = worst.entry(name).or_insert((0.0, "", 0));
        entry.2 += 1;
        if error.is_nan() || error > entry.0 {
            (entry.0, entry.1) = (error, case);
        }
    }
    for (name, (error, case, runs)) in &worst {
        println!("{name}: relative L2 {error:.1e} at most in {runs} runs, at {case}");
    }
    assert_eq!(worst.len(), SAMPLERS.len());
    for (name, (error, case, _)) in worst {
        assert!(error <= BOUND, "{name}: relative L2 {error:e} at {case}");
    }
}

/// `rescale_noise_cfg` of diffusers' `StableDiffusionPipeline`, and the guidance before it.
#[test]
fn rescaled_guidance_equals_diffusers() {
    let (without, with) = ([0.3, -1.2, 0.7, 2.0], [0.5, -0.4, 1.1, 0.2]);
    for (rescale, expected) in [
        (0.0, [1.8, 4.8, 3.7, -11.5]),
        (0.7, [0.6440, 1.7172, 1.3237, -4.1142]),
        (1.0, [0.1485, 0.3960, 0.3053, -0.9489]),
    ] {
        let mut output = without;
        guide(&mut output, &with, 7.5, rescale).unwrap();
        assert!(relative_l2(&output, &expected) < 1e-4, "{rescale}: {output:?}");
    }
    assert!(guide(&mut [0.0], &[], 1.0, 0.0).is_err());
}

/// `get_guidance_scale_embedding(torch.tensor([scale - 1.0]), channels, torch.float64)` of
/// diffusers' `LatentConsistencyModelPipeline`.
#[test]
fn guidance_embeddings_equal_diffusers() {
    let embeddings: [(f32, &[f32]); 3] = [
        (
            8.5,
            &[
                -0.851236, 0.985891, -0.556067, 0.285072, 0.911515, -0.839542, 0.339041, 0.681639,
                -0.524783, 0.167390, 0.831137, 0.958506, 0.411266, -0.543295, -0.940772, 0.731689,
            ],
        ),
        (1.0, &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]),
        (
            2.5,
            &[
                -0.993902, 0.487127, -0.089938, 0.149438, -0.110267, 0.873331, -0.995947, 0.988771,
                0.0,
            ],
        ),
    ];
    for (scale, expected) in embeddings {
        let channels = expected.len();
        let found: Vec<f32> = guidance_embedding(scale, channels).collect();
        assert_eq!(found.len(), channels);
        let error = relative_l2(&found, expected);
        assert!(error < 1e-4, "{scale}: {error:e}");
    }
}
