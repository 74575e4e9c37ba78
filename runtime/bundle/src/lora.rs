//! A LoRA for a bundle: a file beside it with the factors of the weights that it changes.
//!
//! ```text
//!  0  magic (8 bytes), version (4), length of the head (4), XXH3 of all that follows (8)
//! 24  head      as `codec` encodes it: [`Head`]
//!     factors   FP32, little-endian, as the bundle's kernels read them
//! ```

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::{Layer, Plan};
use crate::{codec, hash, whole};

const MAGIC: [u8; 8] = *b"\x89KLORA\r\n";
const VERSION: u32 = 1;
const HEAD_AT: usize = 24;
/// Longest file that is read.
const MAX_BYTES: u64 = 1 << 30;

/// Reason why a LoRA cannot be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is no LoRA for a bundle, is of another version, or is damaged.
    #[error("{}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault.
        message: &'static str,
    },
    /// The LoRAs need more memory than the plan has for them.
    #[error(
        "the LoRAs need {needed_bytes} bytes of memory, the bundle has room for {room_bytes}; \
         compile it with a larger --lora-memory"
    )]
    Room {
        /// Bytes of their factors.
        needed_bytes: u64,
        /// Bytes of the buffer.
        room_bytes: u64,
    },
    /// The bundle has other weights than the one that the LoRA was made for, or no room.
    #[error("the LoRA {name}: {message}")]
    Unfit {
        /// Name of the LoRA.
        name: String,
        /// The fault, and what to do.
        message: String,
    },
}

/// A LoRA for bundles with equal layers.
#[derive(Clone, PartialEq, Debug)]
pub struct Lora {
    /// What the file says of its factors.
    pub head: Head,
    /// FP32, little-endian.
    pub factors: Vec<u8>,
}

/// What a file says of its factors.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Name, for people.
    pub name: String,
    /// [`layers_hash`] of the bundle.
    pub layers: u64,
    /// The changed weights, by ascending layer.
    pub changes: Vec<Change>,
}

/// The factors of one weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Index into the layers of [`LoraRoom`](crate::plan::LoraRoom).
    pub layer: u32,
    /// Rank of the product.
    pub rank: u32,
    /// Start of `up` in the factors, in numbers.
    pub up: u32,
    /// Start of `down`.
    pub down: u32,
}

/// Checks that a plan has room for LoRAs together.
///
/// Errors: `Unfit`, `Room`.
pub fn check_all<'a>(loras: impl Iterator<Item = &'a Lora>, plan: &Plan) -> Result<(), LoraError> {
    let mut needed_bytes = 0;
    for lora in loras {
        lora.check(plan)?;
        needed_bytes += lora.factors.len() as u64;
    }
    let buffer = plan.lora.factors.and_then(|id| plan.buffers.get(id.index()));
    let room_bytes = buffer.map_or(0, |buffer| buffer.len_bytes);
    match needed_bytes <= room_bytes {
        true => Ok(()),
        false => Err(LoraError::Room { needed_bytes, room_bytes }),
    }
}

/// Tells bundles with different layers apart.
pub fn layers_hash(layers: &[Layer]) -> u64 {
    codec::encode_part(&layers).map_or(0, |bytes| hash(&bytes))
}

impl Lora {
    /// Writes a file, which has its name when it is whole. Returns its length in bytes.
    pub fn write(&self, path: &Path) -> std::io::Result<u64> {
        let head = codec::encode_part(&self.head).map_err(std::io::Error::other)?;
        let body = [&head[..], &self.factors].concat();
        whole::write(path, |file| {
            file.write_all(&MAGIC)?;
            file.write_all(&VERSION.to_le_bytes())?;
            file.write_all(&(head.len() as u32).to_le_bytes())?;
            file.write_all(&hash(&body).to_le_bytes())?;
            file.write_all(&body)
        })?;
        Ok((HEAD_AT + body.len()) as u64)
    }

    /// Reads a file.
    ///
    /// Errors: `Read`; `Invalid` for a file that is none, is of another version, or is damaged.
    pub fn read(path: &Path) -> Result<Lora, LoraError> {
        let failed = |source| LoraError::Read { path: path.to_owned(), source };
        let invalid = |message| LoraError::Invalid { path: path.to_owned(), message };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        let none = "not a LoRA for a bundle; kiln lora makes one of a LoRA's own file";
        let Some((start, body)) = bytes.split_at_checked(HEAD_AT) else {
            return Err(invalid(none));
        };
        let word = |at: usize| {
            let bytes = start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        if !start.starts_with(&MAGIC) {
            return Err(invalid(none));
        }
        if word(8) != VERSION {
            return Err(invalid("made by another version of kiln; make it anew with kiln lora"));
        }
        let checksum = u64::from(word(16)) | u64::from(word(20)) << 32;
        let damaged = "damaged; make it anew with kiln lora";
        let parts = body.split_at_checked(word(12) as usize).filter(|_| hash(body) == checksum);
        let Some((head, factors)) = parts else { return Err(invalid(damaged)) };
        let head = codec::decode_part::<Head>(head).map_err(|_| invalid(damaged))?;
        let lora = Lora { head, factors: factors.to_vec() };
        if !lora.factors.len().is_multiple_of(4) {
            return Err(invalid(damaged));
        }
        Ok(lora)
    }

    /// Checks that a plan has the weights that are changed, and that their factors are in the file.
    ///
    /// Errors: `Unfit`.
    pub fn check(&self, plan: &Plan) -> Result<(), LoraError> {
        let unfit = |message: &str| {
            Err(LoraError::Unfit { name: self.head.name.clone(), message: message.into() })
        };
        if plan.lora.factors.is_none() {
            return unfit("the bundle has no room for LoRAs; compile it with --lora-memory 16MiB");
        }
        if self.head.layers != layers_hash(&plan.lora.layers) {
            return unfit("made for another bundle; make it anew with kiln lora --for");
        }
        let elems = self.factors.len() as u64 / 4;
        let is_inside = |change: &Change| {
            let Some(layer) = plan.lora.layers.get(change.layer as usize) else { return false };
            let [up, down] = layer.factor_elems(change.rank.into());
            let ends = |start: u32, len: u64| u64::from(start).saturating_add(len) <= elems;
            change.rank > 0 && ends(change.up, up) && ends(change.down, down)
        };
        let is_sorted = self.head.changes.is_sorted_by(|a, b| a.layer < b.layer);
        match is_sorted && self.head.changes.iter().all(is_inside) {
            true => Ok(()),
            false => unfit("its factors are not all there; make it anew with kiln lora"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_survives_the_round_trip_and_no_damage() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let change = Change { layer: 0, rank: 2, up: 0, down: 4 };
        let head = Head { name: "style".into(), layers: 7, changes: vec![change] };
        let lora = Lora { head, factors: vec![1; 32] };
        let len_bytes = lora.write(&path).unwrap();
        assert_eq!(Lora::read(&path).unwrap(), lora);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, len_bytes);
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(Lora::read(&path).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Lora::read(&path).is_err(), "{at} bytes");
        }
        let error = lora.check(&crate::testing::plan()).unwrap_err().to_string();
        assert!(error.contains("--lora-memory"), "{error}");
    }
}
