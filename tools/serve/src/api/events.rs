//! Server-sent events of a job: its state whenever that changes, with the steps since the last one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State as Extracted};
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::pictures::JobView;
use super::{Answer, Shared};
use crate::job::{Job, State, Watcher, lock};

/// Interval of comments, which find out whether the client is still there.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Sent first: a client that loses the connection comes back after this many milliseconds.
const RETRY: &str = "retry: 1000\n\n";

/// A stream of events. A slow client misses states in between, but no step.
struct Events {
    app: Shared,
    job: Arc<Job>,
    state: watch::Receiver<State>,
    /// Steps that were sent.
    sent: usize,
    is_first: bool,
    is_over: bool,
    _watcher: Watcher,
}

pub async fn events(Extracted(app): Extracted<Shared>, Path(id): Path<String>) -> Answer {
    let job = app.job(&id)?;
    let mut state = job.state.subscribe();
    state.mark_changed();
    let (watcher, job) = (job.watch(), Arc::clone(&job));
    let (sent, is_first, is_over) = (0, true, false);
    let events = Events { app, job, state, sent, is_first, is_over, _watcher: watcher };
    let body = Body::from_stream(stream::unfold(events, |mut events| async {
        let text = events.next().await?;
        Some((Ok::<_, Infallible>(text), events))
    }));
    let kind = HeaderValue::from_static("text/event-stream");
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}

impl Events {
    /// The next event, a comment if nothing changes for a while, or none after the last one.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        let head = if std::mem::take(&mut self.is_first) { RETRY } else { "" };
        if timeout(KEEPALIVE, self.state.changed()).await.is_err() {
            return Some(Bytes::from_static(b": \n\n"));
        }
        self.is_over = self.state.borrow_and_update().stage.is_over();
        let trace = lock(&self.job.trace)[self.sent..].to_vec();
        self.sent += trace.len();
        let view = JobView::of(&self.app, &self.job, Some(trace));
        let data = serde_json::to_string(&view).unwrap_or_default();
        let name = if self.is_over { "end" } else { "state" };
        Some(format!("{head}event: {name}\ndata: {data}\n\n").into())
    }
}
