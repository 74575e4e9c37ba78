//! Ctrl-C: the first stops after the current step, the second at once. No file is left incomplete.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::RuntimeError;

/// Whether an image is being made, so that the first Ctrl-C waits for the step's end.
static BUSY: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C has been pressed.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Held while a file is written.
static WRITING: Mutex<()> = Mutex::new(());

/// Begins to listen. If the system does not allow it, Ctrl-C ends the process at once.
pub(super) fn listen() {
    let _ = on_interrupt(|| {
        let again = STOPPED.swap(true, Ordering::SeqCst);
        if again || !BUSY.load(Ordering::SeqCst) {
            let _whole = write();
            process::exit(RuntimeError::Cancelled.exit_code().into());
        }
    });
}

#[cfg(unix)]
use crate::os::interrupt::on_interrupt;

#[cfg(not(unix))]
fn on_interrupt(body: fn()) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(body)
}

/// Makes the first Ctrl-C set [`stopped`] instead of ending the process.
pub(super) fn begin() {
    BUSY.store(true, Ordering::SeqCst);
}

/// Whether Ctrl-C has been pressed.
pub(super) fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// While the guard is held, Ctrl-C does not end the process.
pub(super) fn write() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}
