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

use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use super::writer::write_error;
use super::{BundleFile, Header, Section, hash};
use crate::error::BundleError;
use crate::whole::WholeFile;

/// Most programs in a bundle.
pub const MAX_PROGRAMS: u64 = 1 << 16;

/// Name of a compiled program: the hash of everything that it depends on.
pub type ProgramName = u128;

const COUNT_BYTES: u64 = 8;
const ROW_BYTES: usize = 32;

/// The index of the section.
#[derive(Default)]
pub(super) struct Programs(Vec<(ProgramName, Section)>);

impl Programs {
    /// Reads the index. `read` fills a slice from a position in the section.
    ///
    /// Errors: `Corrupt` if a program is not in the section.
    pub(super) fn read(
        section: Section,
        path: &Path,
        read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Programs, BundleError> {
        if section.len_bytes == 0 {
            return Ok(Programs::default());
        }
        let corrupt = || BundleError::Corrupt { path: path.to_owned(), what: "a program" };
        let mut count = [0; COUNT_BYTES as usize];
        if section.len_bytes < COUNT_BYTES {
            return Err(corrupt());
        }
        read(0, &mut count).map_err(BundleError::io("read", path))?;
        let count = u64::from_le_bytes(count);
        if count > MAX_PROGRAMS || index_bytes(count) > section.len_bytes {
            return Err(corrupt());
        }
        let mut rows = vec![0; count as usize * ROW_BYTES];
        read(COUNT_BYTES, &mut rows).map_err(BundleError::io("read", path))?;
        let programs: Vec<(ProgramName, Section)> = rows.chunks_exact(ROW_BYTES).map(row).collect();
        let fits = |program: &Section| {
            program.end_bytes().is_some_and(|end_bytes| end_bytes <= section.len_bytes)
        };
        match programs.iter().all(|(_, program)| fits(program)) {
            true => Ok(Programs(programs)),
            false => Err(corrupt()),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = ProgramName> + '_ {
        self.0.iter().map(|&(name, _)| name)
    }

    pub(super) fn find(&self, name: ProgramName) -> Option<Section> {
        self.0.iter().find(|(found, _)| *found == name).map(|&(_, program)| program)
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
    /// Writes a copy of this bundle with `programs` in place of its compiled programs. The copy is
    /// a [`WholeFile`], and may take this bundle's place. Returns its length.
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
        let kept_bytes = self.header().programs.offset_bytes;
        let header = Header {
            file_bytes: kept_bytes + section.len() as u64,
            programs: Section {
                offset_bytes: kept_bytes,
                len_bytes: section.len() as u64,
                checksum: hash(&section),
            },
            ..*self.header()
        };
        let file = WholeFile::create(path).map_err(BundleError::io("create", path))?;
        let mut file = BufWriter::new(file);
        let mut chunk = vec![0; 1 << 20];
        let mut at_bytes = 0;
        while at_bytes < kept_bytes {
            let len_bytes = (kept_bytes - at_bytes).min(chunk.len() as u64);
            self.read_at(at_bytes, &mut chunk[..len_bytes as usize])?;
            file.write_all(&chunk[..len_bytes as usize]).map_err(write_error(path, at_bytes))?;
            at_bytes += len_bytes;
        }
        let finish = |mut file: BufWriter<WholeFile>| {
            file.write_all(&section)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header.to_page())?;
            file.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
        };
        finish(file).map_err(write_error(path, kept_bytes))?;
        Ok(header.file_bytes)
    }
}
