//! Bundles for C: open them from a path or from a part of a file, and query their needs.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use kiln_bundle::BundleFile;

use super::{Failure, KilnStatus, c_text, create, free, give, given, guard, text};

/// An open bundle. Several threads may use it at a time.
pub struct KilnBundle {
    pub(super) file: Arc<BundleFile>,
    model: CString,
    precision: CString,
    networks: Vec<CString>,
    extensions: Vec<CString>,
}

impl KilnBundle {
    fn new(file: BundleFile) -> KilnBundle {
        let plan = file.plan();
        KilnBundle {
            model: c_text(&plan.manifest.model),
            precision: c_text(&plan.manifest.precision),
            networks: plan.networks.iter().map(|network| c_text(&network.name)).collect(),
            extensions: plan.requirements.extensions.iter().map(|name| c_text(name)).collect(),
            file: Arc::new(file),
        }
    }
}

/// Properties and needs of a bundle. The texts belong to the bundle, valid until it is closed.
#[repr(C)]
pub struct KilnBundleInfo {
    /// Name of the model.
    pub model: *const c_char,
    /// Storage of the weights, for example `fp16`.
    pub precision: *const c_char,
    /// Width of an image in pixels.
    pub width: u32,
    /// Height of an image in pixels.
    pub height: u32,
    /// Number of sizes of images that the bundle was compiled for; `kiln_bundle_size` gives them.
    pub size_count: u32,
    /// Number of networks; `kiln_bundle_network` gives their names.
    pub network_count: u32,
    /// Number of OpenCL extensions that the device must have; `kiln_bundle_extension` gives their
    /// names.
    pub extension_count: u32,
    /// Planned peak of the whole process.
    pub peak_bytes: u64,
    /// Budget that the bundle was compiled for.
    pub budget_bytes: u64,
    /// Bytes allocated on the device, a part of the peak.
    pub device_bytes: u64,
    /// Largest single allocation that the device must allow.
    pub max_alloc_bytes: u64,
    /// Local memory that the device must have.
    pub local_mem_bytes: u64,
    /// Largest work-group that the device must allow.
    pub work_group_size: u64,
}

/// Opens a bundle and checks all of it except the weights, which are checked when they are read.
///
/// On success the caller owns `*out` and closes it with `kiln_bundle_close`; else it is NULL.
/// Any thread. Fails with `KILN_STATUS_BUNDLE` or `KILN_STATUS_INPUT`.
///
/// # Safety
///
/// `path` ends with a NUL; `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_open(
    path: *const c_char,
    out: *mut *mut KilnBundle,
) -> KilnStatus {
    // SAFETY: by this function's contract.
    guard(|| unsafe {
        create(out, || {
            let path = text(path, "the path")?.ok_or_else(|| Failure::null("the path"))?;
            Ok(KilnBundle::new(BundleFile::open(Path::new(path))?))
        })
    })
}

/// Like `kiln_bundle_open`, for a bundle that is a part of an open file: `len_bytes` from
/// `offset_bytes` on. An Android asset that is stored without compression gives these three values.
///
/// The caller keeps the descriptor and may close it at once: the library has a duplicate until
/// bundle and sessions are closed. The file position is neither used nor changed.
///
/// # Safety
///
/// `out` is writable.
#[cfg(unix)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_open_fd(
    fd: i32,
    offset_bytes: u64,
    len_bytes: u64,
    out: *mut *mut KilnBundle,
) -> KilnStatus {
    use std::os::fd::BorrowedFd;

    let open = || {
        if fd < 0 {
            return Err(Failure::input(format!("{fd} is not a file descriptor")));
        }
        // SAFETY: the descriptor is not -1. If it is not open, duplicating it fails.
        let theirs = unsafe { BorrowedFd::borrow_raw(fd) };
        let name = format!("file descriptor {fd} from {offset_bytes} on");
        let own = theirs
            .try_clone_to_owned()
            .map_err(|error| Failure::input(format!("cannot duplicate {name}: {error}")))?;
        let file = BundleFile::open_at(own.into(), offset_bytes, len_bytes, Path::new(&name))?;
        Ok(KilnBundle::new(file))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { create(out, open) })
}

/// Closes a bundle; NULL is allowed. Sessions made from it remain open.
///
/// No thread may use the bundle, or a text from it, during or after the call.
///
/// # Safety
///
/// `bundle` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_close(bundle: *mut KilnBundle) {
    // SAFETY: by this function's contract.
    unsafe { free(bundle) }
}

/// Writes the properties and needs of a bundle to `*out`. Any thread.
///
/// # Safety
///
/// `bundle` is open; `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_info(
    bundle: *const KilnBundle,
    out: *mut KilnBundleInfo,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let bundle = unsafe { given(bundle, "the bundle")? };
        let plan = bundle.file.plan();
        let (memory, requirements) = (&plan.memory, &plan.requirements);
        let info = KilnBundleInfo {
            model: bundle.model.as_ptr(),
            precision: bundle.precision.as_ptr(),
            width: plan.manifest.image.width_px,
            height: plan.manifest.image.height_px,
            size_count: bundle.file.sizes().len() as u32,
            network_count: bundle.networks.len() as u32,
            extension_count: bundle.extensions.len() as u32,
            peak_bytes: memory.peak_bytes(),
            budget_bytes: memory.budget_bytes,
            device_bytes: memory.device_bytes(),
            max_alloc_bytes: requirements.max_alloc_bytes,
            local_mem_bytes: requirements.local_mem_bytes,
            work_group_size: requirements.work_group_size,
        };
        // SAFETY: by this function's contract.
        unsafe { give(out, "the place for the answer", info) }
    })
}

/// Writes width and height in pixels of the images of a size, with an index below `size_count`.
/// The first is that of a session without a size. Any thread. Fails with `KILN_STATUS_INPUT`.
///
/// # Safety
///
/// `bundle` is open; `width` and `height` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_size(
    bundle: *const KilnBundle,
    index: u32,
    width: *mut u32,
    height: *mut u32,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let bundle = unsafe { given(bundle, "the bundle")? };
        let size = bundle.file.sizes().get(index as usize);
        let size = size.ok_or_else(|| Failure::input(format!("the bundle has no size {index}")))?;
        // SAFETY: by this function's contract.
        unsafe {
            give(width, "the place for the width", size.width_px)?;
            give(height, "the place for the height", size.height_px)
        }
    })
}

/// Name of the network with an index below `network_count`; NULL if there is none.
///
/// The text belongs to the bundle and is valid until it is closed. Any thread.
///
/// # Safety
///
/// `bundle` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_network(
    bundle: *const KilnBundle,
    index: u32,
) -> *const c_char {
    // SAFETY: by this function's contract.
    name_at(unsafe { bundle.as_ref() }.map(|bundle| &bundle.networks), index)
}

/// Name of a required OpenCL extension with an index below `extension_count`; NULL if there is
/// none.
///
/// The text belongs to the bundle and is valid until it is closed. Any thread.
///
/// # Safety
///
/// `bundle` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_extension(
    bundle: *const KilnBundle,
    index: u32,
) -> *const c_char {
    // SAFETY: by this function's contract.
    name_at(unsafe { bundle.as_ref() }.map(|bundle| &bundle.extensions), index)
}

fn name_at(names: Option<&Vec<CString>>, index: u32) -> *const c_char {
    names.and_then(|names| names.get(index as usize)).map_or(ptr::null(), |name| name.as_ptr())
}
