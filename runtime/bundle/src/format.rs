//! The file format: sections and their checksums.
//!
//! ```text
//!      0  header page   magic, version, length of the file, section table, checksum
//!   4096  weights       blocks and tables, each on a page boundary, padded with zeros
//!         plan          one for each size of picture, see `plans`
//!         tokenizer     bytes that only the tokenizer understands
//!         programs      compiled programs of some devices, see `programs`; mostly empty
//!         signature     who vouches for all of it, see `signature`; empty if nobody does
//!    end
//! ```
//!
//! Sections follow one another without gaps, so that a checksum covers every byte of the file. The
//! header is written last, so that an unfinished file is never taken for a bundle. Checksums are
//! XXH3 with 64 bits. They find accidents. Against malice there are the rules of [`crate::check`],
//! which hold for any file, and the signature.
//! Integers are little-endian. [`BundleWriter`] writes the format, [`BundleFile`] reads it.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::BundleError;

mod plans;
mod programs;
mod reader;
mod signature;
mod writer;

pub use plans::encode_plans;
pub use programs::{MAX_PROGRAMS, ProgramName};
pub use reader::{BlockCheck, BundleFile};
pub use signature::MAX_SIGNATURE_BYTES;
pub use writer::BundleWriter;

/// Version of the file format and of the plan's encoding. Any change to either raises it.
pub const VERSION: u32 = 21;
/// Alignment of the weights section and of each block in it.
pub const PAGE_BYTES: u64 = 4096;
/// Largest tokenizer section that is written or read.
pub const MAX_TOKENIZER_BYTES: u64 = 16 << 20;

/// Detects transfers that change line ends or drop the eighth bit, like PNG's signature.
const MAGIC: [u8; 8] = *b"\x89KILN\r\n\x1a";
const ENTRY_BYTES: usize = 32;
const TABLE_AT: usize = 24;
const SECTIONS: usize = 5;
const CHECKSUM_AT: usize = PAGE_BYTES as usize - 8;

/// XXH3-64 of bytes: the checksum of sections and of weight blocks.
pub fn hash(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The stored form of a row of a table: the row, then its checksum.
pub fn sealed_row(row: &[u8]) -> Vec<u8> {
    [row, &hash(row).to_le_bytes()].concat()
}

/// One entry of the section table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Section {
    offset_bytes: u64,
    len_bytes: u64,
    checksum: u64,
}

impl Section {
    fn end_bytes(self) -> Option<u64> {
        self.offset_bytes.checked_add(self.len_bytes)
    }
}

/// The decoded header page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Header {
    file_bytes: u64,
    weights: Section,
    plan: Section,
    tokenizer: Section,
    programs: Section,
    signature: Section,
}

impl Header {
    fn sections(&self) -> [Section; SECTIONS] {
        [self.weights, self.plan, self.tokenizer, self.programs, self.signature]
    }

    /// The header with this section of programs, without a signature.
    fn with_programs(&self, programs: &[u8]) -> Header {
        let offset_bytes = self.programs.offset_bytes;
        let end_bytes = offset_bytes + programs.len() as u64;
        let section = |offset_bytes, bytes: &[u8]| Section {
            offset_bytes,
            len_bytes: bytes.len() as u64,
            checksum: hash(bytes),
        };
        Header {
            file_bytes: end_bytes,
            programs: section(offset_bytes, programs),
            signature: section(end_bytes, &[]),
            ..*self
        }
    }

    fn to_page(self) -> Vec<u8> {
        let mut page = Vec::with_capacity(PAGE_BYTES as usize);
        page.extend(MAGIC);
        page.extend(VERSION.to_le_bytes());
        page.extend((SECTIONS as u32).to_le_bytes());
        page.extend(self.file_bytes.to_le_bytes());
        for (kind, section) in (1u64..).zip(self.sections()) {
            for word in [kind, section.offset_bytes, section.len_bytes, section.checksum] {
                page.extend(word.to_le_bytes());
            }
        }
        page.resize(CHECKSUM_AT, 0);
        page.extend(hash(&page).to_le_bytes());
        page
    }

    /// Decodes the first page of a file of `found_bytes` bytes.
    ///
    /// Ensures: the sections lie in the file, one after the other, without gaps. Plan, tokenizer
    /// and signature are within their limits.
    fn from_page(page: &[u8], found_bytes: u64, path: &Path) -> Result<Header, BundleError> {
        let path = || path.to_owned();
        if !page.starts_with(&MAGIC) {
            return Err(BundleError::NotABundle { path: path() });
        }
        let length =
            |expected_bytes| BundleError::Length { path: path(), expected_bytes, found_bytes };
        let corrupt = |what| BundleError::Corrupt { path: path(), what };
        if page.len() as u64 != PAGE_BYTES {
            return Err(length(PAGE_BYTES));
        }
        let found = u32_at(page, 8);
        if found != VERSION {
            return Err(BundleError::Version { path: path(), found, supported: VERSION });
        }
        if hash(&page[..CHECKSUM_AT]) != u64_at(page, CHECKSUM_AT) {
            return Err(corrupt("the header"));
        }
        let header = Header {
            file_bytes: u64_at(page, 16),
            weights: section_at(page, 0),
            plan: section_at(page, 1),
            tokenizer: section_at(page, 2),
            programs: section_at(page, 3),
            signature: section_at(page, 4),
        };
        if header.file_bytes != found_bytes {
            return Err(length(header.file_bytes));
        }
        // The encoding is canonical, including kinds, counts and padding.
        if header.to_page() != page || !header.is_contiguous() {
            return Err(corrupt("the section table"));
        }
        let too_large = |what, section: Section, max_bytes| {
            if section.len_bytes <= max_bytes {
                return Ok(());
            }
            Err(BundleError::TooLarge {
                path: path(),
                what,
                len_bytes: section.len_bytes,
                max_bytes,
            })
        };
        too_large("the plan", header.plan, crate::codec::MAX_PLAN_BYTES as u64)?;
        too_large("the tokenizer", header.tokenizer, MAX_TOKENIZER_BYTES)?;
        too_large("the signature", header.signature, MAX_SIGNATURE_BYTES)?;
        Ok(header)
    }

    fn is_contiguous(&self) -> bool {
        let after = |at: Option<u64>, section: Section| match at {
            Some(at) if at == section.offset_bytes => section.end_bytes(),
            _ => None,
        };
        self.weights.len_bytes.is_multiple_of(PAGE_BYTES)
            && self.sections().into_iter().fold(Some(PAGE_BYTES), after) == Some(self.file_bytes)
    }
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(page: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&page[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn section_at(page: &[u8], index: usize) -> Section {
    let at = TABLE_AT + index * ENTRY_BYTES;
    Section {
        offset_bytes: u64_at(page, at + 8),
        len_bytes: u64_at(page, at + 16),
        checksum: u64_at(page, at + 24),
    }
}
