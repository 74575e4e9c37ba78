//! PyTorch's `.ckpt`, `.pt`, `.pth` and `.bin`: a zip archive of a pickle and of one file for each
//! storage, uncompressed. [`pickle`](super::pickle) reads the pickle and executes nothing.
//!
//! Dictionaries of dictionaries become names with dots, as `state_dict.` of Lightning's checkpoints.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value};
use super::stored::{StoredFile, StoredType};
use super::{TensorInfo, checked_elem_count, one_line};

/// The longest pickle that is read, in bytes.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// Most tensors of a file.
const MAX_TENSORS: usize = 1 << 16;
/// Dictionaries in one another.
const MAX_DEPTH: usize = 4;

/// What a file that may be PyTorch's begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begins {
    /// A zip archive.
    Zip,
    /// A pickle: the format of PyTorch before 1.6.
    Pickle,
    /// Anything else.
    Other,
}

/// Tells the formats apart by the first bytes.
pub(super) fn begins(path: &Path) -> Result<Begins> {
    let mut first = Vec::new();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.take(4).read_to_end(&mut first).with_context(|| path.display().to_string())?;
    Ok(match first[..] {
        [b'P', b'K', 3, 4] => Begins::Zip,
        [0x80, 2..=5, ..] => Begins::Pickle,
        _ => Begins::Other,
    })
}

/// Opens a file of PyTorch.
///
/// Errors: it has the format of before PyTorch 1.6, or is no archive of PyTorch's; it is damaged;
/// a tensor's values are not in the archive.
pub(super) fn open(path: &Path) -> Result<StoredFile> {
    if begins(path)? == Begins::Pickle {
        bail!(
            "{0}: PyTorch's format of before version 1.6, which is not read; save it again in \
             Python: torch.save(torch.load(\"{0}\", weights_only=True), \"new.ckpt\")",
            path.display()
        );
    }
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let damaged = |error: anyhow::Error| {
        let what = one_line(&format!("{error:#}"));
        anyhow!("{}: no checkpoint of PyTorch, or a damaged one: {what}", path.display())
    };
    let archive = Archive::read(&file).map_err(damaged)?;
    let tensors = archive.tensors().map_err(damaged)?;
    Ok(StoredFile::new(path, file, tensors))
}

/// The parts of an archive.
struct Archive {
    pickle: Pickle,
    /// Start and length of each storage in bytes, by its key.
    storages: BTreeMap<String, (u64, u64)>,
}

