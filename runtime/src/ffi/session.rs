//! Sessions for C: a bundle on a device, shared by threads that generate, cancel and trim.

use std::ffi::{c_char, c_void};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use kiln_bundle::lora::Lora;
use kiln_bundle::plan::Size;
use kiln_bundle::sign::{NoPublicKey, PublicKey};

use super::bundle::KilnBundle;
use super::generate::{KilnProgress, KilnProgressFn, KilnStage};
use super::{Failure, KilnStatus, create, free, give, given, guard, text};
use crate::error::RuntimeError;
use crate::memory::Allocations;
use crate::program::cache::ProgramCache;
use crate::report::MeasuredMemory;
use crate::session::{Canceller, Session, SessionOptions};

/// A bundle that is loaded on a device. Any thread may use it; one at a time makes an image.
pub struct KilnSession {
    session: Mutex<Session>,
    canceller: Canceller,
    /// A trim was requested while an image was made.
    trim_asked: AtomicBool,
    peak_bytes: u64,
    budget_bytes: u64,
    /// Device bytes that loading allocates.
    load_bytes: u64,
    /// Device bytes that are allocated.
    device_bytes: AtomicU64,
}

/// Options of a session. Fill them with `kiln_session_options_init` first.
#[repr(C)]
pub struct KilnSessionOptions {
    /// `auto`, an index in the list of devices, or a part of a name. NULL is `auto`.
    pub device: *const c_char,
    /// A folder of the caller for compiled kernels, so that the next session starts sooner. It may
    /// be emptied at any time. One that other users can write is refused with `KILN_STATUS_INPUT`.
    /// NULL keeps none.
    pub cache_folder: *const c_char,
    /// Largest planned peak of the bundle; 0 accepts any.
    pub budget_bytes: u64,
    /// Public key, 64 hexadecimal digits. A bundle that it has not signed is refused with
    /// `KILN_STATUS_BUNDLE` before a kernel is compiled. NULL accepts any bundle: only for those
    /// that the caller has made.
    pub trust_key: *const c_char,
    /// Width of the images in pixels, for a bundle with several sizes; 0 is that of its first.
    pub width: u32,
    /// Height of the images in pixels; 0 is that of the bundle's first size.
    pub height: u32,
    /// Whether the system's page cache keeps weights, in memory outside the budget.
    pub page_cache: bool,
}

/// Memory, planned and measured.
#[repr(C)]
pub struct KilnMemory {
    /// Planned peak of the whole process.
    pub peak_bytes: u64,
    /// Budget: the smaller of the session's and the bundle's.
    pub budget_bytes: u64,
    /// Current allocations on the device.
    pub device_bytes: u64,
    /// Current memory of the process; 0 if the system does not report it.
    pub process_bytes: u64,
    /// Peak memory of the process; 0 if the system does not report it.
    pub process_peak_bytes: u64,
}

impl KilnSession {
    /// The session, unless a thread makes an image with it.
    pub(super) fn try_lock(&self) -> Result<MutexGuard<'_, Session>, Failure> {
        match self.session.try_lock() {
            Ok(session) => Ok(session),
            Err(TryLockError::WouldBlock) => {
                Err(Failure::new(KilnStatus::Busy, "this session is making a picture"))
            }
            Err(TryLockError::Poisoned(_)) => Err(Failure::new(
                KilnStatus::Internal,
                "an earlier call failed inside of this session; close it",
            )),
        }
    }

    /// Records that the device memory is about to be allocated.
    pub(super) fn allocating(&self) {
        self.device_bytes.store(self.load_bytes, Ordering::Relaxed);
    }

    /// Trims if it was requested and no image is made. A thread that makes one calls this at its
    /// end.
    pub(super) fn trim_if_asked(&self) -> Result<(), Failure> {
        while self.trim_asked.load(Ordering::SeqCst) {
            let mut session = match self.try_lock() {
                Err(failure) if failure.status == KilnStatus::Busy => return Ok(()),
                other => other?,
            };
            if self.trim_asked.swap(false, Ordering::SeqCst) {
                session.trim()?;
                let Allocations { arena_bytes, slot_bytes, staging_bytes, .. } =
                    session.allocations();
                let bytes = arena_bytes + slot_bytes + staging_bytes;
                self.device_bytes.store(bytes, Ordering::Relaxed);
                give_free_pages_back();
            }
        }
        Ok(())
    }
}

