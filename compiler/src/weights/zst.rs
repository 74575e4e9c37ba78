//! `.safetensors.zst`: decompressed as a stream into an unlinked temporary file, then read as a
//! safetensors file.
//!
//! The header comes first and states the length of the data. Garbage is therefore refused before
//! anything is written, and a stream cannot fill the disk with more than its header declares, which
//! is limited by the length of the compressed file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::one_line;
use super::safetensors::{Header, from_parts};
use super::stored::StoredFile;

/// Largest accepted window in bytes, the default of `zstd -d`.
const MAX_WINDOW_BYTES: u64 = 128 << 20;
/// Data that is decompressed whatever the length of the compressed file, in bytes.
const SMALL_BYTES: u64 = 64 << 20;
/// Most bytes of data for a byte of a larger compressed file. Trained weights hardly compress.
const MAX_RATIO: u64 = 100;
/// Bytes read from the compressed file, and written to the temporary one, at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Decompresses `path` and opens the result.
///
/// Errors: a truncated or corrupt stream; contents that are no safetensors file; no room in the
/// temporary folder.
pub fn open(path: &Path) -> Result<StoredFile> {
    let source = File::open(path).with_context(|| path.display().to_string())?;
    let compressed_bytes = source.metadata().with_context(|| path.display().to_string())?.len();
    let mut frames = Frames::new(BufReader::with_capacity(CHUNK_BYTES, source));
    let header = Header::read(&mut frames, path)?;
    check_ratio(path, header.data_bytes, compressed_bytes)?;
    let folder = std::env::temp_dir();
    let mut spool = tempfile::tempfile_in(&folder).with_context(|| {
        let (path, folder) = (path.display(), folder.display());
        format!("{path}: no temporary file in {folder}; set TMPDIR to a folder that can be written")
    })?;
    copy_data(&mut frames, &mut spool, header.data_bytes, path, &folder)?;
    Ok(from_parts(path, spool, header, 0))
}

/// Refuses a header that declares much more data than a compressed checkpoint has.
fn check_ratio(path: &Path, data_bytes: u64, compressed_bytes: u64) -> Result<()> {
    if data_bytes <= SMALL_BYTES.max(compressed_bytes.saturating_mul(MAX_RATIO)) {
        return Ok(());
    }
    bail!(
        "{}: declares {data_bytes} bytes of data, over {MAX_RATIO} times its own \
         {compressed_bytes}; if you trust it, decompress it with `zstd -d`",
        path.display()
    )
}

/// Copies exactly `data_bytes` and expects the stream to end there.
fn copy_data(
    frames: &mut impl Read,
    spool: &mut impl Write,
    data_bytes: u64,
    path: &Path,
    folder: &Path,
) -> Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut copied_bytes = 0;
    loop {
        let n = frames.read(&mut chunk).with_context(|| path.display().to_string())?;
        if n == 0 {
            break;
        }
        copied_bytes += n as u64;
        if copied_bytes > data_bytes {
            bail!(
                "{}: more than the {data_bytes} bytes of data that its header declares; the file \
                 is damaged, copy or download it again",
                path.display()
            );
        }
        spool.write_all(&chunk[..n]).map_err(|e| spool_error(e, data_bytes, path, folder))?;
    }
    if copied_bytes < data_bytes {
        bail!(
            "{}: truncated: {data_bytes} bytes of data expected, {copied_bytes} found; copy or \
             download it again",
            path.display()
        );
    }
    spool.flush().map_err(|e| spool_error(e, data_bytes, path, folder))
}

fn spool_error(e: io::Error, data_bytes: u64, path: &Path, folder: &Path) -> anyhow::Error {
    let (path, folder) = (path.display(), folder.display());
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => anyhow!(
            "{folder}: no room for the {data_bytes} bytes that {path} decompresses to; free some, \
             or set TMPDIR to a folder on a larger disk"
        ),
        _ => anyhow!(e).context(format!("{folder}: writing the decompressed form of {path}")),
    }
}

/// The decompressed bytes of all frames of a file in sequence, with verified checksums.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self { source, decoder, in_frame: false }
    }

    /// Decodes until there are bytes to collect. False at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.in_frame {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let one = BlockDecodingStrategy::UptoBlocks(1);
                    if let Err(e) = self.decoder.decode_blocks(&mut self.source, one) {
                        return Err(self.explain(e));
                    }
                }
                if self.decoder.can_collect() > 0 {
                    return Ok(true);
                }
                self.end_frame()?;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            self.begin_frame()?;
        }
    }

    fn begin_frame(&mut self) -> io::Result<()> {
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let length = u64::from(length);
                let skipped = io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                if skipped < length {
                    return Err(truncated());
                }
            }
            Err(e) => return Err(self.explain(e)),
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        let stored = self.decoder.get_checksum_from_data();
        if stored.is_some() && stored != self.decoder.get_calculated_checksum() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "corrupt: its zstd checksum does not match; copy or download it again",
            ));
        }
        Ok(())
    }

    /// A decoder error in the user's terms. At the end of the file it means truncation.
    fn explain(&mut self, e: FrameDecoderError) -> io::Error {
        if let FrameDecoderError::WindowSizeTooBig { requested, max } = e {
            return io::Error::other(format!(
                "compressed with a window of {requested} bytes, {max} at most are accepted; \
                 decompress it with `zstd -d --long=31`"
            ));
        }
        if let FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) = e
        {
            return io::Error::new(
                io::ErrorKind::InvalidData,
                "not a Zstandard file, though its name ends in .zst; if it is a .safetensors file, \
                 rename it, else download it again",
            );
        }
        match self.source.fill_buf() {
            Ok([]) => truncated(),
            Ok(_) => io::Error::new(
                io::ErrorKind::InvalidData,
                format!("corrupt zstd stream: {}; copy or download it again", flat(&e)),
            ),
            Err(e) => e,
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() || !self.fill()? {
            return Ok(0);
        }
        self.decoder.read(into)
    }
}

fn truncated() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "truncated: the zstd stream breaks off; copy or download it again",
    )
}

fn flat(e: &FrameDecoderError) -> String {
    one_line(&e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer to a full disk.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_says_where_and_how_much() {
        let (path, folder) = (Path::new("m.safetensors.zst"), Path::new("/scratch"));
        let e = copy_data(&mut &[1u8, 2][..], &mut Full, 2, path, folder).unwrap_err();
        let text = format!("{e:#}");
        assert!(text.starts_with("/scratch: no room for the 2 bytes"), "{text}");
        assert!(text.contains("m.safetensors.zst") && text.contains("TMPDIR"), "{text}");
    }

    #[test]
    fn data_must_end_where_the_header_says() {
        let (path, folder) = (Path::new("m.zst"), Path::new("/tmp"));
        let copy =
            |declared| copy_data(&mut &[0u8; 4][..], &mut Vec::new(), declared, path, folder);
        assert!(copy(4).is_ok());
        assert!(copy(5).unwrap_err().to_string().contains("truncated"));
        assert!(copy(3).unwrap_err().to_string().contains("more than the 3 bytes"));
    }
}
