//! Ctrl-C: the first stops after the step at hand, the second at once; no file is left half done.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::RuntimeError;

/// Whether a picture is on its way, which asks for an orderly end.
static BUSY: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C has been pressed.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Held while a file is written.
static WRITING: Mutex<()> = Mutex::new(());

/// Begins to listen. Where the system does not let it, Ctrl-C ends the process as ever.
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

/// From here on the first Ctrl-C waits for [`stopped`] to be asked.
pub(super) fn begin() {
    BUSY.store(true, Ordering::SeqCst);
}

/// Whether Ctrl-C has been pressed.
pub(super) fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// While this is held, no Ctrl-C ends the process.
pub(super) fn write() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}
