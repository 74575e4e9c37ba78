//! AUTOMATIC1111's interface: `/sdapi/v1/`.
//!
//! Source: AUTOMATIC1111, stable-diffusion-webui 1.10, `modules/api/`. Fields that would change the
//! picture in a way that this server cannot are refused; other unknown fields are ignored.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use kiln_runtime::pipeline::sampler::SamplerEntry;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::automatic_lists as lists;
use super::{Answer, App, Shared};
use crate::error::Refusal;
use crate::job::{Finished, Job, Stage, lock};
use crate::order::{Order, Wish};
use crate::upload::{self, Base64, Upload};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(interrupt))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/png-info", post(png_info))
        .route("/sdapi/v1/sd-models", get(lists::sd_models))
        .route("/sdapi/v1/samplers", get(lists::samplers))
        .route("/sdapi/v1/schedulers", get(lists::schedulers))
        .route("/sdapi/v1/cmd-flags", get(lists::cmd_flags))
        .route("/sdapi/v1/memory", get(lists::memory))
        .route("/sdapi/v1/scripts", get(lists::scripts))
        .route("/sdapi/v1/embeddings", get(lists::embeddings))
        .route("/sdapi/v1/refresh-checkpoints", post(lists::nothing))
        .route("/sdapi/v1/refresh-loras", post(lists::nothing))
        .route("/sdapi/v1/loras", get(lists::none))
        .route("/sdapi/v1/sd-vae", get(lists::none))
        .route("/sdapi/v1/upscalers", get(lists::none))
        .route("/sdapi/v1/latent-upscale-modes", get(lists::none))
        .route("/sdapi/v1/hypernetworks", get(lists::none))
        .route("/sdapi/v1/face-restorers", get(lists::none))
        .route("/sdapi/v1/realesrgan-models", get(lists::none))
        .route("/sdapi/v1/prompt-styles", get(lists::none))
        .route("/sdapi/v1/script-info", get(lists::none))
        .route("/sdapi/v1/extensions", get(lists::none))
}

/// Text that is not copied if JSON has no escapes in it.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The fields of both requests that have a meaning here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields<'a> {
    prompt: Option<String>,
    negative_prompt: Option<String>,
    styles: Option<Vec<String>>,
    seed: Option<i64>,
    subseed_strength: Option<f64>,
    sampler_name: Option<String>,
    sampler_index: Option<String>,
    scheduler: Option<String>,
    batch_size: Option<usize>,
    n_iter: Option<usize>,
    steps: Option<usize>,
    cfg_scale: Option<f32>,
    width: Option<u32>,
    height: Option<u32>,
    eta: Option<f32>,
    denoising_strength: Option<f64>,
    enable_hr: Option<bool>,
    tiling: Option<bool>,
    restore_faces: Option<bool>,
    script_name: Option<String>,
    alwayson_scripts: Option<serde_json::Map<String, Value>>,
    override_settings: Option<serde_json::Map<String, Value>>,
    send_images: Option<bool>,
    inpainting_mask_invert: Option<u32>,
    #[serde(borrow)]
    init_images: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    mask: Option<Cow<'a, str>>,
}

impl<'a> Fields<'a> {
    /// Errors: 400 for what this server does not do.
    fn check(&self) -> Result<(), Refusal> {
        let is_set = |flag: Option<bool>| flag == Some(true);
        let script = self.script_name.as_deref().is_some_and(|name| !name.is_empty());
        let mut scripts = self.alwayson_scripts.iter().flatten();
        let refused = [
            (is_set(self.enable_hr), "enable_hr"),
            (is_set(self.tiling), "tiling"),
            (is_set(self.restore_faces), "restore_faces"),
            (script, "script_name"),
            (scripts.any(|(_, script)| asks(script)), "alwayson_scripts"),
            (self.styles.iter().flatten().any(|style| !style.is_empty()), "styles"),
            (self.inpainting_mask_invert.unwrap_or(0) > 0, "inpainting_mask_invert"),
            (self.subseed_strength.unwrap_or(0.0) > 0.0, "subseed_strength"),
        ];
        match refused.iter().find(|(is_asked, _)| *is_asked) {
            Some((_, name)) => Err(Refusal::bad(format!("{name} is not supported"))),
            None => Ok(()),
        }
    }

