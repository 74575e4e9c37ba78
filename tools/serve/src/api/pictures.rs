//! This server's own interface: jobs, their previews and their pictures.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, App, Shared};
use crate::error::Refusal;
use crate::job::{Job, StepTrace, lock};
use crate::order::Wish;

/// Bound of a job's JSON in a list, beside its prompt.
const JOB_JSON_BYTES: usize = 4 << 10;

/// A job as clients see it.
#[derive(Serialize)]
pub struct JobView {
    id: String,
    #[serde(flatten)]
    state: Value,
    model: String,
    prompt: String,
    size: String,
    seed: u64,
    count: usize,
    steps: usize,
    /// Path of the last preview.
    preview_path: Option<String>,
    files: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<Vec<StepTrace>>,
}

impl JobView {
    pub fn of(app: &App, job: &Job, trace: Option<Vec<StepTrace>>) -> JobView {
        let state = job.state.borrow().clone();
        let id = &job.id;
        let has_preview = state.preview > 0 && lock(&job.preview).is_some();
        let preview = state.preview;
        let path = || format!("/v1/pictures/{id}/preview?n={preview}");
        let file = |(index, picture): (usize, &Arc<crate::job::Finished>)| {
            json!({
                "path": format!("/v1/pictures/{id}/files/{index}"),
                "seed": picture.seed,
                "info": picture.info,
                "warnings": picture.warnings,
                "report": picture.report,
            })
        };
        JobView {
            id: id.clone(),
            model: app.models.all()[job.summary.model].name.clone(),
            prompt: job.summary.prompt.clone(),
            size: job.summary.size.clone(),
            seed: job.summary.seed,
            count: job.summary.count,
            steps: job.summary.steps,
            preview_path: has_preview.then(path),
            files: state.pictures.iter().enumerate().map(file).collect(),
            state: serde_json::to_value(&state).unwrap_or_default(),
            trace,
        }
    }
}

impl App {
    /// The job of a path.
    ///
    /// Errors: 404.
    pub fn job(&self, id: &str) -> Result<Arc<Job>, Refusal> {
        let job = self.queue.find(id);
        let job = job.ok_or_else(|| Refusal::not_found("no such picture, or no longer kept"))?;
        job.renew();
        Ok(job)
    }
}

pub async fn create(State(app): State<Shared>, headers: HeaderMap, body: Body) -> Answer {
    let upload = app.upload(&headers, body).await?;
    let job = app.submit(upload, move |app, upload| {
        let wish: Wish = upload.json(&headers)?;
        app.order(wish)
    });
    let job = job.await?;
    let location = HeaderValue::from_str(&format!("/v1/pictures/{}", job.id));
    let mut response = super::json(JobView::of(&app, &job, None));
    *response.status_mut() = StatusCode::ACCEPTED;
    response.headers_mut().insert(header::LOCATION, location.map_err(Refusal::bad)?);
    Ok(response)
}

pub async fn list(State(app): State<Shared>) -> Answer {
    let jobs = app.queue.all();
    let bytes = jobs.iter().map(|job| job.summary.prompt.len() * 2 + JOB_JSON_BYTES).sum();
    let views: Vec<_> = jobs.iter().map(|job| JobView::of(&app, job, None)).collect();
    app.held_json(bytes, json!({ "pictures": views })).await
}

pub async fn one(State(app): State<Shared>, Path(id): Path<String>) -> Answer {
    let job = app.job(&id)?;
    let trace = lock(&job.trace).clone();
    Ok(super::json(JobView::of(&app, &job, Some(trace))))
}

/// Cancels a job, or forgets one that is over.
pub async fn delete(State(app): State<Shared>, Path(id): Path<String>) -> Answer {
    let job = app.job(&id)?;
    match job.stage().is_over() {
        true => app.queue.forget(&job),
        false => app.queue.cancel(&job),
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The last preview; no content if there is none, as a job may end while it is asked for.
pub async fn preview(State(app): State<Shared>, Path(id): Path<String>) -> Answer {
    let job = app.job(&id)?;
    let png = lock(&job.preview).clone();
    let Some(png) = png else { return Ok(StatusCode::NO_CONTENT.into_response()) };
    app.held("image/png", png.len(), || png).await
}

pub async fn file(
    State(app): State<Shared>,
    Path((id, index)): Path<(String, usize)>,
) -> Result<Response, Refusal> {
    let job = app.job(&id)?;
    let picture = job.state.borrow().pictures.get(index).cloned();
    let picture = picture.ok_or_else(|| Refusal::not_found("there is no such picture"))?;
    let png = picture.png.clone();
    let mut response = app.held("image/png", png.len(), || png).await?;
    let headers = response.headers_mut();
    let private = HeaderValue::from_static("private, max-age=3600, immutable");
    headers.insert(header::CACHE_CONTROL, private);
    let name = format!("inline; filename=\"kiln-{}.png\"", picture.seed);
    headers.insert(header::CONTENT_DISPOSITION, name.parse().map_err(Refusal::bad)?);
    Ok(response)
}
