//! The user of this process.

/// Number of the user whose rights the process has.
pub(crate) fn id() -> u32 {
    // SAFETY: the call has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}
