//! Streams weights: a thread reads blocks into slots ahead of the kernels that need them.
//!
//! The order of all loads is known in advance: the [`Run`]s of networks, and in each run the plan's
//! `Load` steps. The thread follows this order. Before each load it waits until the slot's last
//! block is free. It reads on across the end of a network into the next one. Resident blocks are
//! part of the order: they are loaded when their network begins.
//!
//! The thread knows nothing of kernels. The executor waits here for blocks and frees them. An error
//! of the thread reaches the executor at its next wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kiln_bundle::BundleFile;
use kiln_bundle::format::BlockCheck;
use kiln_bundle::plan::{BlockId, Residency, SlotId, Step};
use opencl3::command_queue::CommandQueue;
use opencl3::event::Event;
use serde::Serialize;

use crate::binding::{Parent, Region};
use crate::error::{At, RuntimeError};
use crate::memory::DeviceMemory;
use crate::reading::{WeightReader, WeightReads};

/// Interval at which a waiting executor checks whether the device still has work.
const POLL: Duration = Duration::from_millis(1);
/// Stack of the reading thread, as large as a main thread's. Intel's CPU runtime runs kernels on
/// any thread that waits, with their local memory on its stack.
const STACK_BYTES: usize = 8 << 20;

/// The state of the reading thread that outlives a stream.
pub struct Weights {
    bundle: Arc<BundleFile>,
    reader: WeightReader,
    memory: Arc<DeviceMemory>,
    queue: CommandQueue,
    verified: Vec<AtomicBool>,
    /// Of the block that is being read for the first time.
    check: Mutex<BlockCheck>,
    lockstep: bool,
}

/// One run of a network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Run {
    /// Index into the plan's networks.
    pub network: usize,
    /// Resident blocks to load before the run.
    pub residents: Vec<BlockId>,
}

/// Bytes and times of a stream of weights.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct StreamStats {
    /// Bytes read into slots.
    pub streamed_bytes: u64,
    /// Bytes read into the arena.
    pub resident_bytes: u64,
    /// Seconds that the thread spent reading.
    pub read_seconds: f64,
    /// Seconds that the device was idle because a streamed block was missing.
    pub stall_seconds: f64,
    /// Seconds that the device waited for resident blocks.
    pub resident_seconds: f64,
}

impl Weights {
    /// `queue` belongs to the reading thread. `lockstep` reads a block only when the executor waits
    /// for it, so that one thread at a time uses the driver. `page_cache` lets the system's page
    /// cache keep the weights.
    pub fn new(
        bundle: Arc<BundleFile>,
        memory: Arc<DeviceMemory>,
        queue: CommandQueue,
        lockstep: bool,
        page_cache: bool,
    ) -> Self {
        let verified = bundle.plan().blocks.iter().map(|_| AtomicBool::new(false)).collect();
        let reader = WeightReader::new(Arc::clone(&bundle), page_cache);
        let check = Mutex::new(bundle.block_check());
        Weights { bundle, reader, memory, queue, verified, check, lockstep }
    }

    /// How weights are read.
    pub fn reads(&self) -> WeightReads {
        self.reader.reads()
    }