    /// `is_from_picture`: for `img2img`, which needs a picture to begin with.
    fn wish(mut self, app: &App, is_from_picture: bool) -> Result<Wish<'a>, Refusal> {
        self.check()?;
        let overrides = self.override_settings.take().unwrap_or_default();
        let model = overrides.get("sd_model_checkpoint").and_then(Value::as_str);
        let model = model.map(str::to_owned);
        let index = model.as_deref().map(|name| app.models.find(name)).transpose()?;
        let entry = &app.models.all()[index.unwrap_or(app.default_model())];
        let own = entry.sizes[0].size;
        let (width, height) =
            (self.width.unwrap_or(own.width_px), self.height.unwrap_or(own.height_px));
        let sampler = self.sampler_name.or(self.sampler_index).filter(|name| !name.is_empty());
        let is_automatic =
            |name: &String| name.is_empty() || name.eq_ignore_ascii_case("automatic");
        let known = sampler.as_deref().map(SamplerEntry::find_spaced).transpose();
        let known = known.map_err(Refusal::bad)?.map(|(entry, _)| entry);
        // Clients send a scale in any case.
        let manifest = &entry.sizes[0].manifest;
        let has_guidance = manifest.guidance_branches > 1 || manifest.guidance_channels > 0;
        let mut images = self.init_images.unwrap_or_default();
        let init_image = images.pop().map(|Text(text)| text);
        if is_from_picture && (init_image.is_none() || !images.is_empty()) {
            return Err(Refusal::bad("init_images must have one picture"));
        }
        Ok(Wish {
            model,
            prompt: self.prompt.unwrap_or_default(),
            negative_prompt: self.negative_prompt.unwrap_or_default(),
            seed: self.seed.and_then(|seed| seed.try_into().ok()),
            count: Some(self.batch_size.unwrap_or(1).saturating_mul(self.n_iter.unwrap_or(1))),
            steps: self.steps,
            guidance: self.cfg_scale.filter(|_| has_guidance),
            sampler,
            spacing: self.scheduler.filter(|name| !is_automatic(name)).map(|s| s.to_lowercase()),
            eta: self.eta.filter(|_| known.is_some_and(|entry| entry.eta.is_some())),
            size: Some(format!("{width}x{height}")),
            init_image: init_image.filter(|_| is_from_picture),
            strength: self.denoising_strength.filter(|_| is_from_picture),
            mask: self.mask.filter(|_| is_from_picture),
            ..Wish::default()
        })
    }
}

/// Whether a script of `alwayson_scripts` asks for anything: clients send scripts that are off.
fn asks(script: &Value) -> bool {
    let args = script.get("args").and_then(Value::as_array);
    let is_off = |arg: &Value| {
        arg.is_null() || arg == false || arg.get("enabled").is_some_and(|enabled| enabled == false)
    };
    args.is_some_and(|args| !args.iter().all(is_off))
}

async fn txt2img(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    make(app, headers, body, false).await
}

async fn img2img(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    make(app, headers, body, true).await
}

async fn make(app: Shared, headers: HeaderMap, body: Body, from_picture: bool) -> Answer {
    let upload = app.upload(&headers, body).await?;
    let (told, tell) = std::sync::mpsc::channel();
    let job = app.submit(upload, move |app, upload: &Upload| {
        let fields: Fields = upload.json(&headers)?;
        let sends = fields.send_images.unwrap_or(true);
        let order = app.order(fields.wish(app, from_picture)?)?;
        // Its receiver is in this function.
        let _ = told.send((sends, parameters(&order)));
        Ok(order)
    });
    let job = job.await?;
    let (sends, parameters) = tell.try_recv().unwrap_or((true, Value::Null));
    let pictures = match app.wait(&job).await {
        Ok(pictures) => pictures,
        // An interrupted request has no pictures, which is no error there.
        Err(_) if job.stage() == Stage::Cancelled => Vec::new(),
        Err(refusal) => return Err(refusal),
    };
    let info = info(&job, &parameters, &pictures).to_string();
    let sent = if sends { &pictures[..] } else { &[] };
    let bytes = sent.iter().map(|picture| picture.png.len() * 4 / 3 + 16).sum::<usize>();
    let images = sent.iter().map(|picture| Base64(&picture.png)).collect();
    let bytes = bytes + 2 * info.len() + 4096;
    app.held_json(bytes, Made { images, parameters, info }).await
}

#[derive(Serialize)]
struct Made<'a> {
    images: Vec<Base64<'a>>,
    parameters: Value,
    /// JSON as a text.
    info: String,
}

fn parameters(order: &Order) -> Value {
    json!({
        "prompt": order.prompt,
        "negative_prompt": order.negative_prompt,
        "seed": order.seed,
        "steps": order.settings.steps,
        "cfg_scale": order.settings.guidance,
        "width": order.size.width_px,
        "height": order.size.height_px,
        "sampler_name": SamplerEntry::find(order.settings.sampler).map_or("", |e| e.title),
        "scheduler": order.settings.spacing.map_or("automatic", |spacing| spacing.name()),
        "denoising_strength": order.init.as_ref().map(|init| init.strength),
        "batch_size": 1,
        "n_iter": order.count,
    })
}

