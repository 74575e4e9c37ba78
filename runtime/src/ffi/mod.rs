//! The C interface, which `include/kiln.h` declares.
//!
//! Every function returns a status, or a value that means failure. The reason is text that the
//! same thread may ask for. No panic reaches the caller: it becomes [`KilnStatus::Internal`]. This
//! module does not know how pictures are made.
//!
//! A change of a signature, a structure or a number here raises [`KILN_ABI_VERSION`].
//! `KILN_WRITE_HEADER=1 cargo test -p kiln-runtime --test header` writes the header.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;

use kiln_bundle::BundleError;

use crate::error::RuntimeError;
use crate::os::library;

pub mod bundle;
pub mod devices;
pub mod generate;
pub mod picture;
pub mod session;

/// Version of this interface. A program compiled with another version must not use the library.
pub const KILN_ABI_VERSION: u32 = 5;

/// Result of a call. `kiln_last_error` has the reason of a failure.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KilnStatus {
    /// Success.
    Ok = 0,
    /// The bundle is damaged, or of another version.
    Bundle = 1,
    /// An argument or a file is invalid.
    Input = 2,
    /// The device, its driver or its library failed, or is too small for the bundle.
    Device = 3,
    /// The bundle needs more memory than the budget.
    Budget = 4,
    /// Cancelled by `kiln_session_cancel` or by a progress callback.
    Cancelled = 5,
    /// Another thread is making an image with this session.
    Busy = 6,
    /// A fault of this library. Close the objects in use.
    Internal = 7,
}

/// Status and text of a failed call.
struct Failure {
    status: KilnStatus,
    text: String,
}

impl Failure {
    fn new(status: KilnStatus, text: impl Into<String>) -> Failure {
        Failure { status, text: text.into() }
    }

    fn input(text: impl Into<String>) -> Failure {
        Failure::new(KilnStatus::Input, text)
    }

    fn null(name: &str) -> Failure {
        Failure::input(format!("{name} is NULL"))
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Failure {
        let status = match (&error, error.exit_code()) {
            (RuntimeError::Cancelled, _) => KilnStatus::Cancelled,
            (RuntimeError::Budget { .. }, _) => KilnStatus::Budget,
            (_, 1) => KilnStatus::Bundle,
            (_, 2) => KilnStatus::Input,
            _ => KilnStatus::Device,
        };
        Failure::new(status, error.to_string())
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Failure {
        RuntimeError::from(error).into()
    }
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn remember(text: &str) {
    // A thread that is ending has no storage for it.
    let _ = LAST_ERROR.try_with(|last| *last.borrow_mut() = c_text(text));
}

/// Text for C. A NUL inside would end it early, so each becomes a space.
fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Runs the body of an exported function. Errors and panics become a status.
fn guard(body: impl FnOnce() -> Result<(), Failure>) -> KilnStatus {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => KilnStatus::Ok,
        Ok(Err(failure)) => {
            remember(&failure.text);
            failure.status
        }
        Err(payload) => {
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            remember(&format!("a fault of this library: {message}"));
            // The destructor of the payload might panic.
            std::mem::forget(payload);
            KilnStatus::Internal
        }
    }
}

/// Like [`guard`], for functions that only free.
fn guard_drop(body: impl FnOnce()) {
    guard(|| {
        body();
        Ok(())
    });
}

/// Text from C; `None` is NULL.
///
/// # Safety
///
/// `text` is NULL or points to bytes that end with a NUL and do not change while it is used.
unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Failure::input(format!("{name} is not UTF-8"))),
    }
}

/// The object of a pointer from C.
///
/// # Safety
///
/// `pointer` is NULL or came from this library, and its object has not been freed.
unsafe fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: by this function's contract.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::null(name))
}

/// Writes a result to the caller's place.
///
/// # Safety
///
/// `out` is NULL or writable. It need not hold a value.
unsafe fn give<T>(out: *mut T, name: &str, value: T) -> Result<(), Failure> {
    if out.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: by this function's contract.
    unsafe { ptr::write(out, value) };
    Ok(())
}

/// Makes an object and passes it to the caller. On failure `*out` is NULL.
///
/// # Safety
///
/// As for [`give`].
unsafe fn create<T>(
    out: *mut *mut T,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    unsafe { give(out, "the place for the result", ptr::null_mut())? };
    let object = Box::into_raw(Box::new(make()?));
    // SAFETY: by this function's contract.
    unsafe { give(out, "the place for the result", object) }
}

/// Frees an object that [`create`] made.
///
/// # Safety
///
/// `object` is NULL or came from [`create`]. Nothing uses it during or after the call.
unsafe fn free<T>(object: *mut T) {
    if !object.is_null() {
        // SAFETY: by this function's contract.
        guard_drop(|| drop(unsafe { Box::from_raw(object) }));
    }
}

/// Version of the library's interface, to be compared with `KILN_ABI_VERSION`.
///
/// Any thread, any time.
#[unsafe(no_mangle)]
pub extern "C" fn kiln_abi_version() -> u32 {
    KILN_ABI_VERSION
}

/// Reason of the last failed call on this thread: one line of UTF-8, empty if no call has failed.
///
/// The text belongs to the library. It is valid on this thread until the next failure.
#[unsafe(no_mangle)]
pub extern "C" fn kiln_last_error() -> *const c_char {
    const NOTHING: &CStr = c"";
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(NOTHING.as_ptr())
}

/// Sets the OpenCL library to use instead of a search.
///
/// `path` is a file or a name that the linker knows. Without this call, the library is that of the
/// environment variable OPENCL_DYLIB_PATH, else the first one found in the usual places.
/// Call it before devices are listed or sessions created, and before other threads use the
/// environment: the choice is made once in a process, and is kept in this variable.
/// Fails with `KILN_STATUS_INPUT` if another library is in use.
///
/// # Safety
///
/// `path` ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_use_opencl(path: *const c_char) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let path = unsafe { text(path, "the path")? }.ok_or_else(|| Failure::null("the path"))?;
        library::use_library(Path::new(path)).map_err(Failure::input)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        // SAFETY: the text is valid until the next failure on this thread.
        unsafe { CStr::from_ptr(kiln_last_error()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status_with_its_message() {
        assert_eq!(guard(|| panic!("of {}", "course")), KilnStatus::Internal);
        assert_eq!(last(), "a fault of this library: of course");
        let elsewhere = std::thread::spawn(last).join().unwrap();
        assert_eq!(elsewhere, "");
    }

    #[test]
    fn null_and_foreign_text_are_refused_by_name() {
        // SAFETY: NULL is allowed, and the bytes end with a NUL.
        let (null, foreign) =
            unsafe { (kiln_use_opencl(ptr::null()), text(c"\xff".as_ptr(), "the prompt")) };
        assert_eq!((null, last().as_str()), (KilnStatus::Input, "the path is NULL"));
        assert_eq!(foreign.map_err(|failure| failure.text).unwrap_err(), "the prompt is not UTF-8");
        assert_eq!(c_text("a\0b").as_c_str(), c"a b");
    }
}
