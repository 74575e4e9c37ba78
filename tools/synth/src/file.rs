//! Lays a checkpoint out and writes it. Threads generate pieces, and one large write puts each at
//! its position in the file.

use std::fmt;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use half::f16;
use indicatif::{ProgressBar, ProgressStyle};

use crate::Precision;
use crate::values::Values;

/// Names and shapes of `v2-1_512-ema-pruned.safetensors`.
const LISTING: &str = include_str!("../sd21_tensors.json");
/// Largest number of values of a piece: the memory of a thread, and the size of a write.
const PIECE_ELEMS: usize = 1 << 20;

/// A tensor and its position.
#[derive(Debug)]
pub struct Tensor {
    /// Its key.
    pub name: String,
    /// Its dimensions, slowest first.
    pub shape: Vec<usize>,
    elem_count: usize,
    /// Start in the data part, in bytes.
    start_bytes: u64,
}

/// The contents of a file.
#[derive(Debug)]
pub struct Checkpoint {
    precision: Precision,
    /// Sorted by name, which is their order in the file.
    tensors: Vec<Tensor>,
    data_bytes: u64,
}

/// A part of a tensor.
#[derive(Debug, Clone, Copy)]
struct Piece {
    tensor: usize,
    start_elem: usize,
    len: usize,
}

impl Checkpoint {
    /// Lays out the tensors whose names start with one of `prefixes`, or all if there are none.
    ///
    /// Errors: no tensor is left.
    pub fn plan(prefixes: &[String], precision: Precision) -> Result<Self> {
        let listing: std::collections::BTreeMap<String, Vec<usize>> =
            serde_json::from_str(LISTING).context("sd21_tensors.json")?;
        let mut data_bytes = 0;
        let mut tensors = Vec::new();
        for (name, shape) in listing {
            if !prefixes.is_empty() && !prefixes.iter().any(|p| name.starts_with(p)) {
                continue;
            }
            let elem_count = shape.iter().product();
            tensors.push(Tensor { name, shape, elem_count, start_bytes: data_bytes });
            data_bytes += (elem_count * precision.size_bytes()) as u64;
        }
        ensure!(!tensors.is_empty(), "no tensor's name starts with {}", prefixes.join(" or "));
        Ok(Self { precision, tensors, data_bytes })
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Writes the file, under a temporary name until it is complete.
    pub fn write(&self, out: &Path, seed: u64) -> Result<()> {
        let mut part = out.as_os_str().to_owned();
        part.push(".part");
        let part = Path::new(&part);
        let written = self
            .write_part(part, seed)
            .with_context(|| part.display().to_string())
            .and_then(|()| fs::rename(part, out).with_context(|| out.display().to_string()));
        if written.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(part);
        }
        written
    }

    fn write_part(&self, part: &Path, seed: u64) -> Result<()> {
        let header = self.header();
        let mut file = File::create(part)?;
        file.write_all(&header)?;
        let values: Vec<Values> =
            self.tensors.iter().map(|t| Values::of(&t.name, &t.shape, seed)).collect();
        let progress = progress(self.data_bytes);
        let job = Job {
            checkpoint: self,
            values,
            pieces: self.pieces(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            file: Mutex::new(file),
            header_bytes: header.len() as u64,
            progress: &progress,
        };
        let thread_count = std::thread::available_parallelism().map_or(1, usize::from);
        let result = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..thread_count).map(|_| scope.spawn(|| job.work())).collect();
            threads.into_iter().try_for_each(|thread| {
                thread.join().map_err(|_| anyhow!("a writing thread panicked"))?
            })
        });
        progress.finish_and_clear();
        result
    }

    /// The length and the JSON header, padded so that the data part is aligned to 8 bytes.
    fn header(&self) -> Vec<u8> {
        let entry = |t: &Tensor| {
            let end_bytes = t.start_bytes + (t.elem_count * self.precision.size_bytes()) as u64;
            let shape: Vec<String> = t.shape.iter().map(usize::to_string).collect();
            format!(
                r#""{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{end_bytes}]}}"#,
                t.name,
                self.precision.name(),
                shape.join(","),
                t.start_bytes
            )
        };
        let entries: Vec<String> = self.tensors.iter().map(entry).collect();
        let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text);
        header
    }

    fn pieces(&self) -> Vec<Piece> {
        let of = |(tensor, t): (usize, &Tensor)| {
            let elem_count = t.elem_count;
            (0..elem_count).step_by(PIECE_ELEMS).map(move |start_elem| {
                let len = PIECE_ELEMS.min(elem_count - start_elem);
                Piece { tensor, start_elem, len }
            })
        };
        self.tensors.iter().enumerate().flat_map(of).collect()
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors, {:.2} GB", self.tensors.len(), self.data_bytes as f64 / 1e9)
    }
}

