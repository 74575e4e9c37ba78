//! Advice to the operating system about open files.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Tells the system that it need not keep a range of a file in memory. It may do so all the same.
pub(crate) fn forget(file: &File, at_bytes: u64, len_bytes: u64) {
    let (Ok(at), Ok(len)) = (at_bytes.try_into(), len_bytes.try_into()) else { return };
    // SAFETY: the descriptor is open, and nothing but the system's cache changes.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), at, len, libc::POSIX_FADV_DONTNEED) };
}
