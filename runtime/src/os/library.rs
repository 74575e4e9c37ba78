//! The search for the OpenCL library.
//!
//! Phones keep the library under different names, and an application sees only the libraries that
//! its linker namespace admits. The search tries names in order and keeps the reason of each
//! failure for the error message. It passes its result to the OpenCL bindings in the environment
//! variable `OPENCL_DYLIB_PATH`, before their first call.
//!
//! Order: the library given to [`use_library`]; else the user's `OPENCL_DYLIB_PATH`; else the
//! [`CANDIDATES`]. A library that somebody named is never replaced by another.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dlopen2::raw::Library;

/// Where the bindings look for the library. `;` separates several names.
const VARIABLE: &str = "OPENCL_DYLIB_PATH";

/// The library that the bindings open if the variable is not set.
const BINDINGS_DEFAULT: &str = "libOpenCL.so.1";

/// Names of OpenCL on phones: loaders first, then drivers that export OpenCL themselves.
#[cfg(target_os = "android")]
pub const CANDIDATES: &[&str] = &[
    "libOpenCL.so",
    "libOpenCL-pixel.so",
    "libOpenCL-car.so",
    #[cfg(target_pointer_width = "64")]
    "/vendor/lib64/libOpenCL.so",
    #[cfg(target_pointer_width = "64")]
    "/system/vendor/lib64/libOpenCL.so",
    #[cfg(target_pointer_width = "64")]
    "/system/lib64/libOpenCL.so",
    #[cfg(target_pointer_width = "64")]
    "/vendor/lib64/libOpenCL-pixel.so",
    "libGLES_mali.so",
    #[cfg(target_pointer_width = "64")]
    "/vendor/lib64/egl/libGLES_mali.so",
    #[cfg(target_pointer_width = "64")]
    "/vendor/lib64/libGLES_mali.so",
    "libmali.so",
    "libPVROCL.so",
    #[cfg(target_pointer_width = "64")]
    "/vendor/lib64/libPVROCL.so",
    #[cfg(target_pointer_width = "32")]
    "/vendor/lib/libOpenCL.so",
    #[cfg(target_pointer_width = "32")]
    "/system/vendor/lib/libOpenCL.so",
    #[cfg(target_pointer_width = "32")]
    "/vendor/lib/egl/libGLES_mali.so",
    #[cfg(target_pointer_width = "32")]
    "/vendor/lib/libPVROCL.so",
];

/// Names of OpenCL on Linux: the loader with and without its version, then the driver of boards
/// that have no loader.
#[cfg(all(unix, not(any(target_os = "android", target_os = "macos"))))]
pub const CANDIDATES: &[&str] = &["libOpenCL.so.1", "libOpenCL.so", "libmali.so"];

/// Name of OpenCL on macOS.
#[cfg(target_os = "macos")]
pub const CANDIDATES: &[&str] = &["/System/Library/Frameworks/OpenCL.framework/OpenCL"];

/// Name of OpenCL on Windows.
#[cfg(windows)]
pub const CANDIDATES: &[&str] = &["OpenCL.dll"];

/// A library that cannot be used, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Name of the library.
    pub library: String,
    /// Reason that the operating system gives.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.library, self.reason)
    }
}

#[derive(Default)]
struct Choice {
    wanted: Option<PathBuf>,
    loaded: Option<String>,
}

static CHOICE: Mutex<Choice> = Mutex::new(Choice { wanted: None, loaded: None });

/// Sets the library to use instead of the search. Call it before devices are listed.
///
/// Errors, as text: another library is in use already, or the path cannot name a library.
pub fn use_library(path: &Path) -> Result<(), String> {
    let mut choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(text) = path.to_str().filter(|text| !text.contains([';', '\0'])) else {
        return Err(format!("{path:?} cannot name an OpenCL library"));
    };
    match &choice.loaded {
        Some(loaded) if loaded != text => Err(format!(
            "the OpenCL library {loaded} is in use; name another before devices are listed"
        )),
        _ => {
            choice.wanted = Some(path.to_owned());
            Ok(())
        }
    }
}