/// The state that the writing threads share.
struct Job<'a> {
    checkpoint: &'a Checkpoint,
    /// One for each tensor.
    values: Vec<Values>,
    pieces: Vec<Piece>,
    next: AtomicUsize,
    stop: AtomicBool,
    file: Mutex<File>,
    header_bytes: u64,
    progress: &'a ProgressBar,
}

impl Job<'_> {
    /// Takes pieces until none is left or another thread has failed.
    fn work(&self) -> Result<()> {
        let mut bytes = Vec::new();
        while !self.stop.load(Ordering::Relaxed) {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else {
                break;
            };
            self.generate(*piece, &mut bytes);
            let size_bytes = self.checkpoint.precision.size_bytes();
            let tensor_start_bytes = self.checkpoint.tensors[piece.tensor].start_bytes;
            let at =
                self.header_bytes + tensor_start_bytes + (piece.start_elem * size_bytes) as u64;
            if let Err(e) = self.put(&bytes, at) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(e);
            }
            self.progress.inc(bytes.len() as u64);
        }
        Ok(())
    }

    fn generate(&self, piece: Piece, bytes: &mut Vec<u8>) {
        bytes.clear();
        bytes.resize(piece.len * self.checkpoint.precision.size_bytes(), 0);
        let values = &self.values[piece.tensor];
        match self.checkpoint.precision {
            Precision::Fp32 => {
                let mut words = bytes.as_chunks_mut::<4>().0.iter_mut();
                values.generate(piece.start_elem, piece.len, |v| {
                    if let Some(word) = words.next() {
                        *word = v.to_le_bytes();
                    }
                });
            }
            Precision::Fp16 => {
                let mut words = bytes.as_chunks_mut::<2>().0.iter_mut();
                values.generate(piece.start_elem, piece.len, |v| {
                    if let Some(word) = words.next() {
                        *word = f16::from_f32(v).to_le_bytes();
                    }
                });
            }
        }
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        let mut file = self.file.lock().map_err(|_| anyhow!("a writing thread panicked"))?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)?;
        Ok(())
    }
}

/// A progress bar on standard error. Hidden unless it is a terminal.
fn progress(total_bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(total_bytes);
    let template = "{bar:40} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listing_is_the_whole_model() {
        let checkpoint = Checkpoint::plan(&[], Precision::Fp32).unwrap();
        assert_eq!(checkpoint.to_string(), "1240 tensors, 5.21 GB");
        let elem_count: usize = checkpoint.tensors.iter().map(|t| t.elem_count).sum();
        let in_pieces: usize = checkpoint.pieces().iter().map(|p| p.len).sum();
        assert_eq!(elem_count, in_pieces);
    }

    #[test]
    fn a_file_is_header_and_values() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.safetensors");
        let only = ["model.diffusion_model.out.0".to_owned()];
        Checkpoint::plan(&only, Precision::Fp16).unwrap().write(&out, 12345).unwrap();
        let bytes = fs::read(&out).unwrap();
        let header = concat!(
            r#"{"model.diffusion_model.out.0.bias":"#,
            r#"{"dtype":"F16","shape":[320],"data_offsets":[0,640]},"#,
            r#""model.diffusion_model.out.0.weight":"#,
            r#"{"dtype":"F16","shape":[320],"data_offsets":[640,1280]}}"#
        );
        let header_bytes = header.len().next_multiple_of(8);
        assert_eq!(bytes[..8], (header_bytes as u64).to_le_bytes());
        assert_eq!(std::str::from_utf8(&bytes[8..8 + header_bytes]).unwrap().trim_end(), header);
        let data = &bytes[8 + header_bytes..];
        assert_eq!(data.len(), 1280);
        // From the NumPy program.
        let halves = |at: usize| data[at..at + 8].to_vec();
        let want = |bits: [u16; 4]| bits.map(u16::to_le_bytes).concat();
        assert_eq!(halves(0), want([0xac78, 0x2e3c, 0x25cc, 0x2573]));
        assert_eq!(halves(640), want([0x3a7b, 0x3bdd, 0x3c9b, 0x3b2b]));
        assert!(!folder.path().join("out.safetensors.part").exists());
    }

    #[test]
    fn failures_leave_nothing_behind() {
        let none = Checkpoint::plan(&["no.such".to_owned()], Precision::Fp32);
        assert!(none.unwrap_err().to_string().contains("no.such"));
        let folder = tempfile::tempdir().unwrap();
        let only = ["betas".to_owned()];
        let betas = Checkpoint::plan(&only, Precision::Fp32).unwrap();
        let e = betas.write(&folder.path().join("absent/out"), 0).unwrap_err();
        assert!(format!("{e:#}").contains("out.part: No such file"), "{e:#}");
        let taken = folder.path().join("taken");
        fs::create_dir(&taken).unwrap();
        let e = betas.write(&taken, 0).unwrap_err();
        assert!(format!("{e:#}").contains("taken: Is a directory"), "{e:#}");
        assert!(!folder.path().join("taken.part").exists());
    }
}
