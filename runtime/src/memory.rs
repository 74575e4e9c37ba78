//! Every device allocation and every transfer between host and device.
//!
//! [`DeviceMemory::allocate`] makes one allocation for each part of the arena, for each slot and
//! for staging, and creates all regions as sub-buffers of them. Nothing is allocated afterwards. This
//! module knows offsets and lengths, not contents.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;
use std::slice;
use std::sync::{Mutex, PoisonError};

use kiln_bundle::plan::MemoryPlan;
use opencl3::command_queue::{
    CommandQueue, enqueue_copy_buffer, enqueue_map_buffer, enqueue_read_buffer,
    enqueue_unmap_mem_object, enqueue_write_buffer,
};
use opencl3::context::Context;
use opencl3::error_codes::ClError;
use opencl3::event::Event;
use opencl3::memory::{
    Buffer, CL_MAP_READ, CL_MAP_WRITE, CL_MAP_WRITE_INVALIDATE_REGION, CL_MEM_ALLOC_HOST_PTR,
    CL_MEM_READ_WRITE, ClMem,
};
use opencl3::types::{CL_BLOCKING, CL_NON_BLOCKING, cl_event, cl_mem};

use crate::binding::{Parent, Region};
use crate::error::{At, RuntimeError};

/// Length of a read into mapped memory. Short reads let a cancelled load end soon.
const CHUNK_BYTES: u64 = 4 << 20;

/// Allocations on the device so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allocations {
    /// Calls of `clCreateBuffer` and `clCreateSubBuffer`.
    pub count: u64,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Bytes of all slots.
    pub slot_bytes: u64,
    /// Bytes of the staging buffer.
    pub staging_bytes: u64,
    /// Most bytes that were allocated at one time.
    pub high_water_bytes: u64,
}

/// Fills one chunk of a region: takes the chunk's offset in the region, and its bytes.
pub type Fill<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), RuntimeError> + 'a;

/// All memory of a plan on a device.
pub struct DeviceMemory {
    // Regions are dropped before the buffers that they are part of.
    regions: Vec<Cut>,
    staging: Option<Mutex<Staging>>,
    slots: Vec<Buffer<u8>>,
    arena: Vec<Buffer<u8>>,
    plan: MemoryPlan,
    allocations: Allocations,
}

enum Cut {
    Sub(Buffer<u8>),
    WholeSlot(usize),
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // In reverse order: NVIDIA's driver 580 reads freed memory if sub-buffers are released in
        // the order of their creation.
        while self.regions.pop().is_some() {}
    }
}

impl DeviceMemory {
    /// Allocates the memory of `plan` and creates `regions` in it.
    ///
    /// `unified`: host and device share memory, so that mapping copies nothing.
    /// Errors: `OpenCl`; `Plan` if a region is outside of its allocation.
    pub fn allocate(
        context: &Context,
        queue: &CommandQueue,
        plan: &MemoryPlan,
        regions: &[Region],
        unified: bool,
    ) -> Result<DeviceMemory, RuntimeError> {
        let mut allocations = Allocations::default();
        let host = if unified { CL_MEM_ALLOC_HOST_PTR } else { 0 };
        let mut create = |len_bytes: u64, flags, at: &str| {
            allocations.count += 1;
            allocations.high_water_bytes += len_bytes;
            let describe = || format!("the {at} of {len_bytes} bytes");
            // SAFETY: the context is valid and no host pointer is given.
            let buffer = unsafe {
                let len = len_bytes.max(1) as usize;
                Buffer::<u8>::create(context, CL_MEM_READ_WRITE | flags, len, ptr::null_mut())
            };
            buffer.at("clCreateBuffer", describe)
        };
        let arena = (plan.arena_parts().enumerate())
            .map(|(index, len_bytes)| create(len_bytes, host, &format!("arena's part {index}")))
            .collect::<Result<Vec<_>, _>>()?;
        let slots = (plan.slot_bytes.iter().enumerate())
            .map(|(index, &len_bytes)| create(len_bytes, host, &format!("weight slot {index}")))
            .collect::<Result<Vec<_>, _>>()?;
        let staging = match plan.staging_bytes {
            0 => None,
            len_bytes => {
                let buffer = create(len_bytes, CL_MEM_ALLOC_HOST_PTR, "staging buffer")?;
                Some(Mutex::new(Staging::map(queue, buffer, len_bytes)?))
            }
        };
        allocations.arena_bytes = plan.arena_bytes;
        allocations.slot_bytes = plan.slot_bytes.iter().sum();
        allocations.staging_bytes = plan.staging_bytes;
        let (cuts, plan) = (Vec::with_capacity(regions.len()), plan.clone());
        let mut memory = DeviceMemory { regions: cuts, staging, slots, arena, plan, allocations };
        for region in regions {
            let cut = memory.cut(region)?;
            memory.regions.push(cut);
        }
        Ok(memory)
    }

