//! The signature section, which is empty in a bundle that nobody has signed.
//!
//! ```text
//! 0    public key of the signer (32 bytes)
//! 32   Ed25519 signature (64 bytes)
//! 96   a row for each piece: start in the bundle, length (8 bytes each), SHA-256 (32 bytes)
//! ```
//!
//! A piece is a part of the bundle that is read as a whole: the plans, the tokenizer, the index of
//! programs, a program, a weight block, [`TABLE_PIECE_BYTES`] of a table. Rows are in order, and
//! each is there once. The signature is of [`DOMAIN`], the format version, the header's entries of
//! the other sections, and the rows.

use std::collections::BTreeSet;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::programs::Programs;
use super::reader::read_exact_at;
use super::writer::write_error;
use super::{ENTRY_BYTES, Header, Section, TABLE_AT, hash, u64_at};
use crate::error::BundleError;
use crate::plan::{Plan, ROW_CHECKSUM_BYTES, Step};
use crate::sign::{KEY_BYTES, PublicKey, SIGNATURE_BYTES, SigningKey};
use crate::whole::WholeFile;

/// Largest signature section that is written or read.
pub const MAX_SIGNATURE_BYTES: u64 = 16 << 20;

/// First bytes of what is signed, so that no other use of a key gives a bundle's signature.
const DOMAIN: &[u8] = b"kiln bundle signature\n";
/// Public key and signature.
const FRONT_BYTES: usize = KEY_BYTES + SIGNATURE_BYTES;
const ROW_BYTES: usize = 16 + DIGEST_BYTES;
const DIGEST_BYTES: usize = 32;
/// Length of a table's pieces but the last.
const TABLE_PIECE_BYTES: u64 = 64 << 10;
const CHUNK_BYTES: usize = 1 << 20;

/// A part of the bundle that is read as a whole.
#[derive(Clone, Copy)]
struct Piece {
    offset_bytes: u64,
    len_bytes: u64,
    digest: [u8; DIGEST_BYTES],
}

/// The verified pieces of a bundle that a trusted key has signed.
pub(super) struct Signed {
    pub signer: PublicKey,
    pieces: Vec<Piece>,
}

impl Signed {
    /// The pieces of a section whose signature is that of `trusted`.
    ///
    /// Errors: `Unsigned`, `OtherSigner`, `Forged`.
    pub fn read(
        section: &[u8],
        header: &Header,
        trusted: PublicKey,
        path: &Path,
    ) -> Result<Signed, BundleError> {
        let path = || path.to_owned();
        if section.is_empty() {
            return Err(BundleError::Unsigned { path: path(), trusted });
        }
        let forged =
            || BundleError::Forged { path: path(), what: "the signature".into(), signer: trusted };
        let (front, rows) = section.split_at_checked(FRONT_BYTES).ok_or_else(forged)?;
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(&front[KEY_BYTES..]);
        let found = signer(front).ok_or_else(forged)?;
        if found != trusted {
            return Err(BundleError::OtherSigner { path: path(), found, trusted });
        }
        if !trusted.has_signed(&message(header, rows), &signature) {
            return Err(forged());
        }
        let (rows, []) = rows.as_chunks::<ROW_BYTES>() else { return Err(forged()) };
        Ok(Signed { signer: trusted, pieces: rows.iter().map(piece).collect() })
    }

    /// The digest of the piece that lies at `offset_bytes` and has `len_bytes`.
    pub fn digest_of(&self, offset_bytes: u64, len_bytes: u64) -> Option<[u8; DIGEST_BYTES]> {
        let key = |piece: &Piece| (piece.offset_bytes, piece.len_bytes);
        let found = self.pieces.binary_search_by_key(&(offset_bytes, len_bytes), key);
        found.ok().map(|index| self.pieces[index].digest)
    }

    /// Whether `bytes` are those that were signed at `offset_bytes`. Sections may be empty.
    pub fn has(&self, offset_bytes: u64, bytes: &[u8]) -> bool {
        bytes.is_empty()
            || self.digest_of(offset_bytes, bytes.len() as u64)
                == Some(Sha256::digest(bytes).into())
    }

    /// Start and length of the last piece that begins at or before `offset_bytes`.
    pub fn piece_at(&self, offset_bytes: u64) -> Option<(u64, u64)> {
        let after = self.pieces.partition_point(|piece| piece.offset_bytes <= offset_bytes);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        Some((piece.offset_bytes, piece.len_bytes))
    }

    /// The error for a part of the bundle that is not what was signed.
    pub fn forged(&self, path: &Path, what: impl Into<String>) -> BundleError {
        BundleError::Forged { path: path.to_owned(), what: what.into(), signer: self.signer }
    }

