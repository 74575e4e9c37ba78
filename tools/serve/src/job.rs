//! A job: an order on its way through the queue, the session and the gallery.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use kiln_runtime::report::Report;
use serde::Serialize;
use tokio::sync::watch;

use crate::order::Order;

/// A job that no request has asked about for this long is cancelled.
const LEASE: Duration = Duration::from_secs(30);
/// The same after the last stream of its events has ended.
const LEASE_AFTER_EVENTS: Duration = Duration::from_secs(5);

/// Stage of a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Queued,
    /// The bundle is being loaded.
    Loading,
    /// The prompt is being encoded.
    Prompt,
    Sampling,
    Decoding,
    Done,
    Failed,
    Cancelled,
}

impl Stage {
    pub fn is_over(self) -> bool {
        matches!(self, Stage::Done | Stage::Failed | Stage::Cancelled)
    }
}

/// State of a job, as its watchers see it.
#[derive(Clone, Serialize)]
pub struct State {
    pub stage: Stage,
    /// Jobs before this one in the queue.
    pub ahead: usize,
    /// Kernels that are compiled, and kernels in all, while the bundle is loaded.
    pub kernels: Option<(usize, usize)>,
    /// Index of the picture that is being made.
    pub picture: usize,
    /// Steps that are done, of this picture.
    pub step: usize,
    /// Estimate for the rest of the job.
    pub seconds_left: Option<f64>,
    /// Number of the preview, which is new if it has changed. 0: there is none.
    pub preview: usize,
    pub error: Option<String>,
    #[serde(skip)]
    pub pictures: Vec<Arc<Finished>>,
}

/// A step of the sampler, as it was measured.
#[derive(Clone, Copy, Serialize)]
pub struct StepTrace {
    pub picture: usize,
    pub step: usize,
    pub seconds: f64,
    /// Time that the device has waited for weights in this step.
    pub waited_seconds: f64,
    /// Memory of the process after the step.
    pub process_bytes: Option<u64>,
}

/// A picture that is done. Its bytes are counted until the last owner drops it.
pub struct Finished {
    /// The PNG file.
    pub png: Bytes,
    pub seed: u64,
    pub warnings: Vec<String>,
    /// The settings as AUTOMATIC1111's web UI writes them.
    pub info: String,
    pub report: Report,
    pub _counted: Counted,
}

/// Bytes of all finished pictures that anyone still holds.
pub struct Counted {
    bytes: u64,
    sum: Arc<AtomicU64>,
}

impl Counted {
    pub fn add(sum: &Arc<AtomicU64>, bytes: u64) -> Counted {
        sum.fetch_add(bytes, Ordering::Relaxed);
        Counted { bytes, sum: Arc::clone(sum) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.sum.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Settings of a job, for lists.
#[derive(Clone, Serialize)]
pub struct Summary {
    pub model: usize,
    pub prompt: String,
    pub size: String,
    pub seed: u64,
    pub count: usize,
    pub steps: usize,
}

/// An order with its state.
pub struct Job {
    pub id: String,
    pub summary: Summary,
    /// Until the session takes it.
    pub order: Mutex<Option<Order>>,
    pub state: watch::Sender<State>,
    pub trace: Mutex<Vec<StepTrace>>,
    /// The last preview, a PNG file.
    pub preview: Mutex<Option<Bytes>>,
    is_cancelled: AtomicBool,
    /// Streams of events, and requests that wait for the pictures.
    watchers: AtomicUsize,
    /// When the job is abandoned unless someone asks about it.
    lease: Mutex<Instant>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    pub fn new(id: String, order: Order) -> Job {
        let summary = Summary {
            model: order.model,
            prompt: order.prompt.clone(),
            size: order.size.to_string(),
            seed: order.seed,
            count: order.count,
            steps: order.settings.steps,
        };
        let state = State {
            stage: Stage::Queued,
            ahead: 0,
            kernels: None,
            picture: 0,
            step: 0,
            seconds_left: None,
            preview: 0,
            error: None,
            pictures: Vec::new(),
        };
        Job {
            id,
            summary,
            order: Mutex::new(Some(order)),
            state: watch::Sender::new(state),
            trace: Mutex::default(),
            preview: Mutex::default(),
            is_cancelled: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            lease: Mutex::new(Instant::now() + LEASE),
        }
    }

    pub fn stage(&self) -> Stage {
        self.state.borrow().stage
    }

    pub fn update(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    /// Ends the job. What only a running job needs is dropped.
    pub fn end(&self, stage: Stage, error: Option<String>) {
        lock(&self.order).take();
        lock(&self.preview).take();
        self.update(|state| {
            if !state.stage.is_over() {
                (state.stage, state.error, state.seconds_left) = (stage, error, None);
            }
        });
    }

    pub fn mark_cancelled(&self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::Relaxed)
    }

    /// Someone has asked about the job.
    pub fn renew(&self) {
        *lock(&self.lease) = Instant::now() + LEASE;
    }

    /// Whether nobody waits for the job, and nobody has asked about it for a while.
    pub fn is_abandoned(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) == 0 && *lock(&self.lease) < Instant::now()
    }

    /// Keeps the job from being abandoned until the answer is dropped.
    pub fn watch(self: &Arc<Job>) -> Watcher {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher(Arc::clone(self))
    }

    /// Waits until the job is over.
    pub async fn over(&self) -> State {
        let mut state = self.state.subscribe();
        let over = state.wait_for(|state| state.stage.is_over()).await;
        // The sender is in this job.
        over.map(|state| state.clone()).unwrap_or_else(|_| self.state.borrow().clone())
    }
}

/// One who watches a job.
pub struct Watcher(Arc<Job>);

impl Drop for Watcher {
    fn drop(&mut self) {
        *lock(&self.0.lease) = Instant::now() + LEASE_AFTER_EVENTS;
        self.0.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}
