//! Writes bundles: weights first, then the plan, the header last.

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::signature::sign;
use super::{Header, MAX_TOKENIZER_BYTES, PAGE_BYTES, Section, encode_plans, hash};
use crate::check;
use crate::codec;
use crate::error::BundleError;
use crate::plan::Plan;
use crate::sign::SigningKey;
use crate::whole::WholeFile;

/// Writes a bundle as a [`WholeFile`], which gets its name when it is complete and on the disk. A
/// writer that is dropped before that removes the file.
///
/// Order of calls: any number of [`write_block`](Self::write_block) and
/// [`write_stream`](Self::write_stream), then [`finish`](Self::finish). After an error, drop the
/// writer.
pub struct BundleWriter {
    layout: Layout<BufWriter<WholeFile>>,
    key: Option<SigningKey>,
}

impl BundleWriter {
    /// Starts a bundle. It appears at `path` with [`finish`](Self::finish). An older bundle stays
    /// there until then.
    pub fn create(path: &Path) -> Result<Self, BundleError> {
        let file = WholeFile::create(path).map_err(BundleError::io("create", path))?;
        Ok(BundleWriter { layout: Layout::new(BufWriter::new(file), path)?, key: None })
    }

    /// The same writer, which signs the bundle at its end if there is a key.
    pub fn signed(self, key: Option<SigningKey>) -> Self {
        BundleWriter { key, ..self }
    }

    /// Appends a weight block. Returns its offset in the weights section (a multiple of
    /// [`PAGE_BYTES`]), its length and its checksum, for a [`Block`](crate::plan::Block).
    pub fn write_block(&mut self, bytes: &[u8]) -> Result<(u64, u64, u64), BundleError> {
        let offset_bytes = self.layout.align()?;
        self.layout.append(bytes)?;
        Ok((offset_bytes, bytes.len() as u64, hash(bytes)))
    }

    /// Appends a table in chunks without gaps, so that it need not be in memory at once. Returns
    /// its offset in the weights section, a multiple of [`PAGE_BYTES`].
    ///
    /// Errors: the first one in `chunks`, or the writer's own.
    pub fn write_stream<B, E>(
        &mut self,
        chunks: impl IntoIterator<Item = Result<B, E>>,
    ) -> Result<u64, E>
    where
        B: AsRef<[u8]>,
        E: From<BundleError>,
    {
        let offset_bytes = self.layout.align()?;
        for chunk in chunks {
            self.layout.append(chunk?.as_ref())?;
        }
        Ok(offset_bytes)
    }

    /// Current length of the weights section.
    pub fn weights_len_bytes(&self) -> u64 {
        self.layout.weights_len_bytes
    }

    /// Writes plan, tokenizer, header and signature, waits for the disk, and gives the file its name. Returns
    /// its length.
    ///
    /// Errors: `Unsound` if the plan breaks a rule of [`check::check`], since
    /// [`BundleFile::open`](super::BundleFile::open) would refuse the bundle; `DiskFull`; `Io`. The
    /// unfinished file is removed after any error.
    pub fn finish(self, plan: &Plan, tokenizer: &[u8]) -> Result<u64, BundleError> {
        self.finish_sizes(std::slice::from_ref(plan), tokenizer)
    }

    /// [`finish`](Self::finish) with a plan for each of several sizes of pictures, the default
    /// first. Blocks of different plans may lie at the same place.
    pub fn finish_sizes(self, plans: &[Plan], tokenizer: &[u8]) -> Result<u64, BundleError> {
        let path = self.layout.path.clone();
        let (sink, header) = self.layout.finish(plans, tokenizer)?;
        let mut file_bytes = header.file_bytes;
        let mut file = sink
            .into_inner()
            .map_err(|error| write_error(&path, file_bytes)(error.into_error()))?;
        if let Some(key) = &self.key {
            file_bytes = sign(&mut file, header, plans, key, &path)?;
        }
        file.finish().map_err(write_error(&path, file_bytes))?;
        Ok(file_bytes)
    }
}

/// Writes the sections to any seekable output.
struct Layout<S> {
    sink: S,
    path: PathBuf,
    weights_len_bytes: u64,
    weights_hash: Box<Xxh3>,
}

impl<S: Write + Seek> Layout<S> {
    fn new(mut sink: S, path: &Path) -> Result<Self, BundleError> {
        let blank = [0; PAGE_BYTES as usize];
        sink.write_all(&blank).map_err(write_error(path, 0))?;
        let weights_hash = Box::new(Xxh3::new());
        Ok(Layout { sink, path: path.to_owned(), weights_len_bytes: 0, weights_hash })
    }