    fn cut(&mut self, region: &Region) -> Result<Cut, RuntimeError> {
        match region.parent {
            // A kernel does not see the length of its argument, so the slot itself serves.
            Parent::Slot(slot) if region.offset_bytes == 0 => Ok(Cut::WholeSlot(slot.index())),
            _ => {
                let (parent, offset_bytes) = self.parent(*region)?;
                let (offset, len) = (offset_bytes as usize, region.len_bytes as usize);
                // SAFETY: the range is inside of the parent, which `parent` checks.
                let buffer = unsafe { parent.create_sub_buffer(CL_MEM_READ_WRITE, offset, len) };
                self.allocations.count += 1;
                Ok(Cut::Sub(buffer.at("clCreateSubBuffer", || format!("{region:?}"))?))
            }
        }
    }

    /// Allocations on the device.
    pub fn allocations(&self) -> Allocations {
        self.allocations
    }

    /// The buffer of a region of [`crate::binding::Bindings`].
    pub(crate) fn region(&self, index: u32) -> Result<&Buffer<u8>, RuntimeError> {
        match self.regions.get(index as usize) {
            Some(Cut::Sub(buffer)) => Ok(buffer),
            Some(Cut::WholeSlot(slot)) => self.slot(*slot),
            None => Err(RuntimeError::Plan(format!("there is no region {index}"))),
        }
    }

    /// The allocation that has a region, and the region's start in it.
    ///
    /// Errors: `Plan` if the region is empty or not inside of one allocation.
    fn parent(&self, region: Region) -> Result<(&Buffer<u8>, u64), RuntimeError> {
        let Region { parent, offset_bytes, len_bytes } = region;
        let outside = || RuntimeError::Plan(format!("{region:?} is outside its allocation"));
        let (index, start_bytes) = match parent {
            Parent::Arena => {
                let part_bytes = self.plan.arena_part_bytes.max(1);
                ((offset_bytes / part_bytes) as usize, offset_bytes % part_bytes)
            }
            Parent::Slot(slot) => (slot.index(), offset_bytes),
        };
        let (buffer, whole_bytes) = match parent {
            Parent::Arena => (self.arena.get(index), self.plan.arena_parts().nth(index)),
            Parent::Slot(_) => (self.slots.get(index), self.plan.slot_bytes.get(index).copied()),
        };
        let end_bytes = start_bytes.checked_add(len_bytes).ok_or_else(outside)?;
        if len_bytes == 0 || whole_bytes.is_none_or(|whole_bytes| end_bytes > whole_bytes) {
            return Err(outside());
        }
        Ok((buffer.ok_or_else(outside)?, start_bytes))
    }

    fn in_arena(&self, offset_bytes: u64, len: usize) -> Result<(&Buffer<u8>, u64), RuntimeError> {
        self.parent(Region { parent: Parent::Arena, offset_bytes, len_bytes: len as u64 })
    }

    fn slot(&self, index: usize) -> Result<&Buffer<u8>, RuntimeError> {
        self.slots.get(index).ok_or_else(|| RuntimeError::Plan(format!("there is no slot {index}")))
    }

