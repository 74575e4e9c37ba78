//! The thread that has the session: loads bundles and makes one job's pictures after the other.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use axum::body::Bytes;
use kiln_bundle::plan::{Manifest, Size};
use kiln_runtime::pipeline::png::{self, RgbImage};
use kiln_runtime::pipeline::preview::Projection;
use kiln_runtime::report::MeasuredMemory;
use kiln_runtime::session::Init;
use kiln_runtime::{Picture, Progress, Request, RuntimeError, Session, SessionOptions};
use tokio::sync::oneshot;

use crate::account::picture_bytes_of;
use crate::error::ServeError;
use crate::job::{Counted, Finished, Job, Stage, StepTrace, lock};
use crate::models::Models;
use crate::order::{Order, Preview};
use crate::queue::{Counters, Queue};

/// What the thread tells.
pub struct Engine {
    /// Resolves when the first bundle is loaded.
    pub loaded: oneshot::Receiver<Result<(), ServeError>>,
    /// Resolves, as an error, when the thread has ended.
    pub ended: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts the thread. `progress` receives the kernels built for the first bundle.
    pub fn start(
        models: &Arc<Models>,
        queue: &Arc<Queue>,
        options: SessionOptions,
        mut progress: impl FnMut(usize, usize) + Send + 'static,
    ) -> Result<Engine, ServeError> {
        let (tell_loaded, loaded) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (models, queue) = (Arc::clone(models), Arc::clone(queue));
        let body = move || {
            let _end: oneshot::Sender<()> = end;
            let mut worker = Worker { models, queue, options, loaded: None };
            let size = worker.models.all()[0].sizes[0].size;
            let first = worker.load(0, size, &mut progress).map(|_| ());
            let is_loaded = first.is_ok();
            // Nobody listens if the server is being stopped.
            let _ = tell_loaded.send(first.map_err(ServeError::from));
            if is_loaded {
                worker.run();
            }
        };
        let thread = thread::Builder::new().name("kiln-engine".into()).spawn(body);
        thread.map_err(ServeError::Runtime)?;
        Ok(Engine { loaded, ended })
    }
}

/// A session with a bundle.
struct Loaded {
    model: usize,
    size: Size,
    session: Session,
    /// Times of the last picture, for estimates.
    step_seconds: Option<f64>,
    decode_seconds: f64,
}

struct Worker {
    models: Arc<Models>,
    queue: Arc<Queue>,
    options: SessionOptions,
    loaded: Option<Loaded>,
}

impl Worker {
    fn load(
        &mut self,
        model: usize,
        size: Size,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<&mut Loaded, RuntimeError> {
        let is_there = |loaded: &Loaded| (loaded.model, loaded.size) == (model, size);
        if !self.loaded.as_ref().is_some_and(is_there) {
            // The memory of one plan at a time.
            self.loaded = None;
            let bundle = Arc::new(self.models.all()[model].bundle(size)?);
            let session = Session::load(bundle, &self.options, progress)?;
            self.queue.counters.loads.fetch_add(1, Ordering::Relaxed);
            let (step_seconds, decode_seconds) = (None, 0.0);
            self.loaded = Some(Loaded { model, size, session, step_seconds, decode_seconds });
        }
        self.loaded.as_mut().ok_or_else(|| RuntimeError::Plan("it is not loaded".into()))
    }

    fn run(&mut self) {
        while let Some(job) = self.queue.next() {
            let made = self.make(&job);
            let (stage, error) = match made {
                Ok(()) => (Stage::Done, None),
                Err(RuntimeError::Cancelled) => (Stage::Cancelled, None),
                Err(error) => (Stage::Failed, Some(error.to_string())),
            };
            self.queue.finished(&job, stage, error);
        }
    }

    /// Makes all pictures of a job.
    fn make(&mut self, job: &Arc<Job>) -> Result<(), RuntimeError> {
        let Some(mut order) = lock(&job.order).take() else { return Err(RuntimeError::Cancelled) };
        let bytes = picture_bytes_of(order.size) * (order.count as u64 + 1);
        if job.is_cancelled() || !self.queue.make_room(job, bytes) {
            return Err(RuntimeError::Cancelled);
        }
        job.update(|state| (state.stage, state.ahead) = (Stage::Loading, 0));
        let queue = Arc::clone(&self.queue);
        let loaded = self.load(order.model, order.size, &mut |done, kernels| {
            job.update(|state| state.kernels = Some((done, kernels)));
        })?;
        queue.is_in_session(loaded.session.canceller());
        let mut init = order.init.take();
        for index in 0..order.count {
            let last = index + 1 == order.count;
            let init = if last { init.take() } else { init.clone() };
            let finished = Making { job, queue: &queue, order: &order, index }.run(loaded, init)?;
            job.update(|state| state.pictures.push(Arc::new(finished)));
        }
        Ok(())
    }
}

/// One picture of a job.
struct Making<'a> {
    job: &'a Arc<Job>,
    queue: &'a Queue,
    order: &'a Order,
    index: usize,
}