/// Returns free memory of the C library's allocator to the system.
fn give_free_pages_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: a function of glibc that any thread may call at any time.
        unsafe { malloc_trim(0) };
    }
    #[cfg(target_os = "android")]
    {
        const M_PURGE: i32 = -101;
        unsafe extern "C" {
            fn mallopt(option: i32, value: i32) -> i32;
        }
        // SAFETY: a function of bionic that any thread may call at any time.
        unsafe { mallopt(M_PURGE, 0) };
    }
}

/// Fills options with the defaults: device `auto`, no cache folder, the bundle's budget, any bundle.
///
/// # Safety
///
/// `options` is writable or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_options_init(options: *mut KilnSessionOptions) {
    let defaults = KilnSessionOptions {
        device: ptr::null(),
        cache_folder: ptr::null(),
        budget_bytes: 0,
        trust_key: ptr::null(),
        width: 0,
        height: 0,
        page_cache: false,
    };
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { give(options, "the options", defaults) }
    });
}

/// Loads a bundle on a device: builds its kernels and allocates all its device memory.
///
/// The first time on a device, the driver compiles the kernels, which may take minutes. `progress`
/// is called on this thread (`KILN_STAGE_LOAD`) and may be NULL; its result is ignored here. The
/// bundle may be closed afterwards. The library keeps nothing of `options`. On success the caller
/// owns `*out` and closes it with `kiln_session_close`; else it is NULL. Any thread. Fails with any
/// status except `KILN_STATUS_CANCELLED` and `KILN_STATUS_BUSY`.
///
/// # Safety
///
/// `bundle` is open; `options` is NULL or valid, and its texts end with a NUL; `out` is writable;
/// `progress` may be called with `context` and throws no exception.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_create(
    bundle: *const KilnBundle,
    options: *const KilnSessionOptions,
    progress: KilnProgressFn,
    context: *mut c_void,
    out: *mut *mut KilnSession,
) -> KilnStatus {
    let make = || {
        // SAFETY: by this function's contract.
        let bundle = unsafe { given(bundle, "the bundle")? };
        // SAFETY: by this function's contract.
        let (options, trusted, size) = unsafe { session_options(options)? };
        let file = match trusted {
            Some(key) => Arc::new(bundle.file.signed_by(key)?),
            None => Arc::clone(&bundle.file),
        };
        let own = file.plan().manifest.image;
        let size = size.of(own);
        let file = if size == own { file } else { Arc::new(file.at_size(size)?) };
        let mut observe = |done: usize, of: usize| {
            let Some(progress) = progress else { return };
            let told = KilnProgress::new(KilnStage::Load, done, of);
            // SAFETY: by this function's contract; `told` outlives the call.
            unsafe { progress(context, &told) };
        };
        let session = Session::load(Arc::clone(&file), &options, &mut observe)?;
        let memory = &file.plan().memory;
        let load_bytes = memory.device_bytes();
        let budget_bytes = options.budget_bytes.unwrap_or(u64::MAX);
        Ok(KilnSession {
            canceller: session.canceller(),
            session: Mutex::new(session),
            trim_asked: AtomicBool::new(false),
            peak_bytes: memory.peak_bytes(),
            budget_bytes: budget_bytes.min(memory.budget_bytes),
            load_bytes,
            device_bytes: AtomicU64::new(load_bytes),
        })
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { create(out, make) })
}

/// Sides of an image in pixels; 0 is the bundle's.
#[derive(Clone, Copy, Default)]
struct Sides {
    width: u32,
    height: u32,
}

impl Sides {
    /// The size, in place of the bundle's own.
    fn of(self, own: Size) -> Size {
        let side = |given, own| if given == 0 { own } else { given };
        Size {
            width_px: side(self.width, own.width_px),
            height_px: side(self.height, own.height_px),
        }
    }
}

