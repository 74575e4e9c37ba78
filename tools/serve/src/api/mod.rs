//! The interfaces: this server's own, OpenAI's, AUTOMATIC1111's, and Prometheus' metrics.

mod automatic;
mod automatic_lists;
mod events;
mod metrics;
mod openai;
mod pictures;
mod server;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Json, middleware};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::account::{ANSWER_BYTES, Account};
use crate::error::Refusal;
use crate::guard::{self, Guard};
use crate::job::{Finished, Job, Stage, Watcher};
use crate::models::Models;
use crate::order::{Order, Wish};
use crate::page::Pages;
use crate::queue::Queue;
use crate::upload::{Upload, Uploads};

/// The OpenAPI document.
const OPENAPI: &str = include_str!("../../assets/openapi.json");

/// What all requests share.
pub struct App {
    pub models: Arc<Models>,
    pub queue: Arc<Queue>,
    pub guard: Guard,
    pub account: Account,
    uploads: Uploads,
    answers: Arc<Semaphore>,
    pages: Pages,
    /// Index of the bundle for requests that name none.
    default_model: AtomicUsize,
    connections: AtomicI64,
    /// Requests by the first digit of their status, from 1.
    requests: [AtomicU64; 5],
}

/// The state of handlers.
pub type Shared = Arc<App>;

/// The answer of a handler.
type Answer = Result<Response, Refusal>;

impl App {
    pub fn new(models: Arc<Models>, queue: Arc<Queue>, guard: Guard, account: Account) -> App {
        App {
            models,
            queue,
            guard,
            account,
            uploads: Uploads::new(),
            answers: Arc::new(Semaphore::new(ANSWER_BYTES)),
            pages: Pages::new(),
            default_model: AtomicUsize::new(0),
            connections: AtomicI64::new(0),
            requests: Default::default(),
        }
    }

    /// Counts a connection that begins (1) or ends (-1).
    pub fn connection(&self, change: i64) {
        self.connections.fetch_add(change, Ordering::Relaxed);
    }

    /// Counts an answer.
    pub fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5);
        self.requests[class - 1].fetch_add(1, Ordering::Relaxed);
    }

    fn default_model(&self) -> usize {
        self.default_model.load(Ordering::Relaxed)
    }

    /// Reads the body of a request for pictures, unless the queue is full already.
    async fn upload(&self, headers: &HeaderMap, body: Body) -> Result<Upload, Refusal> {
        if self.queue.is_full() {
            let message = "the queue is full; try again later";
            return Err(Refusal::busy(message));
        }
        self.uploads.read(headers, body).await
    }

    /// Translates an upload into a wish, checks it, and puts it into the queue. Pictures are decoded
    /// on another thread, so that others are served meanwhile.
    async fn submit(
        self: &Arc<App>,
        upload: Upload,
        translate: impl FnOnce(&App, &Upload) -> Result<Order, Refusal> + Send + 'static,
    ) -> Result<Arc<Job>, Refusal> {
        let app = Arc::clone(self);
        let translated = tokio::task::spawn_blocking(move || translate(&app, &upload)).await;
        let order = translated.map_err(|_| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read")
        })??;
        self.queue.push(order)
    }

    fn order(&self, wish: Wish<'_>) -> Result<Order, Refusal> {
        Order::of(wish, &self.models, self.default_model(), &self.account)
    }

    /// Waits for a job. If the client leaves, this future is dropped, and the job is cancelled.
    ///
    /// Errors: 500 if it fails, 409 if it is cancelled.
    async fn wait(&self, job: &Arc<Job>) -> Result<Vec<Arc<Finished>>, Refusal> {
        let _waiting = Waiting { queue: &self.queue, job, _watcher: job.watch() };
        let state = job.over().await;
        match state.stage {
            Stage::Done => Ok(state.pictures),
            Stage::Failed => {
                let message = state.error.unwrap_or_default();
                Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message))
            }
            _ => Err(Refusal::new(StatusCode::CONFLICT, "the picture was cancelled")),
        }
    }

    /// An answer that others wait for if the answers being sent take too much memory.
    /// `write` makes its body, of `bytes` bytes about.
    async fn held(
        &self,
        kind: &'static str,
        bytes: usize,
        write: impl FnOnce() -> Bytes,
    ) -> Answer {
        let permits = bytes.clamp(1, ANSWER_BYTES) as u32;
        let place = Arc::clone(&self.answers).acquire_many_owned(permits).await;
        let place = place.map_err(|_| Refusal::busy("the server is being stopped"))?;
        let body = Bytes::from_owner(Held { bytes: write(), _place: place });
        Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response())
    }

    /// [`held`](Self::held), as JSON.
    async fn held_json(&self, bytes: usize, value: impl Serialize) -> Answer {
        let write = || {
            let mut body = Vec::with_capacity(bytes);
            // A vector takes everything.
            let _ = serde_json::to_writer(&mut body, &value);
            body.into()
        };
        self.held("application/json", bytes, write).await
    }
}