    /// Reads one block to its region. Verifies the block the first time.
    fn load(&self, block: BlockId, to: Region, shared: &Shared) -> Result<(), RuntimeError> {
        let entry =
            self.bundle.plan().blocks.get(block.index()).zip(self.verified.get(block.index()));
        let (entry, verified) = entry.ok_or_else(|| no_block(block))?;
        let mut check = (!verified.load(Ordering::Relaxed)).then(|| {
            let mut check = self.check.lock().unwrap_or_else(PoisonError::into_inner);
            check.reset();
            check
        });
        let at = || format!("the load of weight block {:?}", entry.name);
        self.memory.fill(&self.queue, to, &at, &mut |position_bytes, chunk| {
            if shared.lock().cancelled {
                return Err(RuntimeError::Cancelled);
            }
            let started = Instant::now();
            self.reader.read(entry.offset_bytes + position_bytes, chunk)?;
            let mut state = shared.lock();
            state.stats.read_seconds += started.elapsed().as_secs_f64();
            match to.parent {
                Parent::Slot(_) => state.stats.streamed_bytes += chunk.len() as u64,
                Parent::Arena => state.stats.resident_bytes += chunk.len() as u64,
            }
            drop(state);
            if let Some(check) = &mut check {
                check.update(chunk);
            }
            Ok(())
        })?;
        if let Some(check) = &mut check {
            self.bundle.finish_check(block, check)?;
            verified.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn resident_region(&self, block: BlockId) -> Option<Region> {
        let plan = self.bundle.plan();
        let entry = plan.blocks.get(block.index())?;
        let Residency::Resident(buffer) = entry.residency else { return None };
        let offset_bytes = plan.buffers.get(buffer.index())?.offset_bytes;
        Some(Region { parent: Parent::Arena, offset_bytes, len_bytes: entry.len_bytes })
    }

    /// Performs all loads in order.
    fn serve(&self, runs: &[Run], shared: &Shared) -> Result<(), RuntimeError> {
        let plan = self.bundle.plan();
        for (index, run) in runs.iter().enumerate() {
            if !run.residents.is_empty() {
                shared.wait_until(|state| state.entered > index)?;
            }
            for &block in &run.residents {
                if let Some(region) = self.resident_region(block) {
                    self.load(block, region, shared)?;
                }
                shared.completed_one();
            }
            for step in plan.networks.get(run.network).map_or(&[][..], |network| &network.steps) {
                let Step::Load { block, slot } = *step else { continue };
                if self.lockstep {
                    shared.wait_until(|state| state.expected > state.completed)?;
                }
                // A slot that does not exist counts as free; the load then fails.
                let taken = |state: &State| state.slots.get(slot.index()).is_none_or(|s| s.free);
                shared.wait_until(taken)?;
                let last_use = shared.lock().slots.get_mut(slot.index()).and_then(|slot| {
                    slot.free = false;
                    slot.last_use.take()
                });
                if let Some(event) = last_use {
                    event.wait().at("clWaitForEvents", || format!("the last use of {slot:?}"))?;
                }
                let entry = plan.blocks.get(block.index()).ok_or_else(|| no_block(block))?;
                let (parent, len_bytes) = (Parent::Slot(slot), entry.len_bytes);
                let to = Region { parent, offset_bytes: 0, len_bytes };
                self.load(block, to, shared)?;
                shared.completed_one();
            }
        }
        Ok(())
    }
}

fn no_block(block: BlockId) -> RuntimeError {
    RuntimeError::Plan(format!("there is no {block:?}"))
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    /// Number of runs that the executor has begun.
    entered: usize,
    /// Number of completed loads.
    completed: u64,
    /// Number of loads that the executor has waited for, including the current one.
    expected: u64,
    error: Option<RuntimeError>,
    cancelled: bool,
    /// The thread has ended.
    stopped: bool,
    stats: StreamStats,
}

struct Slot {
    free: bool,
    last_use: Option<Event>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn completed_one(&self) {
        self.update(|state| state.completed += 1);
    }

    fn wait_until(&self, ready: impl Fn(&State) -> bool) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        while !ready(&state) {
            if state.cancelled {
                return Err(RuntimeError::Cancelled);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

/// Wakes the executor when the thread ends, even by a panic.
struct Stopped(Arc<Shared>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.update(|state| state.stopped = true);
    }
}

/// The executor's side of a stream. Dropping it stops and joins the thread.
pub struct Stream {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    runs: Arc<Vec<Run>>,
    /// Number of loads that the executor has waited for.
    expected: u64,
    /// Number of runs that the executor has begun.
    entered: usize,
    /// The block in each slot, from the executor's point of view.
    occupants: Vec<Option<BlockId>>,
}

impl Stream {
    /// Starts the thread for a sequence of runs.
    ///
    /// The device must have finished all earlier work.
    pub fn start(weights: Arc<Weights>, runs: Vec<Run>) -> Result<Stream, RuntimeError> {
        let slot_count = weights.bundle.plan().memory.slot_bytes.len();
        let shared = Arc::new(Shared::default());
        shared.update(|state| {
            state.slots.resize_with(slot_count, || Slot { free: true, last_use: None });
        });
        let runs = Arc::new(runs);
        let (thread_shared, thread_runs) = (Arc::clone(&shared), Arc::clone(&runs));
        let body = move || {
            let stopped = Stopped(thread_shared);
            if let Err(error) = weights.serve(&thread_runs, &stopped.0) {
                stopped.0.update(|state| state.error = Some(error));
            }
        };
        let path = || "kiln-weights".into();
        let thread = (thread::Builder::new().name("kiln-weights".into()).stack_size(STACK_BYTES))
            .spawn(body)
            .map_err(|source| RuntimeError::Io { action: "start thread", path: path(), source })?;
        let occupants = vec![None; slot_count];
        Ok(Stream { shared, thread: Some(thread), runs, expected: 0, entered: 0, occupants })
    }

    /// Whether the next run loads resident blocks. If so, the device must have finished all earlier
    /// work before [`enter`](Self::enter).
    pub fn next_has_residents(&self) -> bool {
        self.runs.get(self.entered).is_some_and(|run| !run.residents.is_empty())
    }

    /// The resident blocks that were loaded for the current run.
    pub fn residents(&self) -> &[BlockId] {
        let current = self.entered.checked_sub(1).and_then(|index| self.runs.get(index));
        current.map_or(&[], |run| &run.residents)
    }

    /// Begins the next run, which must be of `network`, and waits for its resident blocks.
    pub fn enter(&mut self, network: usize) -> Result<(), RuntimeError> {
        let Some(run) = self.runs.get(self.entered).filter(|run| run.network == network) else {
            let message = format!("run {} of the stream is not of network {network}", self.entered);
            return Err(RuntimeError::Plan(message));
        };
        let residents = run.residents.len() as u64;
        self.entered += 1;
        self.expected += residents;
        let entered = self.entered;
        let expected = self.expected;
        self.shared.update(|state| (state.entered, state.expected) = (entered, expected));
        let started = Instant::now();
        self.wait_completed(&|| false)?;
        if residents > 0 {
            let seconds = started.elapsed().as_secs_f64();
            self.shared.update(|state| state.stats.resident_seconds += seconds);
        }
        Ok(())
    }

    /// Waits until a block is in its slot. `busy` tells whether the device still has work.
    ///
    /// Errors: those of the thread; `Plan` if the slot's last block was not freed.
    pub fn wait(
        &mut self,
        block: BlockId,
        slot: SlotId,
        busy: &dyn Fn() -> bool,
    ) -> Result<(), RuntimeError> {
        match self.occupants.get_mut(slot.index()) {
            Some(occupant @ None) => *occupant = Some(block),
            Some(Some(occupant)) => {
                let message =
                    format!("{block:?} goes into {slot:?}, which {occupant:?} still holds");
                return Err(RuntimeError::Plan(message));
            }
            None => return Err(RuntimeError::Plan(format!("there is no {slot:?}"))),
        }
        self.expected += 1;
        let expected = self.expected;
        self.shared.update(|state| state.expected = expected);
        let stalled = self.wait_completed(busy)?;
        if let Some(since) = stalled {
            let seconds = since.elapsed().as_secs_f64();
            self.shared.update(|state| state.stats.stall_seconds += seconds);
        }
        Ok(())
    }

    /// Waits for the expected loads. Returns the time since which the device was idle, if it was.
    fn wait_completed(&self, busy: &dyn Fn() -> bool) -> Result<Option<Instant>, RuntimeError> {
        let mut idle_since = None;
        let mut state = self.shared.lock();
        while state.completed < self.expected {
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            if state.stopped {
                return Err(RuntimeError::StreamStopped);
            }
            if idle_since.is_some() {
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(state);
            if !busy() {
                idle_since = Some(Instant::now());
            }
            state = self.shared.lock();
            if idle_since.is_none() && state.completed < self.expected {
                let waited = self.shared.changed.wait_timeout(state, POLL);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        Ok(idle_since)
    }

    /// Seconds that the device has waited for weights so far.
    pub fn waited_seconds(&self) -> f64 {
        let stats = self.shared.lock().stats;
        stats.stall_seconds + stats.resident_seconds
    }

    /// Frees a block. No launch after `last_use` reads it.
    pub fn free(&mut self, block: BlockId, last_use: Event) {
        let mut occupants = self.occupants.iter_mut().enumerate();
        if let Some((slot, occupant)) = occupants.find(|(_, o)| **o == Some(block)) {
            *occupant = None;
            self.shared.update(|state| {
                if let Some(slot) = state.slots.get_mut(slot) {
                    *slot = Slot { free: true, last_use: Some(last_use) };
                }
            });
        }
    }

    /// Ends the thread and returns its counts. The thread must have nothing left to read.
    pub fn finish(mut self) -> Result<StreamStats, RuntimeError> {
        self.join();
        let mut state = self.shared.lock();
        match state.error.take() {
            Some(RuntimeError::Cancelled) | None => Ok(state.stats),
            Some(error) => Err(error),
        }
    }

    fn join(&mut self) {
        self.shared.update(|state| state.cancelled = true);
        if let Some(thread) = self.thread.take() {
            // A panic was printed, and reached the executor as `StreamStopped`.
            let _ = thread.join();
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.join();
    }
}