/// The options of a session, from C, who must have signed the bundle, and the size of images.
///
/// # Safety
///
/// `options` is NULL or valid, and its texts end with a NUL.
unsafe fn session_options(
    options: *const KilnSessionOptions,
) -> Result<(SessionOptions, Option<PublicKey>, Sides), Failure> {
    let mut own = SessionOptions::default();
    // SAFETY: by this function's contract.
    let Some(given) = (unsafe { options.as_ref() }) else {
        return Ok((own, None, Sides::default()));
    };
    // SAFETY: by this function's contract.
    let (device, cache) =
        unsafe { (text(given.device, "the device")?, text(given.cache_folder, "the folder")?) };
    if let Some(device) = device {
        own.device = device.to_owned();
    }
    if let Some(folder) = cache {
        if !Path::new(folder).is_dir() {
            return Err(Failure::input(format!("the cache folder {folder} is not there")));
        }
        let cache = ProgramCache::new(folder);
        let refused = |error| Failure::input(format!("the cache folder {folder}: {error}"));
        cache.check_private().map_err(refused)?;
        own.executor.programs.cache = Some(cache);
    }
    own.executor.page_cache = given.page_cache;
    own.budget_bytes = (given.budget_bytes > 0).then_some(given.budget_bytes);
    // SAFETY: by this function's contract.
    let trusted = unsafe { text(given.trust_key, "the trusted key")? };
    let trusted = trusted
        .map(|key| key.parse().map_err(|error: NoPublicKey| Failure::input(error.to_string())));
    let size = Sides { width: given.width, height: given.height };
    Ok((own, trusted.transpose()?, size))
}

/// Closes a session and frees its memory; NULL is allowed. Images remain.
///
/// No thread may use the session during or after the call: cancel first, and wait for the thread
/// that makes an image.
///
/// # Safety
///
/// `session` is NULL or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_close(session: *mut KilnSession) {
    // SAFETY: by this function's contract.
    unsafe { free(session) };
    give_free_pages_back();
}

/// Cancels the current image: `kiln_session_generate` soon returns `KILN_STATUS_CANCELLED` on its
/// thread. Does nothing if no image is made.
///
/// Any thread, also in a progress callback. Returns at once.
///
/// # Safety
///
/// `session` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_cancel(session: *const KilnSession) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        unsafe { given(session, "the session")? }.canceller.cancel();
        Ok(())
    })
}

/// Switches on a LoRA that `kiln lora` made for the session's bundle, in place of another one, for
/// later images. `strength` is the factor of its change. A NULL `path` switches it off.
///
/// Any thread. Fails with `KILN_STATUS_BUSY` while an image is made, and with `KILN_STATUS_INPUT` if
/// the file cannot be read, or is for another bundle.
///
/// # Safety
///
/// `session` is open; `path` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_set_lora(
    session: *const KilnSession,
    path: *const c_char,
    strength: f32,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let (session, path) = unsafe { (given(session, "the session")?, text(path, "the path")?) };
        if !strength.is_finite() {
            return Err(Failure::input(format!("the LoRA's strength is {strength}")));
        }
        let mut session = session.try_lock()?;
        let lora = path.map(|path| Lora::read(Path::new(path)).map_err(RuntimeError::from));
        let lora = lora.transpose()?.map(|lora| (Arc::new(lora), strength));
        Ok(session.set_loras(lora.into_iter().collect())?)
    })
}

/// Releases device memory, host buffers and free pages of the heap. Compiled kernels stay. Call it
/// in Android's `onTrimMemory`.
///
/// The next image allocates the same memory and reads its weights from the bundle. Its pixels do
/// not change. While an image is made, the memory is released at its end; to release it sooner,
/// cancel as well. Any thread. Fails with `KILN_STATUS_DEVICE`.
///
/// # Safety
///
/// `session` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_trim(session: *const KilnSession) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let session = unsafe { given(session, "the session")? };
        session.trim_asked.store(true, Ordering::SeqCst);
        session.trim_if_asked()
    })
}

/// Writes the memory of the session and its process to `*out`. Any thread, also while an image is
/// made.
///
/// # Safety
///
/// `session` is open; `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_memory(
    session: *const KilnSession,
    out: *mut KilnMemory,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let session = unsafe { given(session, "the session")? };
        let measured = MeasuredMemory::now(Allocations::default());
        let memory = KilnMemory {
            peak_bytes: session.peak_bytes,
            budget_bytes: session.budget_bytes,
            device_bytes: session.device_bytes.load(Ordering::Relaxed),
            process_bytes: measured.process_bytes.unwrap_or(0),
            process_peak_bytes: measured.process_peak_bytes.unwrap_or(0),
        };
        // SAFETY: by this function's contract.
        unsafe { give(out, "the place for the answer", memory) }
    })
}
