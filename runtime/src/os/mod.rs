//! Calls into the operating system that the standard library does not offer: the search for the
//! OpenCL library, advice on the page cache, Ctrl-C, the width of the terminal, the user.
//!
//! Knows nothing of the rest of the crate.
#![allow(unsafe_code)]

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) mod advice;
#[cfg(all(unix, feature = "cli"))]
pub(crate) mod interrupt;
pub mod library;
#[cfg(all(unix, feature = "cli"))]
pub(crate) mod terminal;
#[cfg(unix)]
pub(crate) mod user;