/// Bytes of an answer that count until they are sent.
struct Held {
    bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Cancels the job if its client stops waiting.
struct Waiting<'a> {
    queue: &'a Queue,
    job: &'a Arc<Job>,
    _watcher: Watcher,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.job.stage().is_over() {
            self.queue.cancel(self.job);
        }
    }
}

/// All routes behind the guard. `openapi.json` describes them.
pub fn router(app: &Shared) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/login", post(login))
        .route("/health", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi_document))
        .route("/v1/server", get(server::server))
        .route("/v1/pictures", get(pictures::list).post(pictures::create))
        .route("/v1/pictures/{id}", get(pictures::one).delete(pictures::delete))
        .route("/v1/pictures/{id}/events", get(events::events))
        .route("/v1/pictures/{id}/preview", get(pictures::preview))
        .route("/v1/pictures/{id}/files/{index}", get(pictures::file))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{name}", get(openai::model))
        .route("/v1/images/generations", post(openai::generations))
        .route("/v1/images/edits", post(openai::edits))
        .merge(automatic::router())
        .fallback(nothing)
        .layer(middleware::from_fn_with_state(Arc::clone(app), guard::check))
        .with_state(Arc::clone(app))
}

async fn nothing(uri: Uri) -> Refusal {
    Refusal::not_found(format!("there is no {}; /openapi.json lists what there is", uri.path()))
}

async fn page(State(app): State<Shared>, headers: HeaderMap) -> Response {
    if app.guard.admits(&headers) { app.pages.page() } else { app.pages.login(false) }
}

async fn openapi_document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn login(State(app): State<Shared>, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let upload = app.uploads.read(&parts.headers, body).await?;
    let request = Request::from_parts(parts, Body::from(upload.bytes.clone()));
    let Form(login) = Form::<Login>::from_request(request, &()).await.map_err(Refusal::bad)?;
    match app.guard.login(&login.token).await {
        Ok(cookie) => Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()),
        Err(refusal) => Ok((refusal.status, app.pages.login(true)).into_response()),
    }
}

fn json(value: impl Serialize) -> Response {
    Json(value).into_response()
}

#[cfg(test)]
mod tests {
    use super::OPENAPI;

    /// The routes of a source file.
    fn routes(source: &str) -> Vec<&str> {
        let source = source.split("#[cfg(test)]").next().unwrap();
        let calls = source.split(".route(").skip(1);
        calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next()).collect()
    }

    #[test]
    fn the_document_describes_every_route() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let described = document["paths"].as_object().unwrap();
        let mut found = routes(include_str!("mod.rs"));
        found.extend(routes(include_str!("automatic.rs")));
        for route in &found {
            assert!(described.contains_key(*route), "{route} is not in openapi.json");
        }
        for path in described.keys() {
            assert!(found.contains(&&**path), "{path} is no route");
        }
    }
}