/// Finds the library, tells the bindings, and returns its name. A search that failed may be
/// repeated.
///
/// Errors: every attempt, in order.
pub(crate) fn load() -> Result<String, Vec<Attempt>> {
    let mut choice = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &choice.loaded {
        return Ok(loaded.clone());
    }
    let named = match &choice.wanted {
        Some(path) => Some(path.to_string_lossy().into_owned()),
        None => env::var(VARIABLE).ok().filter(|libraries| !libraries.is_empty()),
    };
    let names: Vec<&str> = match &named {
        Some(libraries) => libraries.split(';').collect(),
        None => CANDIDATES.to_vec(),
    };
    let found = first_that_serves(&names)?;
    // The environment stays as it is if the bindings would open the same library.
    let theirs = env::var(VARIABLE).unwrap_or_else(|_| BINDINGS_DEFAULT.to_owned());
    if found != theirs {
        tell_bindings(&found);
    }
    choice.loaded = Some(found.clone());
    Ok(found)
}

fn tell_bindings(library: &str) {
    // SAFETY: the standard library locks out Rust code that reads the environment. C code that
    // reads it at this moment is the caller's responsibility: `kiln.h` asks callers to choose the
    // library, or to list devices, before other threads use the environment. It happens once a
    // process.
    unsafe { env::set_var(VARIABLE, library) }
}

fn first_that_serves(names: &[&str]) -> Result<String, Vec<Attempt>> {
    let mut tried = Vec::new();
    for &name in names {
        match open(name) {
            Ok(()) => return Ok(name.to_owned()),
            Err(reason) => tried.push(Attempt { library: name.to_owned(), reason }),
        }
    }
    Err(tried)
}

/// Opens a library for good, if it is OpenCL.
fn open(name: &str) -> Result<(), String> {
    let library = match Library::open(name) {
        Ok(library) => library,
        Err(dlopen2::Error::OpeningLibraryError(error)) => return Err(readable(name, &error)),
        Err(error) => return Err(error.to_string()),
    };
    // SAFETY: only Pixel's library has the symbol, with this type. The function makes the other
    // symbols work, and may be called at any time.
    unsafe {
        if let Ok(enable) = library.symbol::<unsafe extern "C" fn()>("enableOpenCL") {
            enable();
        }
    }
    // SAFETY: the symbol is looked up, not used.
    let symbol = unsafe { library.symbol::<*const ()>("clGetPlatformIDs") };
    match symbol {
        Ok(_) => {
            // Drivers may crash when they are unloaded, and the bindings open this one again.
            std::mem::forget(library);
            Ok(())
        }
        Err(_) => Err("it has no clGetPlatformIDs".into()),
    }
}

/// The system's reason without the name that it repeats, with advice for applications.
fn readable(name: &str, error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix(name).map_or(text.as_str(), |rest| rest.trim_start_matches(": "));
    match name.starts_with('/') && Path::new(name).exists() {
        true => format!("{text}; the file is there: an Android manifest must name it"),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_serves_is_taken_and_the_others_are_explained() {
        let names = ["libKilnNowhere.so", "/etc/passwd", "libc.so.6", "libOpenCL.so.1"];
        assert_eq!(first_that_serves(&names).unwrap(), "libOpenCL.so.1");
        let tried = first_that_serves(&names[..3]).unwrap_err();
        let error: String = tried.iter().map(Attempt::to_string).collect();
        for part in ["libKilnNowhere.so (", "/etc/passwd (", "libc.so.6 (it has no clGet"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_library_in_use_is_not_exchanged() {
        let loaded = load().unwrap();
        assert!(use_library(Path::new(&loaded)).is_ok());
        let error = use_library(Path::new("libOther.so")).unwrap_err();
        assert!(error.contains(&loaded), "{error}");
        assert!(use_library(Path::new("a;b")).is_err());
    }
}
