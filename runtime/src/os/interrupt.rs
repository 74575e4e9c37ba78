//! Ctrl-C, for the command only: the library leaves signals to the application.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

/// The end of a pipe that the handler writes to.
static WRITER: AtomicI32 = AtomicI32::new(-1);

/// Calls `body` on a thread of its own after every Ctrl-C. Ctrl-C does not end the process then.
///
/// Errors: those of the operating system; Ctrl-C then works as before.
pub fn on_interrupt(body: fn()) -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: there is room for both ends.
    if unsafe { libc::pipe(ends.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the ends are open, and nobody else has them.
    let [mut reader, writer] = ends.map(|end| unsafe { File::from_raw_fd(end) });
    for end in [&reader, &writer] {
        // SAFETY: the descriptor is open. Children must not hold it.
        unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let listen = move || {
        while reader.read_exact(&mut [0]).is_ok() {
            body();
        }
    };
    thread::Builder::new().name("kiln-interrupt".into()).spawn(listen)?;
    // Open for the rest of the process.
    WRITER.store(writer.into_raw_fd(), Ordering::SeqCst);
    // SAFETY: all zeros are a valid action that blocks no signal. The handler calls only `write`,
    // which is safe in handlers. With SA_RESTART, interrupted calls go on instead of failing.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut())
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handle(_signal: libc::c_int) {
    let byte = 0u8;
    // SAFETY: one byte is read from a local variable. If the pipe is full, the reader knows
    // already.
    unsafe { libc::write(WRITER.load(Ordering::SeqCst), (&raw const byte).cast(), 1) };
}