    /// Start and length of every piece.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.pieces.iter().map(|piece| (piece.offset_bytes, piece.len_bytes))
    }
}

/// The public key at the start of a signature section; `None` if the section is empty.
pub(super) fn signer(section: &[u8]) -> Option<PublicKey> {
    section.first_chunk().copied().map(PublicKey)
}

fn piece(row: &[u8; ROW_BYTES]) -> Piece {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&row[16..]);
    Piece { offset_bytes: u64_at(row, 0), len_bytes: u64_at(row, 8), digest }
}

/// What is signed: all of the bundle but the signature.
fn message(header: &Header, rows: &[u8]) -> Vec<u8> {
    let page = header.to_page();
    let others = header.sections().len() - 1;
    let sections = &page[TABLE_AT..TABLE_AT + others * ENTRY_BYTES];
    [DOMAIN, &page[8..12], sections, rows].concat()
}

/// Signs a bundle that is complete but for its signature: appends the section, and writes the
/// header anew. Returns the length of the file.
///
/// Errors: `TooLarge`, `DiskFull`, `Io`.
pub(super) fn sign(
    file: &mut WholeFile,
    header: Header,
    plans: &[Plan],
    key: &SigningKey,
    path: &Path,
) -> Result<u64, BundleError> {
    let read = |offset_bytes, out: &mut [u8]| {
        read_exact_at(file.file(), out, offset_bytes).map_err(BundleError::io("read", path))
    };
    let read_programs =
        |at_bytes, out: &mut [u8]| read(header.programs.offset_bytes + at_bytes, out);
    let programs = Programs::read(header.programs, path, &read_programs, &|_| Ok(()))?;
    let mut rows = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    for (offset_bytes, len_bytes) in regions(&header, plans, &programs) {
        let mut digest = Sha256::new();
        for at_bytes in (0..len_bytes).step_by(CHUNK_BYTES) {
            let out = &mut chunk[..(len_bytes - at_bytes).min(CHUNK_BYTES as u64) as usize];
            read(offset_bytes + at_bytes, out)?;
            digest.update(out);
        }
        rows.extend(offset_bytes.to_le_bytes());
        rows.extend(len_bytes.to_le_bytes());
        rows.extend(digest.finalize());
    }
    let signature = key.sign(&message(&header, &rows));
    let section = [&key.public().0[..], &signature, &rows].concat();
    if section.len() as u64 > MAX_SIGNATURE_BYTES {
        return Err(BundleError::TooLarge {
            path: path.to_owned(),
            what: "the signature",
            len_bytes: section.len() as u64,
            max_bytes: MAX_SIGNATURE_BYTES,
        });
    }
    let offset_bytes = header.signature.offset_bytes;
    let header = Header {
        file_bytes: offset_bytes + section.len() as u64,
        signature: Section {
            offset_bytes,
            len_bytes: section.len() as u64,
            checksum: hash(&section),
        },
        ..header
    };
    let mut write = || -> io::Result<()> {
        file.seek(SeekFrom::Start(offset_bytes))?;
        file.write_all(&section)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header.to_page())
    };
    write().map_err(write_error(path, offset_bytes))?;
    Ok(header.file_bytes)
}

/// Start in the bundle and length of each part that is read as a whole, in order.
fn regions(header: &Header, plans: &[Plan], programs: &Programs) -> BTreeSet<(u64, u64)> {
    let mut regions: BTreeSet<(u64, u64)> = BTreeSet::new();
    for section in [header.plan, header.tokenizer] {
        regions.insert((section.offset_bytes, section.len_bytes));
    }
    for (offset_bytes, len_bytes) in programs.parts() {
        regions.insert((header.programs.offset_bytes + offset_bytes, len_bytes));
    }
    let weights_at_bytes = header.weights.offset_bytes;
    for block in plans.iter().flat_map(|plan| &plan.blocks) {
        regions.insert((weights_at_bytes + block.offset_bytes, block.len_bytes));
    }
    let steps = plans.iter().flat_map(|plan| &plan.networks).flat_map(|network| &network.steps);
    for step in steps {
        let Step::Gather(gather) = step else { continue };
        let table_bytes = u64::from(gather.row_count) * (gather.row_bytes + ROW_CHECKSUM_BYTES);
        for at_bytes in (0..table_bytes).step_by(TABLE_PIECE_BYTES as usize) {
            let len_bytes = (table_bytes - at_bytes).min(TABLE_PIECE_BYTES);
            regions.insert((weights_at_bytes + gather.table_offset_bytes + at_bytes, len_bytes));
        }
    }
    regions.retain(|&(_, len_bytes)| len_bytes > 0);
    regions
}
