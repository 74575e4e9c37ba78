//! How a plan is loaded, how its runs are stopped, and what they tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::program::ProgramOptions;

/// Time of one launch on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchTime {
    /// Index into the plan's networks.
    pub network: usize,
    /// Index into the network's steps.
    pub step: usize,
    /// From start to end.
    pub nanoseconds: u64,
}

/// Stops a session's run, from any thread.
#[derive(Clone, Default, Debug)]
pub struct Canceller(Arc<AtomicBool>);

impl Canceller {
    /// Ends the current image or evaluation with `Cancelled`, before its next launch. Does nothing
    /// if there is none.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How a plan is loaded.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct ExecutorOptions {
    /// Times every launch; see [`super::Executor::take_launch_times`].
    pub profiling: bool,
    /// Where compiled programs come from.
    pub programs: ProgramOptions,
    /// Lets the system's page cache keep the weights, in memory outside of the budget.
    pub page_cache: bool,
    /// Records launches once and replays them, on devices with `cl_khr_command_buffer`. `false`
    /// enqueues launches one by one, as `profiling` always does. `None` records if the driver can,
    /// but not on CPUs, where PoCL 3.1 replays more slowly than it enqueues.
    pub command_buffers: Option<bool>,
}