    /// Pads the weights to a page boundary and returns it.
    fn align(&mut self) -> Result<u64, BundleError> {
        let padding = self.weights_len_bytes.next_multiple_of(PAGE_BYTES) - self.weights_len_bytes;
        let zeros = [0; PAGE_BYTES as usize];
        self.append(&zeros[..padding as usize])?;
        Ok(self.weights_len_bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        let at_bytes = PAGE_BYTES + self.weights_len_bytes;
        self.sink.write_all(bytes).map_err(write_error(&self.path, at_bytes))?;
        self.weights_hash.update(bytes);
        self.weights_len_bytes += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self, plans: &[Plan], tokenizer: &[u8]) -> Result<(S, Header), BundleError> {
        self.align()?;
        for plan in plans {
            check::check(plan, self.weights_len_bytes).map_err(|violation| {
                BundleError::Unsound { path: self.path.clone(), violation: Box::new(violation) }
            })?;
        }
        if tokenizer.len() as u64 > MAX_TOKENIZER_BYTES {
            return Err(BundleError::TooLarge {
                path: self.path,
                what: "the tokenizer",
                len_bytes: tokenizer.len() as u64,
                max_bytes: MAX_TOKENIZER_BYTES,
            });
        }
        let plan = encode_plans(plans)
            .map_err(|source| BundleError::Codec { path: self.path.clone(), source })?;
        let max_bytes = codec::MAX_PLAN_BYTES as u64;
        if plan.len() as u64 > max_bytes {
            let (what, len_bytes) = ("the plan", plan.len() as u64);
            return Err(BundleError::TooLarge { path: self.path, what, len_bytes, max_bytes });
        }
        let weights = Section {
            offset_bytes: PAGE_BYTES,
            len_bytes: self.weights_len_bytes,
            checksum: self.weights_hash.digest(),
        };
        let plan_at = PAGE_BYTES + self.weights_len_bytes;
        let tokenizer_at = plan_at + plan.len() as u64;
        let file_bytes = tokenizer_at + tokenizer.len() as u64;
        let section = |offset_bytes, bytes: &[u8]| Section {
            offset_bytes,
            len_bytes: bytes.len() as u64,
            checksum: hash(bytes),
        };
        let header = Header {
            file_bytes,
            weights,
            plan: section(plan_at, &plan),
            tokenizer: section(tokenizer_at, tokenizer),
            programs: section(file_bytes, &[]),
            signature: section(file_bytes, &[]),
        };
        self.write_tail(&plan, tokenizer, header).map_err(write_error(&self.path, plan_at))?;
        Ok((self.sink, header))
    }

    fn write_tail(&mut self, plan: &[u8], tokenizer: &[u8], header: Header) -> io::Result<()> {
        self.sink.write_all(plan)?;
        self.sink.write_all(tokenizer)?;
        self.sink.seek(SeekFrom::Start(0))?;
        self.sink.write_all(&header.to_page())?;
        self.sink.flush()
    }
}

pub(super) fn write_error(
    path: &Path,
    written_bytes: u64,
) -> impl FnOnce(io::Error) -> BundleError {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::FileTooLarge
        | io::ErrorKind::WriteZero => {
            BundleError::DiskFull { path: path.to_owned(), written_bytes }
        }
        _ => BundleError::io("write", path)(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::testing;

    /// A disk with room for a number of bytes.
    struct SmallDisk {
        file: Cursor<Vec<u8>>,
        room_bytes: usize,
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room_bytes - (self.file.position() as usize).min(self.room_bytes);
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.file.write(&bytes[..bytes.len().min(room)])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for SmallDisk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.file.seek(to)
        }
    }

    fn write_to(room_bytes: usize) -> Result<(SmallDisk, u64), BundleError> {
        let disk = SmallDisk { file: Cursor::default(), room_bytes };
        let mut layout = Layout::new(disk, Path::new("small.kiln"))?;
        layout.append(&testing::weights())?;
        let (disk, header) = layout.finish(&[testing::plan()], testing::TOKENIZER)?;
        Ok((disk, header.file_bytes))
    }

    #[test]
    fn a_full_disk_is_named_wherever_it_strikes() {
        let (disk, file_bytes) = write_to(usize::MAX).unwrap();
        assert_eq!(disk.file.get_ref().len() as u64, file_bytes);
        for room_bytes in (0..file_bytes as usize).step_by(997) {
            match write_to(room_bytes) {
                Err(error @ BundleError::DiskFull { .. }) => {
                    assert!(error.to_string().contains("small.kiln"), "{error}");
                }
                Err(other) => panic!("{room_bytes} bytes of room: {other}"),
                Ok(_) => panic!("{room_bytes} bytes of room were enough"),
            }
        }
    }
}
