//! Reads bundles: everything small is validated when the file is opened, weights on demand.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::programs::Programs;
use super::{Header, PAGE_BYTES, ProgramName, Section, hash, plans};
use crate::check::{self, Checked};
use crate::codec;
use crate::error::BundleError;
use crate::plan::{Block, BlockId, Gather, Plan, ROW_CHECKSUM_BYTES, Size};

/// Length of the chunks in which [`BundleFile::verify_all`] reads weights.
const CHUNK_BYTES: u64 = 1 << 20;

/// An open bundle whose plan has passed [`check::check`].
///
/// Threads may share it: every read has its own position.
pub struct BundleFile {
    file: File,
    path: PathBuf,
    /// Start of the bundle in the file.
    base_bytes: u64,
    header: Header,
    sizes: Vec<Size>,
    plan: Plan,
    checked: Checked,
    tokenizer: Vec<u8>,
    programs: Programs,
}

impl BundleFile {
    /// Opens a bundle of any origin and validates all of it except the bytes of weights and
    /// compiled programs.
    ///
    /// Memory: bounded by the file's length and by the limits of [`crate::format`] and
    /// [`crate::codec`], whatever the file contains. Never panics.
    /// Errors: `NotABundle`, `Version`, `Length`, `Corrupt`, `TooLarge`, `Codec`, `Unsound`, `Io`.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        let file = File::open(path).map_err(BundleError::io("open", path))?;
        let metadata = file.metadata().map_err(BundleError::io("open", path))?;
        if !metadata.is_file() {
            return Err(BundleError::NotABundle { path: path.to_owned() });
        }
        BundleFile::read(file, 0, metadata.len(), path, None)
    }

    /// The same bundle with its plan for pictures of another size.
    ///
    /// Errors: `NoSuchSize`; those of [`open`](Self::open).
    pub fn at_size(self, size: Size) -> Result<Self, BundleError> {
        let file_bytes = self.header.file_bytes;
        BundleFile::read(self.file, self.base_bytes, file_bytes, &self.path, Some(size))
    }

    /// Like [`open`](Self::open), for a bundle that is a part of an open file: `len_bytes` from
    /// `offset_bytes` on, as in an application's package. Errors have `name` in place of the path.
    ///
    /// The file must be readable at any position. Its own position is not changed.
    /// Errors: also `Length` if the file ends before the part.
    pub fn open_at(
        file: File,
        offset_bytes: u64,
        len_bytes: u64,
        name: &Path,
    ) -> Result<Self, BundleError> {
        let metadata = file.metadata().map_err(BundleError::io("open", name))?;
        if !metadata.is_file() {
            return Err(BundleError::NotABundle { path: name.to_owned() });
        }
        let rest_bytes = metadata.len().saturating_sub(offset_bytes);
        if len_bytes > rest_bytes {
            return Err(BundleError::Length {
                path: name.to_owned(),
                expected_bytes: len_bytes,
                found_bytes: rest_bytes,
            });
        }
        BundleFile::read(file, offset_bytes, len_bytes, name, None)
    }

    /// Reads and validates the bundle between `base_bytes` and `base_bytes + len_bytes`, which must
    /// be in the file. `size` selects the plan, by default the first.
    fn read(
        file: File,
        base_bytes: u64,
        len_bytes: u64,
        path: &Path,
        size: Option<Size>,
    ) -> Result<Self, BundleError> {
        let mut page = vec![0; len_bytes.min(PAGE_BYTES) as usize];
        read_exact_at(&file, &mut page, base_bytes).map_err(BundleError::io("read", path))?;
        let header = Header::from_page(&page, len_bytes, path)?;
        let section = read_section(&file, path, base_bytes, header.plan, "the plan")?;
        let corrupt = || BundleError::Corrupt { path: path.to_owned(), what: "the plan" };
        let plans = plans::split(&section).ok_or_else(corrupt)?;
        let sizes: Vec<Size> = plans.iter().map(|(size, _)| *size).collect();
        let wanted = size.unwrap_or(sizes[0]);
        let Some((_, plan)) = plans.into_iter().find(|(size, _)| *size == wanted) else {
            return Err(BundleError::NoSuchSize { path: path.to_owned(), wanted, sizes });
        };
        let plan: Plan = codec::decode(plan)
            .map_err(|source| BundleError::Codec { path: path.to_owned(), source })?;
        if plan.manifest.image != wanted {
            return Err(corrupt());
        }
        let tokenizer = read_section(&file, path, base_bytes, header.tokenizer, "the tokenizer")?;
        let checked = check::check(&plan, header.weights.len_bytes).map_err(|violation| {
            BundleError::Unsound { path: path.to_owned(), violation: Box::new(violation) }
        })?;
        let programs_at_bytes = base_bytes + header.programs.offset_bytes;
        let programs = Programs::read(header.programs, path, &|offset_bytes, out| {
            read_exact_at(&file, out, programs_at_bytes + offset_bytes)
        })?;
        let path = path.to_owned();
        Ok(BundleFile { file, path, base_bytes, header, sizes, plan, checked, tokenizer, programs })
    }

    /// Sizes of pictures that the bundle has a plan for, the default first.
    pub fn sizes(&self) -> &[Size] {
        &self.sizes
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The figures that the checker computed.
    pub fn checked(&self) -> &Checked {
        &self.checked
    }

    /// The tokenizer section.
    pub fn tokenizer(&self) -> &[u8] {
        &self.tokenizer
    }

    /// Length of the weights section, a multiple of [`PAGE_BYTES`].
    pub fn weights_len_bytes(&self) -> u64 {
        self.header.weights.len_bytes
    }

    /// Start of the weights section in the file, a multiple of [`PAGE_BYTES`] if the bundle's start
    /// is one. For readers with a file handle of their own, past the page cache.
    pub fn weights_at_bytes(&self) -> u64 {
        self.base_bytes + self.header.weights.offset_bytes
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// The open file, for advice to the operating system.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Path of the bundle, or the name given to it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` with the weights from `offset_bytes` on.
    ///
    /// Errors: `OutOfRange` if the range leaves the section; `Truncated` if the file has become
    /// shorter since it was opened; `Io`.
    pub fn read_weights(&self, offset_bytes: u64, out: &mut [u8]) -> Result<(), BundleError> {
        let len_bytes = out.len() as u64;
        let end_bytes = offset_bytes.checked_add(len_bytes);
        if end_bytes.is_none_or(|end_bytes| end_bytes > self.header.weights.len_bytes) {
            return Err(BundleError::OutOfRange {
                path: self.path.clone(),
                offset_bytes,
                len_bytes,
                weights_len_bytes: self.header.weights.len_bytes,
            });
        }
        self.read_at(self.header.weights.offset_bytes + offset_bytes, out)
    }

    /// Fills `out` from a position in the bundle on.
    pub(super) fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<(), BundleError> {
        let at_bytes = self.base_bytes + offset_bytes;
        read_exact_at(&self.file, out, at_bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                BundleError::Truncated { path: self.path.clone(), offset_bytes }
            }
            _ => BundleError::io("read", &self.path)(error),
        })
    }

    /// Names of the compiled programs in the bundle.
    pub fn program_names(&self) -> impl Iterator<Item = ProgramName> + '_ {
        self.programs.names()
    }

    /// The bytes of a compiled program as they were written; `None` if the bundle has none of this
    /// name. They are not compared with a checksum.
    ///
    /// Errors: `Truncated` if the file has become shorter since it was opened; `Io`.
    pub fn read_program(&self, name: ProgramName) -> Result<Option<Vec<u8>>, BundleError> {
        let Some(program) = self.programs.find(name) else { return Ok(None) };
        let mut bytes = vec![0; program.len_bytes as usize];
        self.read_at(self.header.programs.offset_bytes + program.offset_bytes, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Reads a row of a table into `out`, which has `gather.row_bytes` bytes, and verifies it.
    ///
    /// Errors: `CorruptRow`; those of [`read_weights`](Self::read_weights).
    pub fn read_row(&self, gather: &Gather, row: u32, out: &mut [u8]) -> Result<(), BundleError> {
        let stride_bytes = gather.row_bytes + ROW_CHECKSUM_BYTES;
        let offset_bytes = gather.table_offset_bytes + u64::from(row) * stride_bytes;
        let mut checksum = [0; ROW_CHECKSUM_BYTES as usize];
        self.read_weights(offset_bytes, out)?;
        self.read_weights(offset_bytes + gather.row_bytes, &mut checksum)?;
        if u64::from_le_bytes(checksum) == hash(out) {
            return Ok(());
        }
        let (path, table) = (self.path.clone(), gather.name.clone());
        Err(BundleError::CorruptRow { path, table, row })
    }

    /// Compares a block's bytes with its checksum.
    ///
    /// Errors: `CorruptBlock`, also if `bytes` has another length than the block; `NoSuchBlock`.
    pub fn verify_block(&self, block: BlockId, bytes: &[u8]) -> Result<(), BundleError> {
        let Some(entry) = self.plan.blocks.get(block.index()) else {
            return Err(BundleError::NoSuchBlock { path: self.path.clone(), block: block.0 });
        };
        if bytes.len() as u64 != entry.len_bytes || hash(bytes) != entry.checksum {
            return Err(self.corrupt_block(block.index()));
        }
        Ok(())
    }

    /// Reads all weights once, in file order, and compares every block and the whole section with
    /// their checksums. The section's checksum covers tables, which are in no block. Then verifies
    /// the compiled programs.
    ///
    /// `progress` receives the number of bytes done, of
    /// [`weights_len_bytes`](Self::weights_len_bytes).
    pub fn verify_all(&self, mut progress: impl FnMut(u64)) -> Result<(), BundleError> {
        let mut order: Vec<usize> = (0..self.plan.blocks.len()).collect();
        order.sort_by_key(|&index| self.plan.blocks[index].offset_bytes);
        let mut pending = order.into_iter().peekable();
        let mut section_hash = Xxh3::new();
        let mut block_hash = Xxh3::new();
        let mut chunk = vec![0; CHUNK_BYTES.min(self.header.weights.len_bytes) as usize];
        let mut at_bytes = 0;
        while at_bytes < self.header.weights.len_bytes {
            let len = CHUNK_BYTES.min(self.header.weights.len_bytes - at_bytes);
            let chunk = &mut chunk[..len as usize];
            self.read_weights(at_bytes, chunk)?;
            section_hash.update(chunk);
            while let Some(&index) = pending.peek() {
                let block = &self.plan.blocks[index];
                block_hash.update(part_of(block, chunk, at_bytes));
                if block.offset_bytes + block.len_bytes > at_bytes + len {
                    break;
                }
                if block_hash.digest() != block.checksum {
                    return Err(self.corrupt_block(index));
                }
                block_hash.reset();
                pending.next();
            }
            at_bytes += len;
            progress(at_bytes);
        }
        if section_hash.digest() != self.header.weights.checksum {
            return Err(BundleError::Corrupt { path: self.path.clone(), what: "a weight table" });
        }
        self.verify_programs()
    }

    fn verify_programs(&self) -> Result<(), BundleError> {
        let programs = self.header.programs;
        let mut chunk = vec![0; CHUNK_BYTES.min(programs.len_bytes) as usize];
        let mut hash = Xxh3::new();
        for at_bytes in (0..programs.len_bytes).step_by(CHUNK_BYTES as usize) {
            let len_bytes = CHUNK_BYTES.min(programs.len_bytes - at_bytes) as usize;
            self.read_at(programs.offset_bytes + at_bytes, &mut chunk[..len_bytes])?;
            hash.update(&chunk[..len_bytes]);
        }
        match hash.digest() == programs.checksum {
            true => Ok(()),
            false => Err(BundleError::Corrupt { path: self.path.clone(), what: "a program" }),
        }
    }

    fn corrupt_block(&self, index: usize) -> BundleError {
        let block = &self.plan.blocks[index];
        BundleError::CorruptBlock {
            path: self.path.clone(),
            block: index as u32,
            name: block.name.clone(),
            offset_bytes: block.offset_bytes,
            len_bytes: block.len_bytes,
        }
    }
}

/// The part of a block in a chunk of the section that starts at `at_bytes`.
fn part_of<'a>(block: &Block, chunk: &'a [u8], at_bytes: u64) -> &'a [u8] {
    let within =
        |offset_bytes: u64| offset_bytes.saturating_sub(at_bytes).min(chunk.len() as u64) as usize;
    &chunk[within(block.offset_bytes)..within(block.offset_bytes + block.len_bytes)]
}

fn read_section(
    file: &File,
    path: &Path,
    base_bytes: u64,
    section: Section,
    what: &'static str,
) -> Result<Vec<u8>, BundleError> {
    let mut bytes = vec![0; section.len_bytes as usize];
    let at_bytes = base_bytes + section.offset_bytes;
    read_exact_at(file, &mut bytes, at_bytes).map_err(BundleError::io("read", path))?;
    if hash(&bytes) != section.checksum {
        return Err(BundleError::Corrupt { path: path.to_owned(), what });
    }
    Ok(bytes)
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], offset_bytes: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset_bytes)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, offset_bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                out = &mut out[count..];
                offset_bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
