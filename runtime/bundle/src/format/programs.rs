//! The section of compiled programs, which is empty in a new bundle.
//!
//! ```text
//! 0    number of programs
//! 8    a row for each: name (16 bytes), start in the section, length (8 bytes each)
//!      the programs
//! ```
//!
//! A program's bytes are what the runtime's cache has in a file: they say what they were compiled
//! from and for which driver, and have a checksum.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use super::signature::sign;
use super::writer::write_error;
use super::{BundleFile, Header, Section};
use crate::error::BundleError;
use crate::sign::SigningKey;
use crate::whole::WholeFile;

/// Most programs in a bundle.
pub const MAX_PROGRAMS: u64 = 1 << 16;

/// Name of a compiled program: the hash of everything that it depends on.
pub type ProgramName = u128;

/// Length of the chunks in which a bundle is copied.
const CHUNK_BYTES: u64 = 1 << 20;
const COUNT_BYTES: u64 = 8;
const ROW_BYTES: usize = 32;

/// Fills a slice from a position in the section.
pub(super) type Read<'a> = dyn Fn(u64, &mut [u8]) -> Result<(), BundleError> + 'a;

/// The index of the section.
#[derive(Default)]
pub(super) struct Programs {
    index_bytes: u64,
    programs: Vec<(ProgramName, Section)>,
}

impl Programs {
    /// Reads the index. `verify` receives all of it.
    ///
    /// Errors: `Corrupt` if a program is not in the section; those of `read` and `verify`.
    pub(super) fn read(
        section: Section,
        path: &Path,
        read: &Read,
        verify: &dyn Fn(&[u8]) -> Result<(), BundleError>,
    ) -> Result<Programs, BundleError> {
        if section.len_bytes == 0 {
            return Ok(Programs::default());
        }
        let corrupt = || BundleError::Corrupt { path: path.to_owned(), what: "a program" };
        let mut index = vec![0; COUNT_BYTES as usize];
        if section.len_bytes < COUNT_BYTES {
            return Err(corrupt());
        }
        read(0, &mut index)?;
        let count = super::u64_at(&index, 0);
        if count > MAX_PROGRAMS || index_bytes(count) > section.len_bytes {
            return Err(corrupt());
        }
        index.resize(index_bytes(count) as usize, 0);
        read(0, &mut index)?;
        verify(&index)?;
        let rows = index[COUNT_BYTES as usize..].chunks_exact(ROW_BYTES);
        let programs: Vec<(ProgramName, Section)> = rows.map(row).collect();
        let fits = |program: &Section| {
            program.end_bytes().is_some_and(|end_bytes| end_bytes <= section.len_bytes)
        };
        match programs.iter().all(|(_, program)| fits(program)) {
            true => Ok(Programs { index_bytes: index.len() as u64, programs }),
            false => Err(corrupt()),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = ProgramName> + '_ {
        self.programs.iter().map(|&(name, _)| name)
    }

    /// Start in the section and length of the index and of each program.
    pub(super) fn parts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let programs = self.programs.iter().map(|(_, part)| (part.offset_bytes, part.len_bytes));
        programs.chain([(0, self.index_bytes)])
    }

    pub(super) fn find(&self, name: ProgramName) -> Option<Section> {
        self.programs.iter().find(|(found, _)| *found == name).map(|&(_, program)| program)
    }
}

fn index_bytes(count: u64) -> u64 {
    COUNT_BYTES + count * ROW_BYTES as u64
}

fn row(bytes: &[u8]) -> (ProgramName, Section) {
    let mut name = [0; 16];
    name.copy_from_slice(&bytes[..16]);
    let (offset_bytes, len_bytes) = (super::u64_at(bytes, 16), super::u64_at(bytes, 24));
    (u128::from_le_bytes(name), Section { offset_bytes, len_bytes, checksum: 0 })
}

/// The section with these programs.
fn section(programs: &[(ProgramName, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = (programs.len() as u64).to_le_bytes().to_vec();
    let mut at_bytes = index_bytes(programs.len() as u64);
    for (name, program) in programs {
        bytes.extend(name.to_le_bytes());
        bytes.extend(at_bytes.to_le_bytes());
        bytes.extend((program.len() as u64).to_le_bytes());
        at_bytes += program.len() as u64;
    }
    programs.iter().for_each(|(_, program)| bytes.extend(program));
    bytes
}

impl BundleFile {
    /// Writes a copy of this bundle with `programs` in place of its compiled programs, and without
    /// its signature. The copy is a [`WholeFile`], and may take this bundle's place. Returns its
    /// length.
    ///
    /// Errors: `TooLarge` for over [`MAX_PROGRAMS`] programs; `DiskFull`; `Io`.
    pub fn write_with_programs(
        &self,
        path: &Path,
        programs: &[(ProgramName, Vec<u8>)],
    ) -> Result<u64, BundleError> {
        if programs.len() as u64 > MAX_PROGRAMS {
            return Err(BundleError::TooLarge {
                path: path.to_owned(),
                what: "the index of programs",
                len_bytes: index_bytes(programs.len() as u64),
                max_bytes: index_bytes(MAX_PROGRAMS),
            });
        }
        let section = section(programs);
        let header = self.header().with_programs(&section);
        let mut file = self.copy(path, self.header().programs.offset_bytes)?;
        let finish = || {
            file.write_all(&section)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header.to_page())?;
            file.finish()
        };
        finish().map_err(write_error(path, header.programs.offset_bytes))?;
        Ok(header.file_bytes)
    }

    /// Writes a copy of this bundle that `key` has signed, in place of an earlier signer. The copy
    /// is a [`WholeFile`], and may take this bundle's place. Returns its length.
    ///
    /// Errors: those of [`verify_all`](Self::verify_all); `TooLarge`; `DiskFull`; `Io`.
    pub fn write_signed(&self, path: &Path, key: &SigningKey) -> Result<u64, BundleError> {
        self.verify_all(|_| {})?;
        let signature_at_bytes = self.header().signature.offset_bytes;
        let signature = Section { offset_bytes: signature_at_bytes, ..Section::default() };
        let header = Header { file_bytes: signature_at_bytes, signature, ..*self.header() };
        let mut file = self.copy(path, signature_at_bytes)?;
        let file_bytes = sign(&mut file, header, &self.all_plans()?, key, path)?;
        file.finish().map_err(write_error(path, file_bytes))?;
        Ok(file_bytes)
    }

    /// Starts a file with the first `len_bytes` of this bundle.
    fn copy(&self, path: &Path, len_bytes: u64) -> Result<WholeFile, BundleError> {
        let mut file = WholeFile::create(path).map_err(BundleError::io("create", path))?;
        let mut chunk = vec![0; CHUNK_BYTES.min(len_bytes) as usize];
        for at_bytes in (0..len_bytes).step_by(CHUNK_BYTES as usize) {
            let chunk = &mut chunk[..CHUNK_BYTES.min(len_bytes - at_bytes) as usize];
            self.read_at(at_bytes, chunk)?;
            file.write_all(chunk).map_err(write_error(path, at_bytes))?;
        }
        Ok(file)
    }
}
