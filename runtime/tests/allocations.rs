//! After loading, a step of the sampler allocates nothing: not on the device, which the plan
//! forbids, and not on the host either.
//!
//! Counts the calls of Rust's allocator on all threads, so that no other test is in this file, and
//! none of libtest's threads: one of them allocates when a test takes long. What a driver allocates
//! for itself is not ours to count.

mod small;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_runtime::{ExecutorOptions, Progress, Request, Session, SessionOptions};
use small::Small;

/// The system's allocator, which counts what is asked of it.
struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: by this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by this function's contract.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: by this function's contract.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Calls in each step of a picture but the first.
fn calls_of_steps(session: &mut Session, sampler: &str, eta: Option<f32>) -> Vec<u64> {
    const STEPS: usize = 6;
    let mut calls = Vec::with_capacity(STEPS);
    let request = Request {
        prompt: "a red house".into(),
        steps: Some(STEPS),
        sampler: Some(sampler.into()),
        eta,
        ..Request::default()
    };
    let mut before = 0;
    let made = session.generate(&request, &mut |progress| {
        let now = CALLS.load(Ordering::SeqCst);
        if let Progress::Step { done: 2.., .. } = progress {
            calls.push(now - before);
        }
        before = now;
        ControlFlow::Continue(())
    });
    made.unwrap();
    assert_eq!(calls.len(), STEPS - 1);
    calls
}

/// A step after the first allocates nothing.
fn main() {
    let folder = tempfile::tempdir().unwrap();
    let merges = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
    let merges = std::fs::read(merges).unwrap();
    let path = folder.path().join("small.kiln");
    let plain = Small::default();
    for small in [Small { batch: 1, ..Small::default() }, Small { staging_bytes: 64, ..plain }] {
        small.write(&path, &merges);
        for command_buffers in [true, false] {
            let command_buffers = Some(command_buffers);
            let executor = ExecutorOptions { command_buffers, ..ExecutorOptions::default() };
            let options = SessionOptions { executor, ..SessionOptions::default() };
            let mut session = Session::open(&path, &options).unwrap();
            // In a first picture, kernels of later networks may still be loaded beside the steps.
            calls_of_steps(&mut session, "ddim", None);
            for (sampler, eta) in
                [("ddim", None), ("ddim", Some(0.5)), ("heun", None), ("unipc", None)]
            {
                let calls = calls_of_steps(&mut session, sampler, eta);
                assert!(calls.iter().all(|&calls| calls == 0), "{sampler} {eta:?}: {calls:?}");
            }
        }
    }
    // The counter counts.
    let before = CALLS.load(Ordering::SeqCst);
    drop(std::hint::black_box(Box::new(1)));
    assert!(CALLS.load(Ordering::SeqCst) > before);
}
