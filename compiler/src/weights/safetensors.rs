//! Single-file safetensors. The `safetensors` crate parses and checks the header. Values are read
//! by position, and nothing of the data part is held in memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::Metadata;
use anyhow::{Context, Result, bail};

use super::stored::{StoredFile, StoredType};
use super::{TensorInfo, one_line};

/// Length of the longest readable header in bytes, the format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes of the length field before the header.
const LENGTH_BYTES: u64 = 8;

/// Opens a file and checks its header against its length.
///
/// Errors: the file cannot be read; it has another format (a Git LFS pointer, a pickle, a web
/// page); its header is damaged; it is shorter or longer than its header says.
pub fn open(path: &Path) -> Result<StoredFile> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let file_bytes = file.metadata().with_context(|| path.display().to_string())?.len();
    let header = Header::read(&mut file, path)?;
    let start_bytes = header.end_bytes;
    // The sum cannot overflow: both terms have been checked.
    let expected_bytes = start_bytes + header.data_bytes;
    if file_bytes < expected_bytes {
        bail!(
            "{}: truncated: {expected_bytes} bytes expected, {file_bytes} found; copy or \
             download it again",
            path.display()
        );
    }
    if file_bytes > expected_bytes {
        bail!(
            "{}: {} bytes follow its last tensor ({expected_bytes} expected, {file_bytes} \
             found); the file is damaged, copy or download it again",
            path.display(),
            file_bytes - expected_bytes
        );
    }
    Ok(from_parts(path, file, header, start_bytes))
}

/// A source over `file` with a data part that begins at `start_bytes`.
pub(super) fn from_parts(path: &Path, file: File, header: Header, start_bytes: u64) -> StoredFile {
    let mut entries: Vec<(TensorInfo, u64)> = Vec::new();
    for (name, info) in header.metadata.tensors() {
        let (shape, dtype) = (info.shape.clone(), stored_type(info.dtype));
        entries.push((TensorInfo { name, dtype, shape }, start_bytes + info.data_offsets.0 as u64));
    }
    entries.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    StoredFile::new(path, file, entries)
}

/// A parsed header.
#[derive(Debug)]
pub(super) struct Header {
    metadata: Metadata,
    /// Bytes of the length field and the header: the start of the data part.
    pub end_bytes: u64,
    /// Length of the data part, in bytes.
    pub data_bytes: u64,
}

impl Header {
    /// Reads a header from the beginning of a file or stream, and no byte after it.
    ///
    /// Memory grows with the bytes actually read, not with the claimed length.
    pub fn read(source: &mut dyn Read, path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut length = Vec::new();
        read_up_to(source, LENGTH_BYTES, &mut length).with_context(|| shown.to_string())?;
        let Ok(length) = <[u8; 8]>::try_from(length.as_slice()) else {
            bail!(
                "{shown}: truncated: {} bytes are too few for a safetensors file; copy or \
                 download it again",
                length.len()
            );
        };
        if let Some(what) = recognize(&length) {
            bail!("{shown}: not a safetensors file but {what}");
        }
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES {
            bail!(
                "{shown}: not a safetensors file, or a damaged one: it claims a header of \
                 {header_bytes} bytes, {MAX_HEADER_BYTES} at most are allowed"
            );
        }
        let mut text = Vec::new();
        read_up_to(source, header_bytes, &mut text).with_context(|| shown.to_string())?;
        if (text.len() as u64) < header_bytes {
            bail!(
                "{shown}: truncated: {} bytes expected for its header alone, {} found; copy or \
                 download it again",
                LENGTH_BYTES + header_bytes,
                LENGTH_BYTES + text.len() as u64
            );
        }
        let metadata: Metadata = serde_json::from_slice(&text).map_err(|e| {
            let e = one_line(&e.to_string());
            anyhow::anyhow!("{shown}: damaged safetensors header: {e}; copy or download it again")
        })?;
        let end_bytes = LENGTH_BYTES + header_bytes;
        let data_bytes = metadata.data_len() as u64;
        if end_bytes.checked_add(data_bytes).is_none() {
            bail!("{shown}: damaged safetensors header: {data_bytes} bytes of data");
        }
        Ok(Self { metadata, end_bytes, data_bytes })
    }
}

fn read_up_to(source: &mut dyn Read, len: u64, into: &mut Vec<u8>) -> std::io::Result<usize> {
    source.take(len).read_to_end(into)
}

/// Names a format that is commonly mistaken for safetensors, by the first bytes.
fn recognize(first: &[u8; 8]) -> Option<&'static str> {
    match first {
        b"version " => Some("a Git LFS pointer; run `git lfs pull` to get the file itself"),
        [b'P', b'K', 3, 4, ..] => Some(
            "a zip archive; if it is a checkpoint of PyTorch, give it a name that ends in .ckpt",
        ),
        [0x80, 2..=5, ..] => Some("a Python pickle; get the model's .safetensors file"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Some("zstd-compressed; give it a name that ends in .safetensors.zst")
        }
        [b'<', b'!' | b'h' | b'H' | b'?', ..] => {
            Some("a web page; the download did not give the file, try again")
        }
        [0x93, b'N', b'U', b'M', ..] => Some("a NumPy array"),
        text if text.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) => {
            Some("a text file; give the model's .safetensors file")
        }
        _ => None,
    }
}

fn stored_type(dtype: Dtype) -> StoredType {
    match dtype {
        Dtype::F8_E4M3 => StoredType::F8E4M3,
        Dtype::F8_E5M2 => StoredType::F8E5M2,
        Dtype::F16 => StoredType::F16,
        Dtype::BF16 => StoredType::Bf16,
        Dtype::F32 => StoredType::F32,
        Dtype::F64 => StoredType::F64,
        other => StoredType::Unsupported(other.to_string()),
    }
}
