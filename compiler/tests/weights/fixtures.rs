//! Writers of checkpoint files, and the shipped model's tensors as a test sees them: taken from
//! the file's bytes, with none of the readers under test.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

/// A tensor with its bytes.
#[derive(Debug, Clone)]
pub struct Raw {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), bytes }
    }

    pub fn new(name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes }
    }

    /// The values of an F16 or F32 tensor.
    pub fn values(&self) -> Vec<f32> {
        match self.dtype {
            "F16" => {
                let halves = self.bytes.chunks_exact(2);
                halves.map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            }
            "F32" => {
                let words = self.bytes.chunks_exact(4);
                words.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            other => panic!("{other}"),
        }
    }
}

/// A safetensors header for tensors that follow one another.
pub fn header(tensors: &[(&str, &str, &[usize], usize)]) -> Vec<u8> {
    let mut map = Map::new();
    let mut at = 0;
    for (name, dtype, shape, size_bytes) in tensors {
        let offsets = [at, at + size_bytes];
        map.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}),
        );
        at += size_bytes;
    }
    header_from_text(&Value::Object(map).to_string())
}

pub fn header_from_text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

pub fn safetensors(tensors: &[Raw]) -> Vec<u8> {
    let list: Vec<_> = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.bytes.len()))
        .collect();
    let mut file = header(&list);
    for tensor in tensors {
        file.extend_from_slice(&tensor.bytes);
    }
    file
}

/// A file of zeros with the given fp16 tensors, sparse: only its header takes room.
pub fn write_sparse(path: &Path, tensors: &[(String, Vec<usize>)]) {
    let size_bytes = |shape: &[usize]| 2 * shape.iter().product::<usize>();
    let list: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| (name.as_str(), "F16", shape.as_slice(), size_bytes(shape)))
        .collect();
    let header = header(&list);
    let data_bytes: usize = list.iter().map(|t| t.3).sum();
    let mut file = create(path);
    file.write_all(&header).unwrap();
    file.set_len((header.len() + data_bytes) as u64).unwrap();
}

pub fn npy(descr: &str, fortran: bool, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape = match shape {
        [one] => format!("({one},)"),
        _ => format!("({})", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
    };
    let order = if fortran { "True" } else { "False" };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    let text = format!("{dict:<117}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(text.len() as u16).to_le_bytes());
    file.extend_from_slice(text.as_bytes());
    file.extend_from_slice(bytes);
    file
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Creates a file and the folders above it.
pub fn create(path: &Path) -> File {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap()
}

pub fn write(path: &Path, bytes: &[u8]) {
    create(path).write_all(bytes).unwrap();
}

/// `component` of a diffusers folder as `shard_count` shards with an index.
pub fn write_sharded(folder: &Path, stem: &str, tensors: &[Raw], shard_count: usize) {
    let mut weight_map = Map::new();
    for shard in 0..shard_count {
        let name = format!("{stem}-{:05}-of-{shard_count:05}.safetensors", shard + 1);
        let mine: Vec<Raw> = tensors.iter().skip(shard).step_by(shard_count).cloned().collect();
        for tensor in &mine {
            weight_map.insert(tensor.name.clone(), json!(name));
        }
        write(&folder.join(name), &safetensors(&mine));
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
    write(&folder.join(format!("{stem}.safetensors.index.json")), index.to_string().as_bytes());
}

pub fn repository_path(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(relative)
}

pub fn emoji_path() -> PathBuf {
    repository_path("models/emoji-256.safetensors.zst")
}

/// The shipped model's tensors, by name.
pub fn emoji() -> &'static [Raw] {
    static EMOJI: OnceLock<Vec<Raw>> = OnceLock::new();
    EMOJI.get_or_init(|| {
        let file = File::open(emoji_path()).unwrap();
        let mut stream = ruzstd::decoding::StreamingDecoder::new(file).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let (header, data) = bytes[8..].split_at(header_bytes);
        let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
        let mut tensors: Vec<Raw> = header
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, info)| {
                let sizes = |key: &str| -> Vec<usize> {
                    let list = info[key].as_array().unwrap();
                    list.iter().map(|d| d.as_u64().unwrap() as usize).collect()
                };
                let dtype = if info["dtype"] == "F16" { "F16" } else { "F32" };
                let (shape, at) = (sizes("shape"), sizes("data_offsets"));
                Raw { name, dtype, shape, bytes: data[at[0]..at[1]].to_vec() }
            })
            .collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors
    })
}

/// A tensor of the shipped model's diffusers form: which file it is in, and what.
#[derive(Debug, Clone)]
pub struct Listed {
    pub file: String,
    pub tensor: Raw,
}

/// The shipped model as diffusers stores it, put together from the single file by the values'
/// hashes: names and shapes come from the listing, none from the mapping under test.
pub fn emoji_diffusers() -> Vec<Listed> {
    let mut by_hash = std::collections::HashMap::new();
    for tensor in emoji().iter().filter(|t| t.dtype == "F16") {
        by_hash.insert(fnv1a64(&tensor.bytes), tensor.bytes.as_slice());
        if tensor.name.contains("in_proj") {
            for third in tensor.bytes.chunks_exact(tensor.bytes.len() / 3) {
                by_hash.insert(fnv1a64(third), third);
            }
        }
    }
    let listing =
        fs::read_to_string(repository_path("compiler/tests/data/emoji-256-diffusers.txt"));
    let listing = listing.unwrap();
    let lines = listing.lines().filter(|line| !line.starts_with('#'));
    let listed = lines.map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [file, name, shape, hash] = fields[..] else { panic!("{line}") };
        let shape: Vec<usize> = shape.split('x').map(|d| d.parse().unwrap()).collect();
        let bytes = by_hash[&u64::from_str_radix(hash, 16).unwrap()].to_vec();
        assert_eq!(bytes.len(), 2 * shape.iter().product::<usize>(), "{line}");
        Listed { file: file.to_owned(), tensor: Raw::new(name, "F16", &shape, bytes) }
    });
    listed.collect()
}

/// The tensors of one file of a diffusers folder.
pub fn in_file(listed: &[Listed], file: &str) -> Vec<Raw> {
    listed.iter().filter(|l| l.file == file).map(|l| l.tensor.clone()).collect()
}

/// Writes a diffusers folder with the files that are listed.
pub fn write_diffusers(folder: &Path, listed: &[Listed]) {
    let files: std::collections::BTreeSet<&str> = listed.iter().map(|l| l.file.as_str()).collect();
    for file in files {
        write(&folder.join(file), &safetensors(&in_file(listed, file)));
    }
}

fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3))
}