    /// Copies from the host into the arena. Returns when the copy is done.
    pub fn write(
        &self,
        queue: &CommandQueue,
        offset_bytes: u64,
        bytes: &[u8],
        at: &str,
    ) -> Result<(), RuntimeError> {
        let (arena, offset_bytes) = self.in_arena(offset_bytes, bytes.len())?;
        // SAFETY: blocking, so `bytes` outlives the command.
        unsafe { self.enqueue_write(queue, arena, offset_bytes, bytes, CL_BLOCKING) }
            .map(drop)
            .at("clEnqueueWriteBuffer", || at)
    }

    /// Copies from the arena to the host. Returns when the copy and all earlier commands are done.
    pub fn read(
        &self,
        queue: &CommandQueue,
        offset_bytes: u64,
        out: &mut [u8],
        at: &str,
    ) -> Result<(), RuntimeError> {
        let (arena, offset_bytes) = self.in_arena(offset_bytes, out.len())?;
        // SAFETY: blocking, so `out` outlives the command; OpenCL checks the range.
        let done = unsafe {
            enqueue_read_buffer(
                queue.get(),
                arena.get(),
                CL_BLOCKING,
                offset_bytes as usize,
                out.len(),
                out.as_mut_ptr().cast::<c_void>(),
                0,
                ptr::null(),
            )
        };
        event(done).map(drop).at("clEnqueueReadBuffer", || at)
    }

    /// Copies within the arena, in queue order.
    pub fn copy(
        &self,
        queue: &CommandQueue,
        from_bytes: u64,
        to_bytes: u64,
        len_bytes: u64,
        at: &str,
    ) -> Result<(), RuntimeError> {
        let (from, from_bytes) = self.in_arena(from_bytes, len_bytes as usize)?;
        let (to, to_bytes) = self.in_arena(to_bytes, len_bytes as usize)?;
        // SAFETY: OpenCL retains the parts of the arena until the command is done.
        // OpenCL checks the ranges.
        let done = unsafe {
            enqueue_copy_buffer(
                queue.get(),
                from.get(),
                to.get(),
                from_bytes as usize,
                to_bytes as usize,
                len_bytes as usize,
                0,
                ptr::null(),
            )
        };
        event(done).map(drop).at("clEnqueueCopyBuffer", || at)
    }

    /// Fills a region chunk by chunk with the bytes that `fill` writes. Returns when the device
    /// sees them.
    ///
    /// Goes through the staging buffer if the plan has one, else through a mapping.
    pub fn fill(
        &self,
        queue: &CommandQueue,
        region: Region,
        at: &dyn Fn() -> String,
        fill: &mut Fill,
    ) -> Result<(), RuntimeError> {
        match &self.staging {
            Some(staging) => {
                let staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
                self.fill_staged(&staging, queue, region, at, fill)
            }
            None => self.fill_mapped(queue, region, at, fill),
        }
    }

    /// Like [`fill`](Self::fill), always through a mapping.
    pub fn fill_mapped(
        &self,
        queue: &CommandQueue,
        region: Region,
        at: &dyn Fn() -> String,
        fill: &mut Fill,
    ) -> Result<(), RuntimeError> {
        let (buffer, offset_bytes) = self.parent(region)?;
        let flags = CL_MAP_WRITE_INVALIDATE_REGION;
        let pointer = map(queue, buffer, flags, offset_bytes, region.len_bytes)
            .at("clEnqueueMapBuffer", at)?;
        // SAFETY: the mapping has this length and is writable. No command uses the region until it
        // is unmapped: the caller waited for earlier commands and issues none. Any byte is a `u8`.
        let bytes =
            unsafe { slice::from_raw_parts_mut(pointer.cast::<u8>(), region.len_bytes as usize) };
        let mut position_bytes = 0;
        let filled = bytes.chunks_mut(CHUNK_BYTES as usize).try_for_each(|chunk| {
            let at_bytes = position_bytes;
            position_bytes += chunk.len() as u64;
            fill(at_bytes, chunk)
        });
        // SAFETY: `pointer` comes from the mapping, and `bytes` is not used after this.
        let unmapped =
            unsafe { enqueue_unmap_mem_object(queue.get(), buffer.get(), pointer, 0, ptr::null()) };
        let unmapped = event(unmapped).and_then(|done| done.wait());
        filled.and(unmapped.at("clEnqueueUnmapMemObject", at))
    }

