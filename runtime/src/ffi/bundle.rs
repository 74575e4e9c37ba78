//! Bundles for C: open them from a path or a part of a file, and ask what they need.

use std::ffi::{CString, c_char};
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use kiln_bundle::BundleFile;

use super::{Failure, KilnStatus, c_text, create, free, give, given, guard, text};

/// An open bundle. Any thread may use it, several at a time.
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

/// What a bundle is and needs. Its texts belong to the bundle and are valid until it is closed.
#[repr(C)]
pub struct KilnBundleInfo {
    /// Name of the model.
    pub model: *const c_char,
    /// Storage of its weights, for example `fp16`.
    pub precision: *const c_char,
    /// Width of a picture in pixels.
    pub width: u32,
    /// Height of a picture in pixels.
    pub height: u32,
    /// Networks; `kiln_bundle_network` names them.
    pub network_count: u32,
    /// OpenCL extensions that the device must have; `kiln_bundle_extension` names them.
    pub extension_count: u32,
    /// The most memory that the whole process takes, as planned.
    pub peak_bytes: u64,
    /// The memory that the bundle was compiled for.
    pub budget_bytes: u64,
    /// Of the peak, what is allocated on the device.
    pub device_bytes: u64,
    /// The device must allow single allocations of this size.
    pub max_alloc_bytes: u64,
    /// The device must have this much local memory.
    pub local_mem_bytes: u64,
    /// The device must allow work-groups of this size.
    pub work_group_size: u64,
}

/// Opens a bundle and checks all of it but its weights, which are checked as they are read.
///
/// On success `*out` is the caller's, to be closed with `kiln_bundle_close`; else it is NULL.
/// Any thread. Fails with `KILN_STATUS_BUNDLE` or `KILN_STATUS_INPUT`.
///
/// # Safety
///
/// `path` ends with a NUL; `out` may be written.
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

/// As `kiln_bundle_open`, for a bundle that is a part of an open file: `len_bytes` from
/// `offset_bytes` on. An Android asset gives these three if it is stored without compression.
///
/// The descriptor stays the caller's and may be closed at once: the library keeps a duplicate
/// until bundle and sessions are closed. Its position is neither used nor changed.
///
/// # Safety
///
/// `out` may be written.
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
        // SAFETY: it is not -1. If it is not open, or is closed meanwhile, duplicating it fails.
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

/// Closes a bundle; NULL is allowed. Sessions that were made from it stay as they are.
///
/// No thread may use the bundle, or a text from it, at that time or later.
///
/// # Safety
///
/// `bundle` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_bundle_close(bundle: *mut KilnBundle) {
    // SAFETY: by this function's contract.
    unsafe { free(bundle) }
}

/// Tells what a bundle is and what it needs. Any thread.
///
/// # Safety
///
/// `bundle` is open; `out` may be written.
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
            width: plan.manifest.image_px,
            height: plan.manifest.image_px,
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

/// Name of a network, by its index below `network_count`; NULL if there is none.
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

/// Name of an OpenCL extension that the device must have, by its index below
/// `extension_count`; NULL if there is none.
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
