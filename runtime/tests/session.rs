//! Pictures and single networks against values computed here.

mod small;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kiln_runtime::pipeline::rng::NormalRng;
use kiln_runtime::pipeline::sampler::{self, SamplerEntry, SamplerOptions};
use kiln_runtime::pipeline::tokenizer::Tokenizer;
use kiln_runtime::{
    Picture, Progress, Request, RuntimeError, Session, SessionOptions, Tensor, Values,
};
use small::Small;

fn merges() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
    std::fs::read(path).unwrap()
}

fn write(folder: &tempfile::TempDir, small: Small) -> PathBuf {
    let path = folder.path().join("small.kiln");
    small.write(&path, &merges());
    path
}

fn open(path: &Path) -> Session {
    Session::open(path, &SessionOptions::default()).unwrap()
}

fn request<'a>(steps: usize) -> Request<'a> {
    Request {
        prompt: "a red house".into(),
        negative_prompt: "blurry".into(),
        seed: 5,
        steps: Some(steps),
        guidance: Some(3.0),
        ..Request::default()
    }
}

fn picture(session: &mut Session, request: &Request<'_>) -> Picture {
    session.generate(request, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn channels_last(values: &[f32], channels: usize) -> Vec<f32> {
    let pixels = values.len() / channels;
    (0..values.len()).map(|i| values[i % channels * pixels + i / channels]).collect()
}

fn channels_first(values: &[f32], channels: usize) -> Vec<f32> {
    channels_last(values, values.len() / channels)
}

/// The decoder's output for a request, and the latents before it.
fn expected(request: &Request<'_>) -> (Vec<f32>, Vec<f32>) {
    let tokenizer = Tokenizer::from_merges(&merges()).unwrap();
    let context = |prompt| small::embedding(&tokenizer.tokenize(prompt).padded());
    let contexts = [context(&request.negative_prompt), context(&request.prompt)];
    let settings = request.settings(&kiln_bundle::testing::plan().manifest).unwrap();
    let options = SamplerOptions {
        eta: settings.eta,
        spacing: settings.spacing.unwrap(),
        ..SamplerOptions::stable_diffusion(settings.steps, small::LATENT)
    };
    let mut sampler = SamplerEntry::find(settings.sampler).unwrap().sampler(&options).unwrap();
    let mut rng = NormalRng::from_seed(request.seed);
    let mut latent = vec![0.0; small::LATENT];
    match &request.initial_latent {
        Some(initial) => latent.copy_from_slice(initial),
        None => rng.fill(&mut latent),
    }
    latent.iter_mut().for_each(|value| *value *= sampler.init_noise_sigma());
    for (step, timestep) in sampler.timesteps().to_vec().into_iter().enumerate() {
        let mut input = latent.clone();
        sampler.scale_model_input(step, &latent, &mut input).unwrap();
        let input = channels_last(&input, 4);
        let [mut eps, conditional] = contexts
            .each_ref()
            .map(|context| channels_first(&small::unet(&input, context, timestep), 4));
        if settings.savings.guidance_interval.contains(step, settings.steps) {
            sampler::guide(&mut eps, &conditional, settings.guidance, settings.guidance_rescale)
                .unwrap();
        } else {
            eps = conditional;
        }
        sampler.step(step, &eps, &mut latent, &mut rng).unwrap();
    }
    (small::decode(&channels_last(&latent, 4)), latent)
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0, |max: f32, x| max.max(x.abs()));
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-4 * scale, "{index}: {found} is not {expected}");
    }
}

#[test]
fn steps_outside_the_interval_have_no_guidance() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small { batch: 1, ..Small::default() }));
    for interval in ["0:0.5", "0.3:0.7", "0:0"] {
        let guidance_interval = Some(interval.parse().unwrap());
        let request = Request { guidance_interval, ..request(5) };
        let found = picture(&mut session, &request);
        assert_close(&found.decoded, &expected(&request).0);
    }
}

#[test]
fn steps_that_the_bundle_has_not_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small::default()));
    let interval = |text: &str| Some(text.parse().unwrap());
    for (request, expected) in [
        (Request { fast: 1, ..request(2) }, "compile it with --fast"),
        (Request { fast: 4, ..request(2) }, "fast is 4, it must be from 0 to 3"),
        (Request { cache_interval: Some(2), ..request(2) }, "compile it with --fast"),
        (Request { cache_interval: Some(0), ..request(2) }, "cache interval is 0"),
        (Request { guidance_interval: interval("0:0.5"), ..request(2) }, "with --fast"),
    ] {
        let error = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    // A preset whose values are given back has nothing to save.
    let whole = Request {
        fast: 1,
        guidance_interval: interval("0:1"),
        cache_interval: Some(1),
        ..request(2)
    };
    assert_close(&picture(&mut session, &whole).decoded, &expected(&request(2)).0);
}

