//! Types of stored values, their conversion to f32, and files of them.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{TensorInfo, TensorSource, one_line};

/// Number of values decoded at a time. It bounds the scratch memory of a read.
const CHUNK_ELEMS: usize = 1 << 16;

/// The type of a stored value, little endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredType {
    /// 4 bits of exponent, 3 of mantissa, no infinity (OCP's E4M3, `float8_e4m3fn`).
    F8E4M3,
    /// The upper half of an F16 (OCP's E5M2).
    F8E5M2,
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
            Self::F8E4M3 | Self::F8E5M2 => Some(1),
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
            Self::F8E4M3 => f.write_str("F8_E4M3"),
            Self::F8E5M2 => f.write_str("F8_E5M2"),
            Self::F16 => f.write_str("F16"),
            Self::Bf16 => f.write_str("BF16"),
            Self::F32 => f.write_str("F32"),
            Self::F64 => f.write_str("F64"),
            Self::Unsupported(what) => f.write_str(what),
        }
    }
}

/// An open file of tensors, each of which is a run of its bytes.
#[derive(Debug)]
pub struct StoredFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorInfo>,
    /// Start of each tensor in `file`, in bytes.
    starts: Vec<u64>,
}

impl StoredFile {
    /// A file with tensors, sorted by name, and the start of each in bytes. The caller has compared
    /// the starts and lengths with the file.
    pub(super) fn new(path: &Path, file: File, tensors: Vec<(TensorInfo, u64)>) -> Self {
        let (tensors, starts) = tensors.into_iter().unzip();
        Self { path: path.to_path_buf(), file, tensors, starts }
    }
}

impl TensorSource for StoredFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let info = &self.tensors[index];
        let stored = (self.starts[index], &info.dtype);
        read_f32_at(&self.file, &self.path, stored, start_elem, out)
            .with_context(|| format!("tensor `{}`", one_line(&info.name)))
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
        StoredType::F8E4M3 => {
            for (o, b) in out.iter_mut().zip(bytes) {
                *o = E4M3[usize::from(*b)];
            }
        }
        StoredType::F8E5M2 => {
            for (o, b) in out.iter_mut().zip(bytes) {
                *o = f16::from_bits(u16::from(*b) << 8).to_f32();
            }
        }
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

/// The value of each byte as E4M3: bias 7, subnormals, NaN where all bits but the sign are set.
static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|byte| {
        let (exponent, mantissa) = ((byte >> 3) as i32 & 15, (byte & 7) as f32 / 8.0);
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa * 2f32.powi(-6),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
        };
        if byte < 128 { magnitude } else { -magnitude }
    })
});

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
