//! Launches without events.
//!
//! opencl3 requests an event for every launch, which makes launches slower on NVIDIA's driver. A
//! network has hundreds of launches and needs none of their events.
#![allow(unsafe_code)]

use std::ptr;

use opencl3::command_queue::CommandQueue;
use opencl3::error_codes::ClError;
use opencl3::event::Event;
use opencl3::kernel::Kernel;

/// Work sizes of a launch, as OpenCL takes them.
pub(crate) struct Sizes {
    offset: [usize; 3],
    global: [usize; 3],
    /// `None` leaves the local size to the driver.
    local: Option<[usize; 3]>,
}

impl Sizes {
    pub(crate) fn of(offset: [u64; 3], global: [u64; 3], local: Option<[u64; 3]>) -> Sizes {
        let sizes = |items: [u64; 3]| items.map(|items| items as usize);
        Sizes { offset: sizes(offset), global: sizes(global), local: local.map(sizes) }
    }

    /// Offset, global and local size. The pointers are valid as long as `self`.
    pub(crate) fn pointers(&self) -> [*const usize; 3] {
        let local = self.local.as_ref().map_or(ptr::null(), |local| local.as_ptr());
        [self.offset.as_ptr(), self.global.as_ptr(), local]
    }
}

/// Enqueues a kernel. Its arguments are set, and their memory lives until the queue has finished.
pub(crate) fn launch(queue: &CommandQueue, kernel: &Kernel, sizes: &Sizes) -> Result<(), ClError> {
    let unavailable = || ClError(opencl3::error_codes::DLOPEN_RUNTIME_LOAD_FAILED);
    let driver = cl3::load_library().as_ref().map_err(|_| unavailable())?;
    let [offset, global, local] = sizes.pointers();
    let (queue, kernel, none) = (queue.get(), kernel.get(), ptr::null());
    let no_event = ptr::null_mut();
    match driver.clEnqueueNDRangeKernel(queue, kernel, 3, offset, global, local, 0, none, no_event)
    {
        Some(0) => Ok(()),
        Some(status) => Err(ClError(status)),
        None => Err(unavailable()),
    }
}

/// Like [`launch`], with an event that has the times.
pub(crate) fn launch_timed(
    queue: &CommandQueue,
    kernel: &Kernel,
    sizes: &Sizes,
) -> Result<Event, ClError> {
    let [offset, global, local] = sizes.pointers();
    // SAFETY: the sizes are arrays of three, which the driver copies. The memory is alive.
    unsafe { queue.enqueue_nd_range_kernel(kernel.get(), 3, offset, global, local, &[]) }
}