#[test]
fn a_picture_is_what_the_numbers_say() {
    let staged = Small { staging_bytes: 8192, ..Small::default() };
    for small in [
        Small::default(),
        Small { batch: 1, ..Small::default() },
        Small { rows: 1, ..Small::default() },
        Small { batch: 1, rows: 3, ..staged },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut session = open(&write(&folder, small));
        let allocations = session.allocations();
        // Fewer steps than rows of the table, as many, and more.
        for request in [
            request(1),
            request(4),
            Request { guidance: Some(1.0), ..request(6) },
            Request { eta: Some(0.5), ..request(5) },
            // Nine evaluations, and three tables of timesteps.
            Request { sampler: Some("heun".into()), guidance_rescale: 0.5, ..request(5) },
            Request { spacing: Some("trailing".into()), ..request(2) },
            Request { initial_latent: Some(vec![0.5; small::LATENT]), ..request(3) },
        ] {
            let found = picture(&mut session, &request);
            let (decoded, _) = expected(&request);
            assert_close(&found.decoded, &decoded);
            assert_eq!((found.width, found.height), (16, 16));
            assert_eq!(found.rgb.pixels().len(), 768);
            assert!(found.warnings.is_empty());
            let report = &found.report;
            assert_eq!(report.settings, request.settings(&session.plan().manifest).unwrap());
            assert_eq!(report.times.step_seconds.len(), report.settings.steps);
        }
        assert_eq!(session.allocations(), allocations);
    }
}

#[test]
fn a_bundle_without_guidance_has_one_prompt_and_one_pass() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small { branches: 1, batch: 1, ..Small::default() };
    let mut session = open(&write(&folder, small));
    let single = Request { guidance: Some(1.0), ..request(3) };
    let found = picture(&mut session, &single);
    assert_close(&found.decoded, &expected(&single).0);
    assert!(found.warnings.iter().any(|line| line.contains("negative prompt has no effect")));
    let error = session.generate(&request(3), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("--guidance-branches 2"), "{error}");
}

#[test]
fn a_network_that_takes_the_guidance_has_its_embedding() {
    let folder = tempfile::tempdir().unwrap();
    let small = Small { branches: 1, batch: 1, guided: true, ..Small::default() };
    let mut session = open(&write(&folder, small));
    let request = Request { guidance: Some(8.5), ..request(1) };
    let found = picture(&mut session, &request);
    let tokenizer = Tokenizer::from_merges(&merges()).unwrap();
    let context = small::embedding(&tokenizer.tokenize(&request.prompt).padded());
    let embedding: Vec<f32> = sampler::guidance_embedding(8.5, small::WIDTH).collect();
    let mut latent = vec![0.0; small::LATENT];
    let mut rng = NormalRng::from_seed(request.seed);
    rng.fill(&mut latent);
    let input = channels_last(&latent, 4);
    let output = small::unet_of(&input, &context, |i| embedding[i % small::WIDTH]);
    let options = SamplerOptions::stable_diffusion(1, small::LATENT);
    let mut ddim = SamplerEntry::find("ddim").unwrap().sampler(&options).unwrap();
    ddim.step(0, &channels_first(&output, 4), &mut latent, &mut rng).unwrap();
    assert_close(&found.decoded, &small::decode(&channels_last(&latent, 4)));
}

#[test]
fn resident_blocks_are_read_once_a_picture_and_streamed_ones_every_pass() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small { batch: 1, ..Small::default() }));
    for _ in 0..2 {
        // The text encoder runs in the space of the resident block.
        let report = picture(&mut session, &request(6)).report;
        assert_eq!(report.stream.resident_bytes, small::BLOCK_BYTES);
        // Encoder, prompt and decoder; two tables of timesteps; six steps of two passes.
        let loads = 3 + 2 + 6 * 2 * small::LAYERS as u64;
        assert_eq!(report.stream.streamed_bytes, loads * small::BLOCK_BYTES);
        assert_eq!(report.planned.resident_bytes, small::BLOCK_BYTES);
        assert_eq!(report.measured.arena_bytes, report.planned.arena_bytes);
        assert_eq!(report.measured.slot_bytes, report.planned.slot_bytes);
        assert!(serde_json::to_string(&report).unwrap().contains("first_step_seconds"));
    }
}

