//! Reads weights past the system's page cache, whose memory the budget does not count.
//!
//! File systems with direct reads read whole pages: into the destination if it is aligned, else
//! through a buffer that is allocated once. Two reads run at a time, because a disk that waits for
//! each request is slower. Other file systems use positioned reads, after which the system is
//! advised to drop the pages.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use kiln_bundle::{BundleError, BundleFile};
use serde::Serialize;

/// Alignment of direct reads in the file and in memory. Common disks require no more.
const PAGE_BYTES: usize = 4096;

/// Length of a direct read. Each of the two has a buffer, counted in the plan's host memory.
const BUFFER_BYTES: usize = 1 << 20;

/// How weights are read from the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightReads {
    /// Past the page cache (`O_DIRECT`).
    Direct,
    /// Through the page cache, which drops them at once.
    Uncached,
    /// Through the page cache, which may keep them in memory outside of the budget.
    Cached,
}

/// A bundle's weights, read in one of three ways.
pub struct WeightReader {
    bundle: Arc<BundleFile>,
    direct: Option<Direct>,
    keeps: bool,
}

impl WeightReader {
    /// `keeps`: let the page cache keep the weights.
    pub fn new(bundle: Arc<BundleFile>, keeps: bool) -> WeightReader {
        let direct = if keeps { None } else { Direct::open(bundle.file()) };
        WeightReader { bundle, direct, keeps }
    }

    /// How weights are read. After the first read it does not change.
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
        // An error of a direct read occurs here again, and is reported.
        self.bundle.read_weights(offset_bytes, out)?;
        if !self.keeps {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            crate::os::advice::forget(self.bundle.file(), at_bytes, out.len() as u64);
        }
        Ok(())
    }
}

/// The same file, opened again for direct reads.
struct Direct {
    file: Arc<File>,
    /// The file system has refused direct reads.
    refused: AtomicBool,
    state: Mutex<(Buffer, Helper)>,
}

impl Direct {
    /// `None` on systems without direct reads.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn open(file: &File) -> Option<Direct> {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::OpenOptionsExt;
        // Not by its path: another file may be there, or none.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = File::options();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(same).ok()?;
        let file = Arc::new(file);
        let state = Mutex::new((Buffer::new(), Helper::start(Arc::clone(&file)).ok()?));
        Some(Direct { file, refused: AtomicBool::new(false), state })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn open(_: &File) -> Option<Direct> {
        None
    }

    /// Fills `out` if it can. Returns whether it did.
    fn read(&self, at_bytes: u64, out: &mut [u8]) -> bool {
        if self.refused.load(Ordering::Relaxed) {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (buffer, helper) = &mut *state;
        let mut at = at_bytes;
        let filled = out.chunks_mut(2 * BUFFER_BYTES).try_for_each(|pair| {
            let (mine, others) = pair.split_at_mut(pair.len().min(BUFFER_BYTES));
            let others_at = at + mine.len() as u64;
            if !others.is_empty() {
                helper.begin(others_at, others.len())?;
            }
            let filled =
                fill(mine, at, buffer.pages(), &mut |part, at| read_at(&self.file, part, at));
            at = others_at + others.len() as u64;
            // Every `begin` has its `end`, even if the other part failed.
            match others.is_empty() {
                true => filled,
                false => helper.end(others).and(filled),
            }
        });
        if matches!(&filled, Err(error) if is_refusal(error)) {
            self.refused.store(true, Ordering::Relaxed);
        }
        filled.is_ok()
    }
}

/// [`BUFFER_BYTES`] that begin at a page boundary.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Buffer {
        Buffer(vec![0; BUFFER_BYTES + PAGE_BYTES])
    }

    fn pages(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(PAGE_BYTES);
        self.0.get_mut(skip..).and_then(|b| b.get_mut(..BUFFER_BYTES)).unwrap_or_default()
    }
}

/// A thread that reads one part while the caller reads the other. Dropping this ends it.
struct Helper {
    requests: SyncSender<(u64, usize, Buffer)>,
    answers: Receiver<(io::Result<()>, Buffer)>,
    buffer: Option<Buffer>,
}

impl Helper {
    fn start(file: Arc<File>) -> io::Result<Helper> {
        let (requests, asked) = sync_channel::<(u64, usize, Buffer)>(1);
        let (answer, answers) = sync_channel(1);
        let body = move || {
            // Only for reads that begin or end within a page.
            let mut edge = Buffer::new();
            while let Ok((at, len, mut buffer)) = asked.recv() {
                let filled = match buffer.pages().get_mut(..len) {
                    Some(out) => {
                        fill(out, at, edge.pages(), &mut |part, at| read_at(&file, part, at))
                    }
                    None => Err(ended()),
                };
                if answer.send((filled, buffer)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("kiln-read-ahead".into()).spawn(body)?;
        Ok(Helper { requests, answers, buffer: Some(Buffer::new()) })
    }

    fn begin(&mut self, at_bytes: u64, len: usize) -> io::Result<()> {
        let buffer = self.buffer.take().ok_or_else(ended)?;
        self.requests.send((at_bytes, len, buffer)).map_err(|_| ended())
    }

    fn end(&mut self, out: &mut [u8]) -> io::Result<()> {
        let (filled, mut buffer) = self.answers.recv().map_err(|_| ended())?;
        let len = out.len();
        if let Some(found) = buffer.pages().get(..len) {
            out.copy_from_slice(found);
        }
        self.buffer = Some(buffer);
        filled
    }
}

/// Fills `out` with the bytes from `at_bytes` on, by reads of whole pages at page boundaries. Reads
/// go into `out` if it is aligned, else into `buffer`, which is aligned.
///
/// `read` returns the number of bytes that it read, which may be less than asked for.
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

/// Whether the file system needs a larger alignment or has no direct reads.
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

    #[cfg(target_os = "linux")]
    #[test]
    fn the_parts_of_two_threads_make_the_whole() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("x");
        let bytes: Vec<u8> = (0..5_300_000u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let direct = Direct::open(&File::open(&path).unwrap());
        let mut out = vec![0; bytes.len()];
        for (at, len) in [(0, 5_300_000), (4096, 4 << 20), (1001, 3 << 20), (0, (1 << 20) + 1)] {
            let out = &mut out[..len];
            // Where the file system has no direct reads it says so.
            let Some(direct) = &direct else { continue };
            match direct.read(at as u64, out) {
                true => assert!(out == &bytes[at..at + len], "{at} {len}"),
                false => assert!(direct.refused.load(Ordering::Relaxed)),
            }
        }
        if let Some(direct) = direct.filter(|direct| !direct.refused.load(Ordering::Relaxed)) {
            assert!(!direct.read(5_000_000, &mut vec![0; 1 << 20]), "the file ends before");
            assert!(direct.read(0, &mut out[..2 << 20]) && out[..1 << 20] == bytes[..1 << 20]);
        }
    }
}