    fn fill_staged(
        &self,
        staging: &Staging,
        queue: &CommandQueue,
        region: Region,
        at: &dyn Fn() -> String,
        fill: &mut Fill,
    ) -> Result<(), RuntimeError> {
        let (parent, offset_bytes) = self.parent(region)?;
        let mut pending: [Option<Event>; 2] = [None, None];
        let mut run = || {
            let mut position_bytes = 0;
            for turn in [0, 1].into_iter().cycle() {
                if position_bytes == region.len_bytes {
                    break;
                }
                let [first, second] = &mut pending;
                let pending = if turn == 0 { first } else { second };
                if let Some(done) = pending.take() {
                    done.wait().at("clWaitForEvents", at)?;
                }
                let len = staging.half_bytes.min(region.len_bytes - position_bytes) as usize;
                // SAFETY: the two halves are disjoint and inside of the mapping. The last write
                // from this half is done.
                let chunk = unsafe {
                    let start = staging.pointer.0.add(turn * staging.half_bytes as usize);
                    slice::from_raw_parts_mut(start, len)
                };
                fill(position_bytes, chunk)?;
                let to_bytes = offset_bytes + position_bytes;
                // SAFETY: the half is not touched before the kept event completes.
                let done =
                    unsafe { self.enqueue_write(queue, parent, to_bytes, chunk, CL_NON_BLOCKING) };
                *pending = Some(done.at("clEnqueueWriteBuffer", at)?);
                queue.flush().at("clFlush", at)?;
                position_bytes += len as u64;
            }
            Ok(())
        };
        let filled = run();
        for done in pending.into_iter().flatten() {
            let waited = done.wait().at("clWaitForEvents", at);
            if filled.is_ok() {
                waited?;
            }
        }
        filled
    }

    /// # Safety
    ///
    /// Unless `blocking`, `bytes` must stay as they are until the event is complete.
    unsafe fn enqueue_write(
        &self,
        queue: &CommandQueue,
        parent: &Buffer<u8>,
        offset_bytes: u64,
        bytes: &[u8],
        blocking: u32,
    ) -> Result<Event, ClError> {
        // SAFETY: by this function's contract; OpenCL checks the range.
        let done = unsafe {
            enqueue_write_buffer(
                queue.get(),
                parent.get(),
                blocking,
                offset_bytes as usize,
                bytes.len(),
                bytes.as_ptr().cast::<c_void>(),
                0,
                ptr::null(),
            )
        };
        event(done)
    }
}

/// Pinned host memory from which the device copies. It stays mapped.
struct Staging {
    pointer: Pointer,
    half_bytes: u64,
    _buffer: Buffer<u8>,
}

struct Pointer(*mut u8);

// SAFETY: the memory belongs to the `Staging` with the pointer, and is used under its lock.
unsafe impl Send for Pointer {}

impl Staging {
    fn map(
        queue: &CommandQueue,
        buffer: Buffer<u8>,
        len_bytes: u64,
    ) -> Result<Staging, RuntimeError> {
        let pointer = map(queue, &buffer, CL_MAP_READ | CL_MAP_WRITE, 0, len_bytes)
            .at("clEnqueueMapBuffer", || "the staging buffer")?;
        let half_bytes = (len_bytes / 2).max(1);
        Ok(Staging { pointer: Pointer(pointer.cast()), half_bytes, _buffer: buffer })
    }
}

fn map(
    queue: &CommandQueue,
    buffer: &Buffer<u8>,
    flags: u64,
    offset_bytes: u64,
    len_bytes: u64,
) -> Result<*mut c_void, ClError> {
    let mut pointer: cl_mem = ptr::null_mut();
    // SAFETY: blocking, so the pointer is valid on return; OpenCL checks the range.
    let done = unsafe {
        enqueue_map_buffer(
            queue.get(),
            buffer.get(),
            CL_BLOCKING,
            flags,
            offset_bytes as usize,
            len_bytes as usize,
            &mut pointer,
            0,
            ptr::null(),
        )
    };
    event(done)?;
    Ok(pointer)
}

fn event(done: Result<cl_event, i32>) -> Result<Event, ClError> {
    done.map(Event::new).map_err(ClError)
}