#[test]
fn tensors_are_shown_on_their_way() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small::default()));
    let shown: RefCell<Vec<(String, Tensor)>> = RefCell::default();
    let dump = |name: &str, tensor: &Tensor| {
        shown.borrow_mut().push((name.to_owned(), tensor.clone()));
        Ok(())
    };
    let request = Request { dump: Some(&dump), ..request(2) };
    let (decoded, latent) = expected(&request);
    let mut heard = Vec::new();
    let observe = &mut |progress: Progress<'_>| {
        match progress {
            Progress::Prompt => heard.push("prompt".to_owned()),
            Progress::Step { done, steps, latent, .. } => {
                heard.push(format!("{done}/{steps} of {}", latent.len()));
            }
            Progress::Kernels { .. } => panic!("all kernels are there from the start"),
            Progress::Decode => heard.push("decode".to_owned()),
        }
        ControlFlow::Continue(())
    };
    session.generate(&request, observe).unwrap();
    assert_eq!(heard, ["prompt", "1/2 of 64", "2/2 of 64", "decode"]);
    let shown = shown.into_inner();
    let names: Vec<&str> = shown.iter().map(|(name, _)| name.as_str()).collect();
    let expected = ["tokens", "embedding", "latent_000", "latent_001", "latent_002", "decoded"];
    assert_eq!(names, expected);
    let Values::I32(tokens) = &shown[0].1.values else { panic!() };
    assert_close(shown[1].1.as_f32().unwrap(), &small::embedding(tokens));
    assert_eq!(shown[4].1.shape, [1, 4, 4, 4]);
    assert_close(shown[4].1.as_f32().unwrap(), &latent);
    assert_eq!(shown[5].1.shape, [1, 3, 16, 16]);
    assert_close(shown[5].1.as_f32().unwrap(), &channels_first(&decoded, 3));
}

#[test]
fn a_cancelled_picture_leaves_a_working_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small::default()));
    for stop_after in 0..4 {
        let mut calls = 0;
        let error = session.generate(&request(3), &mut |_| {
            calls += 1;
            if calls > stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(matches!(error, Err(RuntimeError::Cancelled)), "{error:?}");
    }
    let found = picture(&mut session, &request(3));
    assert_close(&found.decoded, &expected(&request(3)).0);
}

#[test]
fn a_long_prompt_is_cut_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small::default()));
    let request = Request { prompt: "very ".repeat(100), ..request(1) };
    let warnings = picture(&mut session, &request).warnings;
    assert_eq!(warnings, ["the prompt is longer than 77 tokens; its end was cut off"]);
}

#[test]
fn single_networks_take_one_row() {
    for batch in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let mut session = open(&write(&folder, Small { batch, ..Small::default() }));
        let ids: Vec<i32> = (0..77).collect();
        let tokens = Tensor::i32(&[1, 77], ids.clone());
        let embedding = session.eval("text_encoder", &[("tokens", &tokens)]).unwrap();
        assert_eq!(embedding.shape, [1, 77, 8]);
        assert_close(embedding.as_f32().unwrap(), &small::embedding(&ids));

        let values: Vec<f32> = (0..64).map(|i| i as f32 / 10.0).collect();
        let latent = Tensor::f32(&[1, 4, 4, 4], values.clone());
        let timestep = Tensor::f32(&[], vec![7.0]);
        let inputs = [("latent", &latent), ("timestep", &timestep), ("context", &embedding)];
        let eps = session.eval("unet", &inputs).unwrap();
        let context = small::embedding(&ids);
        let expected = small::unet(&channels_last(&values, 4), &context, 7.0);
        assert_eq!(eps.shape, [1, 4, 4, 4]);
        assert_close(eps.as_f32().unwrap(), &channels_first(&expected, 4));

        let image = session.eval("decoder", &[("latent", &latent)]).unwrap();
        assert_eq!(image.shape, [1, 3, 16, 16]);
        let expected = small::decode(&channels_last(&values, 4));
        assert_close(image.as_f32().unwrap(), &channels_first(&expected, 3));
    }
}

#[test]
fn wrong_requests_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = open(&write(&folder, Small::default()));
    let latent = Tensor::f32(&[1, 4, 4, 4], vec![0.0; 64]);
    let flat = Tensor::f32(&[64], vec![0.0; 64]);
    let turned = Tensor::f32(&[1, 2, 8, 4], vec![0.0; 64]);
    for (network, inputs, expected) in [
        ("encoder", vec![("latent", &latent)], "text_encoder, unet_prompt"),
        ("decoder", vec![], "\"latent\""),
        ("decoder", vec![("latent", &latent), ("x", &latent)], "\"x\""),
        ("decoder", vec![("latent", &turned)], "[1, 2, 8, 4]"),
        ("unet", vec![("latent", &latent)], "\"tokens\""),
        ("text_encoder", vec![("tokens", &flat)], "[64]"),
    ] {
        let error = session.eval(network, &inputs).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
    for request in [
        Request { steps: Some(0), ..request(1) },
        Request { sampler: Some("none".into()), ..request(1) },
        Request { guidance: Some(f32::NAN), ..request(1) },
        Request { initial_latent: Some(vec![0.0; 63]), ..request(1) },
        Request { initial_latent: Some(vec![f32::NAN; 64]), ..request(1) },
    ] {
        let error = session.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }
    // An index outside of the table is found before it is read.
    let tokens = Tensor::i32(&[1, 77], vec![small::VOCABULARY as i32; 77]);
    let error = session.eval("text_encoder", &[("tokens", &tokens)]).unwrap_err();
    assert!(error.to_string().contains("49408"), "{error}");
    assert!(session.eval("decoder", &[("latent", &latent)]).is_ok());
}