fn info(job: &Job, parameters: &Value, pictures: &[Arc<Finished>]) -> Value {
    let seeds: Vec<u64> = pictures.iter().map(|picture| picture.seed).collect();
    let each = |name: &str| vec![parameters[name].clone(); pictures.len()];
    let mut info = parameters.clone();
    let own = json!({
        "all_prompts": each("prompt"),
        "all_negative_prompts": each("negative_prompt"),
        "all_seeds": seeds,
        "infotexts": pictures.iter().map(|picture| &picture.info).collect::<Vec<_>>(),
        "warnings": pictures.first().map(|picture| &picture.warnings),
        "index_of_first_image": 0,
        "interrupted": job.stage() == Stage::Cancelled,
        "extra_generation_params": {},
        "version": format!("Kiln {}", env!("CARGO_PKG_VERSION")),
    });
    if let (Value::Object(info), Value::Object(own)) = (&mut info, own) {
        info.extend(own);
    }
    info
}

async fn progress(State(app): State<Shared>) -> Answer {
    let job = app.queue.running();
    let waiting = app.queue.waiting();
    let Some(job) = job else {
        return Ok(super::json(json!({
            "progress": 0.0, "eta_relative": 0.0, "current_image": null, "textinfo": null,
            "state": state(None, waiting),
        })));
    };
    let preview = lock(&job.preview).clone();
    let state_now = job.state.borrow().clone();
    let steps = (job.summary.steps * job.summary.count).max(1);
    let done = state_now.picture * job.summary.steps + state_now.step;
    #[derive(Serialize)]
    struct Progress<'a> {
        progress: f64,
        eta_relative: f64,
        state: Value,
        current_image: Option<Base64<'a>>,
        textinfo: Option<String>,
    }
    let answer = Progress {
        progress: done as f64 / steps as f64,
        eta_relative: state_now.seconds_left.unwrap_or(0.0),
        state: state(Some(&job), waiting),
        current_image: preview.as_deref().map(Base64),
        textinfo: None,
    };
    let bytes = preview.as_ref().map_or(0, |png| png.len() * 4 / 3) + 2048;
    app.held_json(bytes, answer).await
}

fn state(job: Option<&Arc<Job>>, waiting: usize) -> Value {
    let running = usize::from(job.is_some());
    json!({
        "skipped": false,
        "interrupted": job.is_some_and(|job| job.is_cancelled()),
        "stopping_generation": false,
        "job": job.map_or("", |job| &job.id),
        "job_count": running + waiting,
        "job_no": 0,
        "job_timestamp": "0",
        "sampling_step": job.map_or(0, |job| job.state.borrow().step),
        "sampling_steps": job.map_or(0, |job| job.summary.steps),
    })
}

async fn interrupt(State(app): State<Shared>) -> Response {
    if let Some(job) = app.queue.running() {
        app.queue.cancel(&job);
    }
    super::json(json!({}))
}

async fn options(State(app): State<Shared>) -> Response {
    let model = &app.models.all()[app.default_model()].name;
    super::json(json!({
        "sd_model_checkpoint": model,
        "sd_checkpoint_hash": null,
        "sd_vae": "None",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
    }))
}

/// Of the options, the model can be changed. Others are ignored, as clients send them all.
async fn set_options(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    let upload = app.uploads.read(&headers, body).await?;
    let options: serde_json::Map<String, Value> = upload.json(&headers)?;
    if let Some(name) = options.get("sd_model_checkpoint").and_then(Value::as_str) {
        app.default_model.store(app.models.find(name)?, Ordering::Relaxed);
    }
    Ok(super::json(Value::Null))
}

async fn png_info(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        image: Cow<'a, str>,
    }
    let upload = app.uploads.read(&headers, body).await?;
    let fields: Fields = upload.json(&headers)?;
    let found = upload::described(&fields.image)?;
    let text = |name: &str| found.text.iter().find(|(key, _)| key == name).map(|(_, text)| text);
    let items: serde_json::Map<String, Value> =
        found.text.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
    let bytes = found.text.iter().map(|(key, text)| 2 * (key.len() + text.len()) + 64).sum();
    let info = text("parameters");
    let value = json!({ "info": info.map_or("", |text| text), "items": items, "parameters": {} });
    app.held_json(bytes, value).await
}
