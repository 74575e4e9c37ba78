//! Reads weights past the system's page cache, which a budget does not count and a small device
//! does not have.
//!
//! Direct reads where the file system has them: whole pages, into the destination where that is
//! aligned, else through a buffer that is allocated once. Elsewhere positioned reads, after which
//! the system is told to forget what it kept.
// A device cannot be told why a program ended: what may fail here is an error, never a panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kiln_bundle::{BundleError, BundleFile};

/// Alignment of direct reads in the file and in memory: no disk in use asks for more.
const PAGE_BYTES: usize = 4096;

/// The buffer of direct reads, part of the plan's host memory.
const BUFFER_BYTES: usize = 1 << 20;

/// The way from the disk to the slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WeightReads {
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Through the page cache, which forgets them at once.
    Uncached,
    /// Through the page cache, which may keep them in memory that is not the budget's.
    Cached,
}

/// A bundle's weights, read in one of three ways.
pub struct WeightReader {
    bundle: Arc<BundleFile>,
    direct: Option<Direct>,
    keeps: bool,
}

impl WeightReader {
    /// `keeps`: let the page cache have the weights.
    pub fn new(bundle: Arc<BundleFile>, keeps: bool) -> WeightReader {
        let direct = if keeps { None } else { Direct::open(bundle.file()) };
        WeightReader { bundle, direct, keeps }
    }

    /// The way that is taken; after the first read it does not change.
    pub fn reads(&self) -> WeightReads {
        match &self.direct {
            Some(direct) if !direct.refused.load(Ordering::Relaxed) => WeightReads::Direct,
            _ if self.keeps => WeightReads::Cached,
            _ => WeightReads::Uncached,
        }
    }

    /// Fills `out` with the weights from `offset_bytes` on.
    ///
    /// Errors: as [`BundleFile::read_weights`].
    pub fn read(&self, offset_bytes: u64, out: &mut [u8]) -> Result<(), BundleError> {
        let at_bytes = self.bundle.weights_at_bytes().saturating_add(offset_bytes);
        let end_bytes = offset_bytes.saturating_add(out.len() as u64);
        if let Some(direct) = &self.direct
            && end_bytes <= self.bundle.weights_len_bytes()
            && direct.read(at_bytes, out)
        {
            return Ok(());
        }
        // What direct reads met, these meet again and name.
        self.bundle.read_weights(offset_bytes, out)?;
        if !self.keeps {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            crate::ffi::advice::forget(self.bundle.file(), at_bytes, out.len() as u64);
        }
        Ok(())
    }
}

/// The file once more, opened for direct reads.
struct Direct {
    file: File,
    /// Its file system turned out not to do it.
    refused: AtomicBool,
    buffer: Mutex<Vec<u8>>,
}

impl Direct {
    /// `None` where there are no direct reads.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn open(file: &File) -> Option<Direct> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        // Not by its path, where another file may be by now, or none.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(same).ok()?;
        let buffer = Mutex::new(vec![0; BUFFER_BYTES + PAGE_BYTES]);
        Some(Direct { file, refused: AtomicBool::new(false), buffer })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn open(_: &File) -> Option<Direct> {
        None
    }

    /// Whether it filled `out`.
    fn read(&self, at_bytes: u64, out: &mut [u8]) -> bool {
        if self.refused.load(Ordering::Relaxed) {
            return false;
        }
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = buffer.as_ptr().align_offset(PAGE_BYTES);
        let Some(buffer) = buffer.get_mut(skip..).and_then(|b| b.get_mut(..BUFFER_BYTES)) else {
            return false;
        };
        let filled = fill(out, at_bytes, buffer, &mut |part, at| read_at(&self.file, part, at));
        if matches!(&filled, Err(error) if is_refusal(error)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        filled.is_ok()
    }
}

/// Fills `out` with the bytes from `at_bytes` on by reads of whole pages at page boundaries: into
/// `out` itself where it is aligned, else into `buffer`, which is.
///
/// `read` returns how much it read, less than asked for only before the end of the file.
fn fill(
    out: &mut [u8],
    at_bytes: u64,
    buffer: &mut [u8],
    read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = at_bytes + done as u64;
        let before = (at % PAGE_BYTES as u64) as usize;
        let aligned = before == 0 && rest.as_ptr().addr().is_multiple_of(PAGE_BYTES);
        let whole = rest.len() - rest.len() % PAGE_BYTES;
        let count = match rest.get_mut(..whole).filter(|whole| aligned && !whole.is_empty()) {
            Some(whole) => read(whole, at)?,
            None => {
                let len = (before + rest.len()).next_multiple_of(PAGE_BYTES).min(buffer.len());
                let Some(part) = buffer.get_mut(..len) else { return Err(ended()) };
                let count = read(part, at - before as u64)?;
                let found = part.get(before..count).unwrap_or_default();
                let count = found.len().min(rest.len());
                if let (Some(to), Some(from)) = (rest.get_mut(..count), found.get(..count)) {
                    to.copy_from_slice(from);
                }
                count
            }
        };
        if count == 0 {
            return Err(ended());
        }
        done += count;
    }
    Ok(())
}

fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

/// Alignment that is not enough, or no direct reads at all.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at_bytes: u64) -> io::Result<usize> {
    loop {
        match std::os::unix::fs::FileExt::read_at(file, out, at_bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(not(unix))]
fn read_at(_: &File, _: &mut [u8], _: u64) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of `vec` that begins `shift` bytes behind a page boundary.
    fn shifted(vec: &mut [u8], shift: usize, len: usize) -> &mut [u8] {
        let start = vec.as_ptr().align_offset(PAGE_BYTES) + shift;
        &mut vec[start..start + len]
    }

    #[test]
    fn every_offset_length_and_alignment_is_read_by_whole_pages() {
        let file: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8).collect();
        let (mut memory, mut buffer) = (vec![0; 40_000], vec![0; 3 * PAGE_BYTES]);
        let buffer = shifted(&mut buffer, 0, 2 * PAGE_BYTES);
        for at in [0, 1, 4095, 4096, 5000, 8192, 19_999] {
            for len in [0, 1, 100, 4095, 4096, 4097, 8192, 12_000, 20_000 - at] {
                for (shift, most) in [(0, usize::MAX), (1, usize::MAX), (128, 4096), (0, 4096)] {
                    let out = shifted(&mut memory, shift, len);
                    out.fill(0);
                    // As the system does: it ends at the file's end, and may read less than asked.
                    let mut read = |part: &mut [u8], at: u64| {
                        assert!(part.as_ptr().addr().is_multiple_of(PAGE_BYTES));
                        assert!(part.len().is_multiple_of(PAGE_BYTES) && at.is_multiple_of(4096));
                        let from = &file[(at as usize).min(file.len())..];
                        let count = part.len().min(from.len()).min(most);
                        part[..count].copy_from_slice(&from[..count]);
                        Ok(count)
                    };
                    let filled = fill(out, at as u64, buffer, &mut read);
                    match file.get(at..at + len) {
                        Some(expected) => assert!(filled.is_ok() && out == expected, "{at} {len}"),
                        None => {
                            let kind = filled.unwrap_err().kind();
                            assert_eq!(kind, io::ErrorKind::UnexpectedEof);
                        }
                    }
                }
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn all_ways_read_the_same() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("x.kiln");
        kiln_bundle::testing::write(&path).unwrap();
        // A second one inside of a package, at an odd offset.
        let package = folder.path().join("package");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&package, [&[7; 1001], &bytes[..]].concat()).unwrap();
        let inside = || {
            let file = File::open(&package).unwrap();
            BundleFile::open_at(file, 1001, bytes.len() as u64, &package).unwrap()
        };
        let weights = kiln_bundle::testing::weights();
        for bundle in [BundleFile::open(&path).unwrap(), inside()] {
            let bundle = Arc::new(bundle);
            for keeps in [false, true] {
                let reader = WeightReader::new(Arc::clone(&bundle), keeps);
                let mut out = vec![0; weights.len() - 3];
                reader.read(3, &mut out).unwrap();
                assert!(out == weights[3..]);
                assert_eq!(reader.reads() == WeightReads::Cached, keeps);
                let beyond = reader.read(bundle.weights_len_bytes(), &mut [0]);
                assert!(matches!(beyond, Err(BundleError::OutOfRange { .. })));
            }
        }
    }
}
