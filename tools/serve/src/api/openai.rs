//! OpenAI's interface for images.
//!
//! Source: OpenAI API reference, "Images" and "Models". Fields that only their models have are
//! ignored: `quality`, `style`, `background`, `moderation`, `user`, `input_fidelity`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{FromRequest, Multipart, Path, Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Answer, App, Shared};
use crate::error::Refusal;
use crate::job::Job;
use crate::order::{MaskKind, Wish};
use crate::upload::{Base64, Upload, base64};

/// Fields of both requests. Those from `negative_prompt` on are this server's own.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Fields {
    prompt: String,
    model: Option<String>,
    n: Option<usize>,
    size: Option<String>,
    response_format: Option<String>,
    output_format: Option<String>,
    stream: Option<bool>,
    negative_prompt: Option<String>,
    seed: Option<u64>,
    steps: Option<usize>,
    guidance: Option<f32>,
    sampler: Option<String>,
    spacing: Option<String>,
    strength: Option<f64>,
}

impl Fields {
    /// Errors: 400 for answers that this server does not give.
    fn wish(self) -> Result<Wish<'static>, Refusal> {
        if self.stream == Some(true) {
            return Err(Refusal::bad("stream is not supported; POST /v1/pictures has events"));
        }
        let format = self.output_format.as_deref().unwrap_or("png");
        if format != "png" {
            return Err(Refusal::bad(format!("output_format {format:?}: there is only png")));
        }
        if self.response_format.as_deref().is_some_and(|format| format != "b64_json") {
            return Err(Refusal::bad("response_format must be b64_json"));
        }
        Ok(Wish {
            model: self.model,
            prompt: self.prompt,
            negative_prompt: self.negative_prompt.unwrap_or_default(),
            seed: self.seed,
            count: self.n,
            steps: self.steps,
            guidance: self.guidance,
            sampler: self.sampler,
            spacing: self.spacing,
            size: self.size.filter(|size| size != "auto"),
            strength: self.strength,
            ..Wish::default()
        })
    }

    /// Sets a field from a part of a form.
    ///
    /// Errors: 400.
    fn set(&mut self, name: &str, text: String) -> Result<(), Refusal> {
        fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<Option<T>, Refusal> {
            let parsed = text.parse().map(Some);
            parsed.map_err(|_| Refusal::bad(format!("{name} is {text:?}, which is no number")))
        }
        match name {
            "prompt" => self.prompt = text,
            "model" => self.model = Some(text),
            "n" => self.n = number(name, &text)?,
            "size" => self.size = Some(text),
            "response_format" => self.response_format = Some(text),
            "output_format" => self.output_format = Some(text),
            "stream" => self.stream = Some(text == "true"),
            "negative_prompt" => self.negative_prompt = Some(text),
            "seed" => self.seed = number(name, &text)?,
            "steps" => self.steps = number(name, &text)?,
            "guidance" => self.guidance = number(name, &text)?,
            "sampler" => self.sampler = Some(text),
            "spacing" => self.spacing = Some(text),
            "strength" => self.strength = number(name, &text)?,
            _ => {}
        }
        Ok(())
    }
}

pub async fn generations(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    let upload = app.upload(&headers, body).await?;
    let job = app.submit(upload, move |app, upload: &Upload| {
        let fields: Fields = upload.json(&headers)?;
        app.order(fields.wish()?)
    });
    answer(&app, &job.await?).await
}

/// A picture to begin with, as a form.
pub async fn edits(State(app): State<Shared>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let upload = app.upload(&parts.headers, body).await?;
    let request = Request::from_parts(parts, Body::from(upload.bytes.clone()));
    let mut form = Multipart::from_request(request, &()).await.map_err(Refusal::bad)?;
    let (mut fields, mut image, mut mask) = (Fields::default(), None, None);
    while let Some(field) = form.next_field().await.map_err(Refusal::bad)? {
        let name = field.name().unwrap_or("").to_owned();
        let bytes = field.bytes().await.map_err(Refusal::bad)?;
        match &*name {
            "image" | "image[]" if image.is_some() => {
                return Err(Refusal::bad("one image can be edited at a time"));
            }
            "image" | "image[]" => image = Some(bytes),
            "mask" => mask = Some(bytes),
            _ => {
                let text = String::from_utf8(bytes.into()).map_err(Refusal::bad)?;
                fields.set(&name, text)?;
            }
        }
    }
    let image = image.ok_or_else(|| Refusal::bad("the form has no image"))?;
    let job = app.submit(upload, move |app, _: &Upload| {
        let mut wish = fields.wish()?;
        wish.init_image = Some(Cow::Owned(base64(&image)));
        wish.mask = mask.map(|mask| Cow::Owned(base64(&mask)));
        wish.mask_kind = MaskKind::Transparent;
        app.order(wish)
    });
    answer(&app, &job.await?).await
}

async fn answer(app: &App, job: &Arc<Job>) -> Answer {
    let pictures = app.wait(job).await?;
    let bytes = pictures.iter().map(|picture| picture.png.len() * 4 / 3 + 1024).sum();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let data = pictures.iter();
    let data = data.map(|picture| Image { b64_json: Base64(&picture.png), seed: picture.seed });
    let data = data.collect();
    app.held_json(bytes, Images { created, output_format: "png", data }).await
}

#[derive(Serialize)]
struct Images<'a> {
    created: u64,
    output_format: &'static str,
    data: Vec<Image<'a>>,
}

#[derive(Serialize)]
struct Image<'a> {
    b64_json: Base64<'a>,
    seed: u64,
}

fn card(name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": 0, "owned_by": "kiln" })
}

pub async fn models(State(app): State<Shared>) -> Response {
    let cards = app.models.all().iter().map(|model| card(&model.name));
    super::json(json!({ "object": "list", "data": cards.collect::<Vec<_>>() }))
}

pub async fn model(State(app): State<Shared>, Path(name): Path<String>) -> Answer {
    let index = app.models.find(&name)?;
    Ok(super::json(card(&app.models.all()[index].name)))
}
