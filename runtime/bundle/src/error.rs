//! What can go wrong with a bundle: each message says what, where and what to do.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::check::Violation;
use crate::codec::CodecError;
use crate::plan::Size;
use crate::sign::PublicKey;

/// A bundle that cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; check the path and its permissions", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The disk filled up; the unfinished file has been removed.
    #[error(
        "no space left after {written_bytes} bytes of {}; free some or write elsewhere",
        path.display()
    )]
    DiskFull {
        /// The bundle that was being written.
        path: PathBuf,
        /// How much of it there was room for, to within a buffer.
        written_bytes: u64,
    },
    /// The file does not begin as a bundle does.
    #[error("{} is not a bundle; make one with `kiln compile`", path.display())]
    NotABundle {
        /// The file.
        path: PathBuf,
    },
    /// The bundle is of another format version.
    #[error(
        "{} has format version {found}, this program reads {supported}; compile it again",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// [`crate::format::VERSION`].
        supported: u32,
    },
    /// The bundle has no plan for the size of the picture.
    #[error(
        "{} makes no pictures of {wanted}, only of {}; compile it with --size {wanted}",
        path.display(),
        sizes.iter().map(Size::to_string).collect::<Vec<_>>().join(", ")
    )]
    NoSuchSize {
        /// The bundle.
        path: PathBuf,
        /// The size that was asked for.
        wanted: Size,
        /// The sizes that it has.
        sizes: Vec<Size>,
    },
    /// The file's length is not what its header says.
    #[error(
        "{} has {found_bytes} bytes where its header says {expected_bytes}; copy it again",
        path.display()
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// What the header says; one page when not even the header is whole.
        expected_bytes: u64,
        /// What the file has.
        found_bytes: u64,
    },
    /// Bytes are not those that were written.
    #[error("{what} of {} is corrupt; copy the file or compile it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: &'static str,
    },
    /// A section is larger than any program would make it.
    #[error(
        "{what} of {} has {len_bytes} bytes, at most {max_bytes} are allowed; compile it again",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Which section.
        what: &'static str,
        /// Its length.
        len_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Nobody has signed the bundle.
    #[error("{} is not signed, and only {trusted} is trusted; get a signed copy of it", path.display())]
    Unsigned {
        /// The file.
        path: PathBuf,
        /// The signer that is trusted.
        trusted: PublicKey,
    },
    /// Somebody else has signed the bundle.
    #[error(
        "{} is signed by {found}, and only {trusted} is trusted; get it from the signer you trust",
        path.display()
    )]
    OtherSigner {
        /// The file.
        path: PathBuf,
        /// The signer that it names.
        found: PublicKey,
        /// The signer that is trusted.
        trusted: PublicKey,
    },
    /// Bytes are not those that were signed.
    #[error("{what} of {} is not what {signer} signed; get the file again", path.display())]
    Forged {
        /// The file.
        path: PathBuf,
        /// Which part.
        what: String,
        /// The signer that is trusted.
        signer: PublicKey,
    },
    /// The plan does not translate to or from bytes.
    #[error("the plan of {}: {source}; compile it again", path.display())]
    Codec {
        /// The file.
        path: PathBuf,
        /// What the codec said.
        source: CodecError,
    },
    /// The plan breaks a rule: a fault of the compiler that made it, or a forgery.
    #[error("the plan of {} is unsound: {violation}; compile it again", path.display())]
    Unsound {
        /// The file.
        path: PathBuf,
        /// Which rule and where.
        violation: Box<Violation>,
    },
    /// The file became shorter after it was opened.
    #[error(
        "{} was truncated while running: no bytes at weights offset {offset_bytes}; restore it",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// First offset in the weights section that could not be read.
        offset_bytes: u64,
    },
    /// The caller asked for bytes beyond the weights section.
    #[error(
        "{len_bytes} bytes at offset {offset_bytes} are outside the {weights_len_bytes} bytes \
         of weights of {}; use the ranges of its plan",
        path.display()
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// Start of the range.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
        /// The section's length.
        weights_len_bytes: u64,
    },
    /// The caller named a block that is not in the plan.
    #[error("{} has no weight block {block}; use the ids of its plan", path.display())]
    NoSuchBlock {
        /// The file.
        path: PathBuf,
        /// The id.
        block: u32,
    },
    /// A weight block's bytes are not those that were written.
    #[error(
        "weight block {block} ({name:?}, {len_bytes} bytes at {offset_bytes}) of {} is corrupt; \
         copy the file again",
        path.display()
    )]
    CorruptBlock {
        /// The file.
        path: PathBuf,
        /// The block's id.
        block: u32,
        /// Its name.
        name: String,
        /// Where it starts in the weights section.
        offset_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// A row of a table is not what was written.
    #[error("row {row} of table '{table}' of {} is corrupt; copy the file again", path.display())]
    CorruptRow {
        /// The file.
        path: PathBuf,
        /// The table's name.
        table: String,
        /// The row.
        row: u32,
    },
}

impl BundleError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
        move |source| BundleError::Io { action, path: path.to_owned(), source }
    }
}
