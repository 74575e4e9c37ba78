//! Advice to the operating system about open files.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Tells the system that the page cache need not keep a range of a file. The system may ignore it.
pub(crate) fn forget(file: &File, at_bytes: u64, len_bytes: u64) {
    let (Ok(at), Ok(len)) = (at_bytes.try_into(), len_bytes.try_into()) else { return };
    // SAFETY: the descriptor is open, and nothing but the system's cache changes.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), at, len, libc::POSIX_FADV_DONTNEED) };
}