impl Archive {
    fn read(file: &File) -> Result<Archive> {
        let file_bytes = file.metadata()?.len();
        let mut zip = ZipArchive::new(file)?;
        let names = zip.file_names().map(|name| Ok(name?.into_owned()));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        let pickle = names.iter().find(|name| name.ends_with("/data.pkl"));
        let pickle = pickle.context("it has no data.pkl")?;
        let folder = pickle.trim_end_matches("data.pkl");
        let mut storages = BTreeMap::new();
        for name in &names {
            let Some(key) = name.strip_prefix(folder).and_then(|rest| rest.strip_prefix("data/"))
            else {
                continue;
            };
            let entry = zip.by_name(name)?;
            let (start, len) =
                (entry.data_start().context("a storage has no place")?, entry.size());
            let is_plain = entry.compression() == CompressionMethod::Stored && !entry.encrypted();
            if !is_plain || start.checked_add(len).is_none_or(|end| end > file_bytes) {
                bail!("storage {key} is compressed, or longer than the file");
            }
            storages.insert(key.to_owned(), (start, len));
        }
        if let Ok(mut order) = zip.by_name(&format!("{folder}byteorder")) {
            let mut text = Vec::new();
            order.by_ref().take(16).read_to_end(&mut text)?;
            if text != b"little" {
                bail!("its numbers are not little endian");
            }
        }
        let mut bytes = Vec::new();
        zip.by_name(pickle)?.take(MAX_PICKLE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_PICKLE_BYTES {
            bail!("data.pkl is over {MAX_PICKLE_BYTES} bytes");
        }
        Ok(Archive { pickle: Pickle::read(&bytes).context("data.pkl")?, storages })
    }

    /// All tensors of dictionaries, with the starts of their values.
    fn tensors(&self) -> Result<Vec<(TensorInfo, u64)>> {
        let mut found = Vec::new();
        let mut open = vec![(String::new(), self.pickle.root, 0)];
        while let Some((name, id, depth)) = open.pop() {
            match self.pickle.get(id) {
                Value::Tensor(args) if depth > 0 => {
                    let tensor = self.tensor(&name, args);
                    found.push(tensor.with_context(|| format!("tensor `{}`", one_line(&name)))?);
                }
                Value::Dict(entries) if depth < MAX_DEPTH => {
                    for (key, value) in entries {
                        let Some(key) = self.pickle.text(*key) else { continue };
                        let dot = if depth == 0 { "" } else { "." };
                        open.push((format!("{name}{dot}{key}"), *value, depth + 1));
                    }
                }
                _ => {}
            }
            if found.len() + open.len() > MAX_TENSORS {
                bail!("it has over {MAX_TENSORS} tensors");
            }
        }
        found.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        if found.is_empty() {
            bail!("it has no tensors");
        }
        if let Some(pair) = found.windows(2).find(|pair| pair[0].0.name == pair[1].0.name) {
            bail!("tensor `{}` is there twice", one_line(&pair[0].0.name));
        }
        Ok(found)
    }

    /// A tensor from its arguments: storage, offset, shape, strides.
    fn tensor(&self, name: &str, args: &[Id]) -> Result<(TensorInfo, u64)> {
        let pickle = &self.pickle;
        let [storage, offset, shape, strides, ..] = args else { bail!("it lacks arguments") };
        let Value::Storage(storage) = pickle.get(*storage) else { bail!("it has no storage") };
        let Value::Tuple(storage) = pickle.get(*storage) else { bail!("its storage has no name") };
        let [_, kind, key, ..] = storage[..] else { bail!("its storage has no name") };
        let Value::Global(kind) = pickle.get(kind) else { bail!("its storage has no type") };
        let key = pickle.text(key).context("its storage has no key")?;
        let offset = pickle.size(*offset).context("its offset is no number")?;
        let shape = pickle.sizes(*shape).context("its shape is no tuple of numbers")?;
        let strides = pickle.sizes(*strides).context("its strides are no tuple of numbers")?;
        let &(start, len) = self.storages.get(key).context("its values are not in the archive")?;
        let mut dtype = stored_type(kind);
        if !is_row_major(&shape, &strides) {
            dtype = StoredType::Unsupported(format!("{dtype} with its axes in another order"));
        }
        let elems = checked_elem_count(&shape).context("its shape is too large")?;
        let mut at = start;
        if let Some(size) = dtype.size_bytes() {
            let bytes = |elems: usize| (elems as u64).checked_mul(size as u64);
            let end = offset.checked_add(elems).and_then(bytes);
            if end.is_none_or(|end| end > len) {
                bail!("its values reach beyond their storage of {len} bytes");
            }
            at += bytes(offset).unwrap_or(0);
        }
        Ok((TensorInfo { name: name.to_owned(), dtype, shape }, at))
    }
}

/// The type of a storage by its class.
fn stored_type(class: &str) -> StoredType {
    match class {
        "torch HalfStorage" => StoredType::F16,
        "torch BFloat16Storage" => StoredType::Bf16,
        "torch FloatStorage" => StoredType::F32,
        "torch DoubleStorage" => StoredType::F64,
        other => StoredType::Unsupported(one_line(other.trim_start_matches("torch "))),
    }
}

/// Whether values lie in row-major order without gaps.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(extent, stride)| {
            let fits = *extent <= 1 || *stride == expected;
            expected = expected.saturating_mul(*extent);
            fits
        })
}