impl Making<'_> {
    fn run(&self, loaded: &mut Loaded, init: Option<Init>) -> Result<Finished, RuntimeError> {
        let request = Request { init, ..self.order.request(self.index) };
        let session = &mut loaded.session;
        let allocations = session.allocations();
        let manifest = session.plan().manifest.clone();
        let (known_step, decode_seconds) = (loaded.step_seconds, loaded.decode_seconds);
        let mut waited = 0.0;
        let mut begun = Instant::now();
        let picture = session.generate(&request, &mut |progress| {
            if self.job.is_cancelled() {
                return ControlFlow::Break(());
            }
            match progress {
                Progress::Prompt => self.begin(known_step, decode_seconds),
                Progress::Step {
                    done,
                    seconds,
                    seconds_left,
                    waited_seconds,
                    picture,
                    decoded,
                    ..
                } => {
                    let trace = StepTrace {
                        picture: self.index,
                        step: done,
                        seconds,
                        waited_seconds: waited_seconds - waited,
                        process_bytes: MeasuredMemory::now(allocations).process_bytes,
                    };
                    waited = waited_seconds;
                    let preview = self.preview(&manifest, picture, decoded);
                    self.step(trace, seconds_left + decode_seconds, preview);
                }
                Progress::Kernels { done, count } => {
                    self.job.update(|state| state.kernels = Some((done, count)));
                }
                Progress::Decode => {
                    begun = Instant::now();
                    self.job.update(|state| {
                        (state.stage, state.seconds_left) = (Stage::Decoding, Some(decode_seconds));
                    });
                }
            }
            ControlFlow::Continue(())
        })?;
        loaded.decode_seconds = begun.elapsed().as_secs_f64();
        loaded.step_seconds = picture.report.times.step_seconds.last().copied();
        self.finish(&request, picture)
    }

    fn begin(&self, step_seconds: Option<f64>, decode_seconds: f64) {
        let steps = (self.order.settings.steps * (self.order.count - self.index)) as f64;
        let left = step_seconds.map(|seconds| seconds * steps + decode_seconds);
        self.job.update(|state| {
            state.stage = Stage::Prompt;
            (state.kernels, state.picture, state.step) = (None, self.index, 0);
            state.seconds_left = left;
        });
    }

    /// `seconds_left`: of this picture.
    fn step(&self, trace: StepTrace, seconds_left: f64, preview: Option<Bytes>) {
        let counters = &self.queue.counters;
        counters.steps.fetch_add(1, Ordering::Relaxed);
        Counters::add_seconds(&counters.step_microseconds, trace.seconds);
        Counters::add_seconds(&counters.waited_microseconds, trace.waited_seconds);
        lock(&self.job.trace).push(trace);
        let rest = self.order.count - self.index - 1;
        let left = seconds_left + (rest * self.order.settings.steps) as f64 * trace.seconds;
        let has_preview = preview.is_some();
        if has_preview {
            *lock(&self.job.preview) = preview;
        }
        self.job.update(|state| {
            (state.stage, state.step) = (Stage::Sampling, trace.step);
            state.seconds_left = Some(left);
            state.preview += usize::from(has_preview);
        });
    }

    /// A PNG file of the picture so far. A preview that cannot be made is left out.
    fn preview(&self, manifest: &Manifest, picture: &[f32], decoded: &[f32]) -> Option<Bytes> {
        if self.order.preview == Preview::None {
            return None;
        }
        let sizes = (manifest.latent, manifest.image);
        let image = Projection::of_model(&manifest.model).preview(picture, decoded, sizes).ok()?;
        let mut file = Vec::new();
        png::write_png(&mut file, &image, None).ok()?;
        file.shrink_to_fit();
        Some(file.into())
    }

    fn finish(&self, request: &Request<'_>, picture: Picture) -> Result<Finished, RuntimeError> {
        let parameters = request.parameters(&picture.report);
        let image: &RgbImage = &picture.rgb;
        let mut file = Vec::new();
        png::write_png(&mut file, image, Some(&parameters))?;
        file.shrink_to_fit();
        let streamed_bytes = picture.report.stream.streamed_bytes;
        self.queue.counters.streamed_bytes.fetch_add(streamed_bytes, Ordering::Relaxed);
        Ok(Finished {
            _counted: Counted::add(&self.queue.pictures_bytes, file.len() as u64),
            png: file.into(),
            seed: request.seed,
            warnings: picture.warnings,
            info: parameters.info_text(image.width(), image.height()),
            report: picture.report,
        })
    }
}
