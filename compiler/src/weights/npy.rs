//! A folder of `.npy` files, one for each tensor, named `<key>.npy`.
//!
//! Readable types are `<f2`, `<f4` and `<f8` in C order; NumPy has no bfloat16. `npyz` parses
//! headers after `vet` has refused headers that would make a parser overflow or recurse.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use npyz::{DType, NpyHeader, Order};

use super::stored::{StoredType, read_f32_at};
use super::{TensorInfo, TensorSource, checked_elem_count, one_line};

/// Length of the longest readable header, in bytes. NumPy writes 128 for a plain array.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// An open folder of arrays. Files are opened for each read.
#[derive(Debug)]
pub struct NpyFolder {
    path: PathBuf,
    tensors: Vec<TensorInfo>,
    /// Start of each tensor's values in its file, in bytes.
    starts: Vec<u64>,
}

/// Whether a folder has a `.npy` file.
///
/// Errors: the folder cannot be listed.
pub fn is_folder(path: &Path) -> Result<bool> {
    Ok(!keys(path)?.is_empty())
}

impl NpyFolder {
    /// Opens a folder and checks the header of every array against the length of its file.
    ///
    /// Errors: a file cannot be read, is no array, or is shorter than its header says.
    pub fn open(path: &Path) -> Result<Self> {
        let mut folder = Self { path: path.to_path_buf(), tensors: Vec::new(), starts: Vec::new() };
        for key in keys(path)? {
            let (info, start_bytes) = read_header(&file_path(path, &key), key)?;
            folder.tensors.push(info);
            folder.starts.push(start_bytes);
        }
        Ok(folder)
    }
}

impl TensorSource for NpyFolder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn read_index(&self, index: usize, start_elem: usize, out: &mut [f32]) -> Result<()> {
        let info = &self.tensors[index];
        let path = file_path(&self.path, &info.name);
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        read_f32_at(&file, &path, (self.starts[index], &info.dtype), start_elem, out)
    }
}

/// The keys of a folder's arrays, sorted.
fn keys(path: &Path) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for entry in path.read_dir().with_context(|| path.display().to_string())? {
        let file = entry.with_context(|| path.display().to_string())?.path();
        if file.extension() != Some(OsStr::new("npy")) {
            continue;
        }
        let key = file.file_stem().and_then(OsStr::to_str);
        keys.push(key.with_context(|| format!("{}: not a UTF-8 name", file.display()))?.to_owned());
    }
    keys.sort();
    Ok(keys)
}

fn file_path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.npy"))
}

/// Reads and checks one header. Returns the tensor and the start of its values.
fn read_header(path: &Path, name: String) -> Result<(TensorInfo, u64)> {
    let shown = path.display();
    let file = File::open(path).with_context(|| shown.to_string())?;
    let file_bytes = file.metadata().with_context(|| shown.to_string())?.len();
    let mut first = Vec::new();
    file.take(MAX_HEADER_BYTES as u64)
        .read_to_end(&mut first)
        .with_context(|| shown.to_string())?;
    let (text, start_bytes) =
        header_text(&first).map_err(|what| anyhow!("{shown}: not a .npy file: {what}"))?;
    vet(text).map_err(|what| anyhow!("{shown}: .npy header refused: {what}"))?;
    let header = NpyHeader::from_reader(&first[..start_bytes])
        .map_err(|e| anyhow!("{shown}: damaged .npy header: {}", one_line(&e.to_string())))?;
    let shape: Vec<usize> = header
        .shape()
        .iter()
        .map(|&d| usize::try_from(d))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{shown}: shape {:?}", header.shape()))?;
    let dtype = stored_type(&header);
    let start_bytes = start_bytes as u64;
    if let Some(size) = dtype.size_bytes() {
        let expected_bytes = checked_elem_count(&shape)
            .and_then(|n| n.checked_mul(size))
            .and_then(|n| start_bytes.checked_add(n as u64))
            .with_context(|| format!("{shown}: shape {shape:?} is too large"))?;
        if file_bytes != expected_bytes {
            let what = if file_bytes < expected_bytes { "truncated" } else { "damaged" };
            bail!(
                "{shown}: {what}: {expected_bytes} bytes expected for shape {shape:?}, \
                 {file_bytes} found; write it again"
            );
        }
    }
    Ok((TensorInfo { name, dtype, shape }, start_bytes))
}

/// The header's text and the start of the values, from a file's first bytes.
fn header_text(first: &[u8]) -> Result<(&str, usize), &'static str> {
    let (text_at, text_bytes) = match first {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
            (10, usize::from(u16::from_le_bytes([*a, *b])))
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => {
            (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize)
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => return Err("unknown version or truncated"),
        _ => return Err("it does not begin with \\x93NUMPY"),
    };
    let end = text_at + text_bytes;
    let text = first.get(text_at..end).ok_or("its header is truncated or too long")?;
    let text = std::str::from_utf8(text).map_err(|_| "its header is not text")?;
    Ok((text, end))
}

/// Refuses a header of anything but a plain array.
///
/// Outside strings only flat Python literals pass, and the product of all numbers must fit, because
/// `npyz` multiplies the dimensions unchecked and parses nested literals by recursion.
fn vet(text: &str) -> Result<(), &'static str> {
    if text.contains('\\') {
        return Err("an escape in a string");
    }
    let plain: String = text.split('\'').step_by(2).collect::<Vec<_>>().join(" ");
    let plain = plain.replace("True", " ").replace("False", " ");
    if !plain.chars().all(|c| c.is_ascii_digit() || "{}(),:L \n".contains(c)) {
        return Err("not a plain array (structured, pickled or not written by NumPy)");
    }
    if plain.matches(['{', '(']).count() > 2 {
        return Err("nested");
    }
    plain
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .try_fold(1u64, |product, digits| product.checked_mul(digits.parse::<u64>().ok()?.max(1)))
        .map(|_| ())
        .ok_or("a shape that large cannot be")
}

fn stored_type(header: &NpyHeader) -> StoredType {
    let dtype = header.dtype();
    let DType::Plain(plain) = &dtype else {
        return StoredType::Unsupported(one_line(&dtype.descr()));
    };
    let stored = match plain.to_string().as_str() {
        "<f2" => StoredType::F16,
        "<f4" => StoredType::F32,
        "<f8" => StoredType::F64,
        other => return StoredType::Unsupported(one_line(other)),
    };
    // A vector or a scalar is the same in both orders.
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return StoredType::Unsupported(format!(
            "{stored} in Fortran order (save it with numpy.ascontiguousarray)"
        ));
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::vet;

    #[test]
    fn plain_headers_pass() {
        for shape in ["()", "(3,)", "(320, 4, 3, 3)", "(0, 5)", "(2L, 3L)"] {
            let text =
                format!("{{'descr': '<f2', 'fortran_order': False, 'shape': {shape}, }}  \n");
            assert_eq!(vet(&text), Ok(()), "{text}");
        }
    }

    #[test]
    fn headers_that_would_break_a_parser_do_not() {
        let nested = format!("{}{}", "(".repeat(9000), ")".repeat(9000));
        for shape in ["(18446744073709551615, 2)", "(4294967296, 4294967296)", "(0xffff,)", &nested]
        {
            let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
            assert!(vet(&text).is_err(), "{}", &text[..60]);
        }
        assert!(vet("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}").is_err());
    }
}
