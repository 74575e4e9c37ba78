//! Types of stored values, and their conversion to f32.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Number of values decoded at a time. It bounds the scratch memory of a read.
const CHUNK_ELEMS: usize = 1 << 16;

/// The type of a stored value, little endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredType {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision. Rounded to f32 when read.
    F64,
    /// A type that is no float here, in the words of its format.
    Unsupported(String),
}

impl StoredType {
    /// Bytes of one value. `None` if the type cannot be read.
    pub fn size_bytes(&self) -> Option<usize> {
        match self {
            Self::F16 | Self::Bf16 => Some(2),
            Self::F32 => Some(4),
            Self::F64 => Some(8),
            Self::Unsupported(_) => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F16 => f.write_str("F16"),
            Self::Bf16 => f.write_str("BF16"),
            Self::F32 => f.write_str("F32"),
            Self::F64 => f.write_str("F64"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

/// Fills `out` with a tensor's values from `start_elem` on. The tensor begins `start_bytes` into
/// `file`.
///
/// Errors: an unsupported type; a failed read; the end of the file.
pub(super) fn read_f32_at(
    file: &File,
    path: &Path,
    (start_bytes, dtype): (u64, &StoredType),
    start_elem: usize,
    out: &mut [f32],
) -> Result<()> {
    let Some(size) = dtype.size_bytes() else {
        bail!("{}: values of type {dtype} are not read", path.display());
    };
    let mut bytes = vec![0u8; out.len().min(CHUNK_ELEMS) * size];
    let mut halves = Halves::default();
    let mut at = start_bytes + (start_elem * size) as u64;
    for piece in out.chunks_mut(CHUNK_ELEMS) {
        let bytes = &mut bytes[..piece.len() * size];
        read_exact_at(file, bytes, at).with_context(|| {
            format!("{}: reading {} bytes at {at}", path.display(), bytes.len())
        })?;
        decode(dtype, bytes, piece, &mut halves);
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Typed scratch memory, so that `half` can convert a whole chunk with vector instructions.
#[derive(Default)]
struct Halves {
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

fn decode(dtype: &StoredType, bytes: &[u8], out: &mut [f32], halves: &mut Halves) {
    match dtype {
        StoredType::F16 => {
            halves.f16.clear();
            halves.f16.extend(words(bytes).map(f16::from_le_bytes));
            halves.f16.convert_to_f32_slice(out);
        }
        StoredType::Bf16 => {
            halves.bf16.clear();
            halves.bf16.extend(words(bytes).map(bf16::from_le_bytes));
            halves.bf16.convert_to_f32_slice(out);
        }
        StoredType::F32 => {
            for (o, b) in out.iter_mut().zip(words(bytes)) {
                *o = f32::from_le_bytes(b);
            }
        }
        StoredType::F64 => {
            for (o, b) in out.iter_mut().zip(words(bytes)) {
                *o = f64::from_le_bytes(b) as f32;
            }
        }
        StoredType::Unsupported(_) => unreachable!("refused before anything is read"),
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, bytes, at)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[n..];
        at += n as u64;
    }
    Ok(())
}
