//! The queue, the job that is being made, and the jobs that are over with their pictures.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use kiln_runtime::Canceller;

use crate::account::{Account, ENDED_JOBS};
use crate::error::Refusal;
use crate::job::{Job, Stage, lock};
use crate::order::Order;

/// Interval at which room for the next picture is looked for.
const ROOM_POLL: Duration = Duration::from_millis(20);

/// Numbers of jobs since the start, for metrics.
#[derive(Default)]
pub struct Counters {
    pub done: AtomicU64,
    pub failed: AtomicU64,
    pub cancelled: AtomicU64,
    pub refused: AtomicU64,
    pub steps: AtomicU64,
    pub step_microseconds: AtomicU64,
    pub waited_microseconds: AtomicU64,
    pub streamed_bytes: AtomicU64,
    pub loads: AtomicU64,
}

impl Counters {
    /// Adds to a sum of seconds, kept in microseconds.
    pub fn add_seconds(sum: &AtomicU64, seconds: f64) {
        sum.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Arc<Job>>,
    running: Option<(Arc<Job>, Option<Canceller>)>,
    /// Jobs that are over, the oldest first.
    ended: VecDeque<Arc<Job>>,
    is_closed: bool,
}

impl Inner {
    /// Keeps a job that is over, and drops the oldest if there are too many.
    fn retire(&mut self, job: &Arc<Job>) {
        self.ended.push_back(Arc::clone(job));
        if self.ended.len() > ENDED_JOBS {
            self.ended.pop_front();
        }
    }
}

/// All jobs.
pub struct Queue {
    capacity: usize,
    account: Account,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Bytes of finished pictures that anyone holds.
    pub pictures_bytes: Arc<AtomicU64>,
    pub counters: Counters,
}

impl Queue {
    pub fn new(capacity: usize, account: Account) -> Queue {
        Queue {
            capacity,
            account,
            inner: Mutex::default(),
            changed: Condvar::new(),
            pictures_bytes: Arc::default(),
            counters: Counters::default(),
        }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Puts an order at the end of the queue.
    ///
    /// Errors: 503 if the queue is full or the server is being stopped.
    pub fn push(&self, order: Order) -> Result<Arc<Job>, Refusal> {
        let id = format!("{:016x}", getrandom::u64().map_err(Refusal::busy)?);
        let mut inner = lock(&self.inner);
        if inner.is_closed {
            return Err(Refusal::busy("the server is being stopped"));
        }
        if inner.waiting.len() >= self.capacity {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let message = format!("{} pictures wait already; try again later", self.capacity);
            return Err(Refusal::busy(message));
        }
        let job = Arc::new(Job::new(id, order));
        inner.waiting.push_back(Arc::clone(&job));
        number(&inner);
        self.changed.notify_one();
        Ok(job)
    }

    /// Whether one more order would be refused, so that its pictures need not be decoded.
    pub fn is_full(&self) -> bool {
        let inner = lock(&self.inner);
        inner.is_closed || inner.waiting.len() >= self.capacity
    }

    /// Waits for the next job. `None` after [`close`](Self::close).
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut inner = lock(&self.inner);
        loop {
            if inner.is_closed {
                return None;
            }
            if let Some(job) = inner.waiting.pop_front() {
                inner.running = Some((Arc::clone(&job), None));
                number(&inner);
                return Some(job);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The running job is now in a session.
    pub fn is_in_session(&self, canceller: Canceller) {
        if let Some((_, place)) = &mut lock(&self.inner).running {
            *place = Some(canceller);
        }
    }

    /// The running job is over.
    pub fn finished(&self, job: &Arc<Job>, stage: Stage, error: Option<String>) {
        let counter = match stage {
            Stage::Done => &self.counters.done,
            Stage::Failed => &self.counters.failed,
            _ => &self.counters.cancelled,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut inner = lock(&self.inner);
        inner.running = None;
        inner.retire(job);
        drop(inner);
        job.end(stage, error);
    }

    /// Stops a job. A waiting one leaves the queue, the running one ends before its next launch.
    pub fn cancel(&self, job: &Arc<Job>) {
        job.mark_cancelled();
        let mut inner = lock(&self.inner);
        if let Some((running, canceller)) = &inner.running
            && Arc::ptr_eq(running, job)
        {
            canceller.iter().for_each(Canceller::cancel);
            return;
        }
        let before = inner.waiting.len();
        inner.waiting.retain(|waiting| !Arc::ptr_eq(waiting, job));
        let has_left = inner.waiting.len() < before;
        number(&inner);
        if has_left {
            inner.retire(job);
        }
        drop(inner);
        if has_left {
            self.counters.cancelled.fetch_add(1, Ordering::Relaxed);
            job.end(Stage::Cancelled, None);
        }
    }

    /// Cancels all jobs that nobody asks about.
    pub fn cancel_abandoned(&self) {
        let inner = lock(&self.inner);
        let running = inner.running.iter().map(|(job, _)| job);
        let jobs: Vec<_> = inner.waiting.iter().chain(running).cloned().collect();
        drop(inner);
        jobs.iter().filter(|job| job.is_abandoned()).for_each(|job| self.cancel(job));
    }

    /// Cancels everything and takes no more.
    pub fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.is_closed = true;
        let running = inner.running.as_ref().map(|(job, _)| Arc::clone(job));
        let jobs: Vec<_> = inner.waiting.iter().cloned().chain(running).collect();
        drop(inner);
        jobs.iter().for_each(|job| self.cancel(job));
        self.changed.notify_all();
    }

    /// Jobs that wait or run, in order, and those that are over, the newest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let inner = lock(&self.inner);
        let running = inner.running.iter().map(|(job, _)| job);
        running.chain(&inner.waiting).chain(inner.ended.iter().rev()).cloned().collect()
    }

    pub fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.all().into_iter().find(|job| job.id == id)
    }

    pub fn running(&self) -> Option<Arc<Job>> {
        lock(&self.inner).running.as_ref().map(|(job, _)| Arc::clone(job))
    }

    pub fn waiting(&self) -> usize {
        lock(&self.inner).waiting.len()
    }

    /// Forgets a job that is over, with its pictures.
    pub fn forget(&self, job: &Arc<Job>) {
        lock(&self.inner).ended.retain(|ended| !Arc::ptr_eq(ended, job));
        job.update(|state| state.pictures.clear());
    }

    /// Makes room for pictures of so many bytes: forgets the oldest, and waits for answers that
    /// still hold them. Returns `false` if the job is cancelled meanwhile.
    pub fn make_room(&self, job: &Job, bytes: u64) -> bool {
        loop {
            if self.pictures_bytes.load(Ordering::Relaxed) + bytes <= self.account.pictures_bytes {
                return true;
            }
            if job.is_cancelled() {
                return false;
            }
            let oldest = {
                let inner = lock(&self.inner);
                let has_pictures = |job: &&Arc<Job>| !job.state.borrow().pictures.is_empty();
                inner.ended.iter().find(has_pictures).cloned()
            };
            match oldest {
                Some(job) => self.forget(&job),
                None => std::thread::sleep(ROOM_POLL),
            }
        }
    }
}

/// Tells the waiting jobs their places.
fn number(inner: &Inner) {
    let before = usize::from(inner.running.is_some());
    for (index, job) in inner.waiting.iter().enumerate() {
        if job.state.borrow().ahead != index + before {
            job.update(|state| state.ahead = index + before);
        }
    }
}
