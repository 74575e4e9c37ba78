//! Reads bundles: everything small is validated when the file is opened, weights on demand.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::programs::Programs;
use super::signature::{self, Signed};
use super::{Header, PAGE_BYTES, ProgramName, Section, hash, plans};
use crate::check::{self, Checked};
use crate::codec;
use crate::error::BundleError;
use crate::plan::{Gather, Plan, ROW_CHECKSUM_BYTES, Size};
use crate::sign::{KEY_BYTES, PublicKey};

mod verify;

pub use verify::BlockCheck;

/// Which bundle is wanted of a file.
#[derive(Clone, Copy, Default)]
struct Wanted {
    /// Size of its picture; `None` for the first.
    size: Option<Size>,
    /// Who must have signed it; `None` for anyone or nobody.
    trusted: Option<PublicKey>,
}

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
    /// What a trusted key has signed. Everything that is read of the bundle is compared with it.
    signed: Option<Signed>,
}

impl BundleFile {
    /// Opens a bundle of any origin and validates all of it except the bytes of weights and
    /// compiled programs.
    ///
    /// Memory: bounded by the file's length and by the limits of [`crate::format`] and
    /// [`crate::codec`], whatever the file contains. Never panics.
    /// Errors: `NotABundle`, `Version`, `Length`, `Corrupt`, `TooLarge`, `Codec`, `Unsound`, `Io`.
    pub fn open(path: &Path) -> Result<Self, BundleError> {
        BundleFile::open_wanted(path, Wanted::default())
    }

    /// Like [`open`](Self::open), for a bundle that `trusted` has signed.
    ///
    /// The signature is verified before the plan is decoded. Later, everything that is read is
    /// compared with what was signed.
    /// Errors: also `Unsigned`, `OtherSigner`, `Forged`.
    pub fn open_signed(path: &Path, trusted: PublicKey) -> Result<Self, BundleError> {
        BundleFile::open_wanted(path, Wanted { size: None, trusted: Some(trusted) })
    }

    fn open_wanted(path: &Path, wanted: Wanted) -> Result<Self, BundleError> {
        let file = File::open(path).map_err(BundleError::io("open", path))?;
        let metadata = file.metadata().map_err(BundleError::io("open", path))?;
        if !metadata.is_file() {
            return Err(BundleError::NotABundle { path: path.to_owned() });
        }
        BundleFile::read(file, 0, metadata.len(), path, wanted)
    }

    /// The same bundle, opened anew as one that `trusted` has signed.
    ///
    /// Errors: as [`open_signed`](Self::open_signed).
    pub fn signed_by(&self, trusted: PublicKey) -> Result<Self, BundleError> {
        let file = self.file.try_clone().map_err(BundleError::io("open", &self.path))?;
        let wanted = Wanted { size: Some(self.plan.manifest.image), trusted: Some(trusted) };
        BundleFile::read(file, self.base_bytes, self.header.file_bytes, &self.path, wanted)
    }

    /// The same bundle with its plan for pictures of another size.
    ///
    /// Errors: `NoSuchSize`; those of [`open`](Self::open).
    pub fn at_size(&self, size: Size) -> Result<Self, BundleError> {
        let file = self.file.try_clone().map_err(BundleError::io("open", &self.path))?;
        let wanted = Wanted { size: Some(size), trusted: self.trusted() };
        BundleFile::read(file, self.base_bytes, self.header.file_bytes, &self.path, wanted)
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
        BundleFile::read(file, offset_bytes, len_bytes, name, Wanted::default())
    }

    /// Reads and validates the bundle between `base_bytes` and `base_bytes + len_bytes`, which must
    /// be in the file.
    fn read(
        file: File,
        base_bytes: u64,
        len_bytes: u64,
        path: &Path,
        wanted: Wanted,
    ) -> Result<Self, BundleError> {
        let mut page = vec![0; len_bytes.min(PAGE_BYTES) as usize];
        read_exact_at(&file, &mut page, base_bytes).map_err(BundleError::io("read", path))?;
        let header = Header::from_page(&page, len_bytes, path)?;
        let read = |section, what| read_section(&file, path, base_bytes, section, what);
        let signed = match wanted.trusted {
            Some(key) => {
                let section = read(header.signature, "the signature")?;
                Some(Signed::read(&section, &header, key, path)?)
            }
            None => None,
        };
        let verify = |at_bytes, bytes: &[u8], what| match &signed {
            Some(signed) if !signed.has(at_bytes, bytes) => Err(signed.forged(path, what)),
            _ => Ok(()),
        };
        let section = read(header.plan, "the plan")?;
        verify(header.plan.offset_bytes, &section, "the plan")?;
        let corrupt = || BundleError::Corrupt { path: path.to_owned(), what: "the plan" };
        let plans = plans::split(&section).ok_or_else(corrupt)?;
        let sizes: Vec<Size> = plans.iter().map(|(size, _)| *size).collect();
        let size = wanted.size.unwrap_or(sizes[0]);
        let Some((_, plan)) = plans.into_iter().find(|(found, _)| *found == size) else {
            return Err(BundleError::NoSuchSize { path: path.to_owned(), wanted: size, sizes });
        };
        let plan = decode(plan, size, path)?;
        let tokenizer = read(header.tokenizer, "the tokenizer")?;
        verify(header.tokenizer.offset_bytes, &tokenizer, "the tokenizer")?;
        let checked = check::check(&plan, header.weights.len_bytes).map_err(|violation| {
            BundleError::Unsound { path: path.to_owned(), violation: Box::new(violation) }
        })?;
        let programs_at_bytes = header.programs.offset_bytes;
        let read_programs = |offset_bytes, out: &mut [u8]| {
            let at_bytes = base_bytes + programs_at_bytes + offset_bytes;
            read_exact_at(&file, out, at_bytes).map_err(BundleError::io("read", path))
        };
        let programs = Programs::read(header.programs, path, &read_programs, &|index| {
            verify(programs_at_bytes, index, "the index of programs")
        })?;
        let path = path.to_owned();
        Ok(BundleFile {
            file,
            path,
            base_bytes,
            header,
            sizes,
            plan,
            checked,
            tokenizer,
            programs,
            signed,
        })
    }

