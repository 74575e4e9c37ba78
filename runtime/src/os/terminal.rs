//! The terminal of standard error.

/// Its width in characters; `None` if there is none or it does not say.
pub(crate) fn columns() -> Option<usize> {
    // SAFETY: a structure of integers, for which zeros are valid.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one such structure.
    let answer = unsafe { libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (answer == 0 && size.ws_col > 0).then_some(size.ws_col.into())
}