    /// Sizes of pictures that the bundle has a plan for, the default first.
    pub fn sizes(&self) -> &[Size] {
        &self.sizes
    }

    /// The plans of all sizes.
    pub(super) fn all_plans(&self) -> Result<Vec<Plan>, BundleError> {
        let section =
            read_section(&self.file, &self.path, self.base_bytes, self.header.plan, "the plan")?;
        let plans = plans::split(&section).unwrap_or_default();
        plans.into_iter().map(|(size, plan)| decode(plan, size, &self.path)).collect()
    }

    /// The signer that the bundle names, if there is one. Whether the signature is right is known
    /// of a bundle that was [opened with it](Self::open_signed).
    pub fn signer(&self) -> Result<Option<PublicKey>, BundleError> {
        let Section { offset_bytes, len_bytes, .. } = self.header.signature;
        let mut key = vec![0; len_bytes.min(KEY_BYTES as u64) as usize];
        self.read_at(offset_bytes, &mut key)?;
        Ok(signature::signer(&key))
    }

    /// The signer that this bundle was opened with.
    pub fn trusted(&self) -> Option<PublicKey> {
        self.signed.as_ref().map(|signed| signed.signer)
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
    /// Errors: `Truncated` if the file has become shorter since it was opened; `Forged`; `Io`.
    pub fn read_program(&self, name: ProgramName) -> Result<Option<Vec<u8>>, BundleError> {
        let Some(program) = self.programs.find(name) else { return Ok(None) };
        let mut bytes = vec![0; program.len_bytes as usize];
        let at_bytes = self.header.programs.offset_bytes + program.offset_bytes;
        self.read_at(at_bytes, &mut bytes)?;
        match &self.signed {
            Some(signed) if !signed.has(at_bytes, &bytes) => {
                Err(signed.forged(&self.path, "a compiled program"))
            }
            _ => Ok(Some(bytes)),
        }
    }

    /// Reads a row of a table into `out`, which has `gather.row_bytes` bytes, and verifies it.
    ///
    /// Errors: `CorruptRow`; `Forged`; those of [`read_weights`](Self::read_weights).
    pub fn read_row(&self, gather: &Gather, row: u32, out: &mut [u8]) -> Result<(), BundleError> {
        let stride_bytes = gather.row_bytes + ROW_CHECKSUM_BYTES;
        let offset_bytes = gather.table_offset_bytes + u64::from(row) * stride_bytes;
        if let Some(signed) = &self.signed {
            return self.read_signed(signed, offset_bytes, out);
        }
        let mut checksum = [0; ROW_CHECKSUM_BYTES as usize];
        self.read_weights(offset_bytes, out)?;
        self.read_weights(offset_bytes + gather.row_bytes, &mut checksum)?;
        if u64::from_le_bytes(checksum) == hash(out) {
            return Ok(());
        }
        let (path, table) = (self.path.clone(), gather.name.clone());
        Err(BundleError::CorruptRow { path, table, row })
    }

    /// Fills `out` with the weights from `offset_bytes` on, a part of one or more signed pieces.
    fn read_signed(
        &self,
        signed: &Signed,
        offset_bytes: u64,
        out: &mut [u8],
    ) -> Result<(), BundleError> {
        let forged = || signed.forged(&self.path, "a row of a table");
        let at_bytes = self.header.weights.offset_bytes.saturating_add(offset_bytes);
        let mut done = 0;
        while done < out.len() {
            let at_bytes = at_bytes.saturating_add(done as u64);
            let (start_bytes, len_bytes) = signed.piece_at(at_bytes).ok_or_else(forged)?;
            let mut piece = vec![0; len_bytes as usize];
            self.read_at(start_bytes, &mut piece)?;
            let rest = piece.get((at_bytes - start_bytes) as usize..).unwrap_or_default();
            let count = rest.len().min(out.len() - done);
            if count == 0 || !signed.has(start_bytes, &piece) {
                return Err(forged());
            }
            out[done..done + count].copy_from_slice(&rest[..count]);
            done += count;
        }
        Ok(())
    }
}

fn decode(plan: &[u8], size: Size, path: &Path) -> Result<Plan, BundleError> {
    let plan = codec::decode(plan)
        .map_err(|source| BundleError::Codec { path: path.to_owned(), source })?;
    match plan.manifest.image == size {
        true => Ok(plan),
        false => Err(BundleError::Corrupt { path: path.to_owned(), what: "the plan" }),
    }
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
pub(super) fn read_exact_at(file: &File, out: &mut [u8], offset_bytes: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset_bytes)
}

#[cfg(windows)]
pub(super) fn read_exact_at(
    file: &File,
    mut out: &mut [u8],
    mut offset_bytes: u64,
) -> io::Result<()> {
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
