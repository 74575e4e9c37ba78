//! Compares what is read of a bundle with its checksums, and with what a trusted key has signed.

use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::Xxh3;

use super::{BundleFile, Section};
use crate::error::BundleError;
use crate::plan::{Block, BlockId};

/// Length of the chunks in which [`BundleFile::verify_all`] reads.
const CHUNK_BYTES: u64 = 1 << 20;

/// Compares a block, as it is read in chunks, with what its bundle says of it.
pub struct BlockCheck {
    checksum: Xxh3,
    /// Of a bundle that a trusted key has signed.
    digest: Option<Sha256>,
}

impl BlockCheck {
    /// Receives the next bytes of the block.
    pub fn update(&mut self, chunk: &[u8]) {
        self.checksum.update(chunk);
        if let Some(digest) = &mut self.digest {
            digest.update(chunk);
        }
    }

    /// Forgets the bytes that it has received.
    pub fn reset(&mut self) {
        self.checksum.reset();
        self.digest.iter_mut().for_each(Sha256::reset);
    }
}

impl BundleFile {
    /// A check for a block that is read in chunks.
    pub fn block_check(&self) -> BlockCheck {
        let digest = self.signed.is_some().then(Sha256::new);
        BlockCheck { checksum: Xxh3::new(), digest }
    }

    /// Compares the bytes that a check has received with a block, and empties the check.
    ///
    /// Errors: `CorruptBlock`; `Forged`; `NoSuchBlock`.
    pub fn finish_check(&self, block: BlockId, check: &mut BlockCheck) -> Result<(), BundleError> {
        let Some(entry) = self.plan.blocks.get(block.index()) else {
            return Err(BundleError::NoSuchBlock { path: self.path.clone(), block: block.0 });
        };
        let checksum = check.checksum.digest();
        check.checksum.reset();
        if let (Some(digest), Some(signed)) = (&mut check.digest, &self.signed) {
            let found: [u8; 32] = digest.finalize_reset().into();
            let at_bytes = self.header.weights.offset_bytes + entry.offset_bytes;
            if signed.digest_of(at_bytes, entry.len_bytes) != Some(found) {
                let what = format!("weight block {} ({:?})", block.0, entry.name);
                return Err(signed.forged(&self.path, what));
            }
        }
        match checksum == entry.checksum {
            true => Ok(()),
            false => Err(self.corrupt_block(block.index())),
        }
    }

    /// Compares a block's bytes with its checksum, and with what was signed.
    ///
    /// Errors: as [`finish_check`](Self::finish_check). `CorruptBlock` also if `bytes` has another
    /// length than the block.
    pub fn verify_block(&self, block: BlockId, bytes: &[u8]) -> Result<(), BundleError> {
        let len_bytes = self.plan.blocks.get(block.index()).map(|entry| entry.len_bytes);
        if len_bytes.is_some_and(|len_bytes| len_bytes != bytes.len() as u64) {
            return Err(self.corrupt_block(block.index()));
        }
        let mut check = self.block_check();
        check.update(bytes);
        self.finish_check(block, &mut check)
    }

    /// Reads all weights once, in file order, and compares every block and the whole section with
    /// their checksums. The section's checksum covers tables, which are in no block. Then verifies
    /// the compiled programs and the signature, and everything that a trusted key has signed.
    ///
    /// `progress` receives the number of bytes done, of
    /// [`weights_len_bytes`](Self::weights_len_bytes).
    pub fn verify_all(&self, mut progress: impl FnMut(u64)) -> Result<(), BundleError> {
        let mut order: Vec<usize> = (0..self.plan.blocks.len()).collect();
        order.sort_by_key(|&index| self.plan.blocks[index].offset_bytes);
        let mut pending = order.into_iter().peekable();
        let mut section_hash = Xxh3::new();
        let mut block_hash = Xxh3::new();
        let mut chunk = vec![0; CHUNK_BYTES.min(self.header.weights.len_bytes) as usize];
        let mut at_bytes = 0;
        while at_bytes < self.header.weights.len_bytes {
            let len = CHUNK_BYTES.min(self.header.weights.len_bytes - at_bytes);
            let chunk = &mut chunk[..len as usize];
            self.read_weights(at_bytes, chunk)?;
            section_hash.update(chunk);
            while let Some(&index) = pending.peek() {
                let block = &self.plan.blocks[index];
                block_hash.update(part_of(block, chunk, at_bytes));
                if block.offset_bytes + block.len_bytes > at_bytes + len {
                    break;
                }
                if block_hash.digest() != block.checksum {
                    return Err(self.corrupt_block(index));
                }
                block_hash.reset();
                pending.next();
            }
            at_bytes += len;
            progress(at_bytes);
        }
        if section_hash.digest() != self.header.weights.checksum {
            return Err(BundleError::Corrupt { path: self.path.clone(), what: "a weight table" });
        }
        self.verify_section(self.header.programs, "a program")?;
        self.verify_section(self.header.signature, "the signature")?;
        let Some(signed) = &self.signed else { return Ok(()) };
        for (at_bytes, len_bytes) in signed.pieces() {
            let mut digest = Sha256::new();
            self.read_chunks(at_bytes, len_bytes, &mut |chunk| digest.update(chunk))?;
            if signed.digest_of(at_bytes, len_bytes) != Some(digest.finalize().into()) {
                return Err(signed.forged(&self.path, format!("what lies at {at_bytes}")));
            }
        }
        Ok(())
    }

    fn verify_section(&self, section: Section, what: &'static str) -> Result<(), BundleError> {
        let mut hash = Xxh3::new();
        let update = &mut |chunk: &[u8]| hash.update(chunk);
        self.read_chunks(section.offset_bytes, section.len_bytes, update)?;
        match hash.digest() == section.checksum {
            true => Ok(()),
            false => Err(BundleError::Corrupt { path: self.path.clone(), what }),
        }
    }

    fn read_chunks(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), BundleError> {
        let mut chunk = vec![0; CHUNK_BYTES.min(len_bytes) as usize];
        for at_bytes in (0..len_bytes).step_by(CHUNK_BYTES as usize) {
            let chunk = &mut chunk[..CHUNK_BYTES.min(len_bytes - at_bytes) as usize];
            self.read_at(offset_bytes + at_bytes, chunk)?;
            each(chunk);
        }
        Ok(())
    }

    fn corrupt_block(&self, index: usize) -> BundleError {
        let block = &self.plan.blocks[index];
        BundleError::CorruptBlock {
            path: self.path.clone(),
            block: index as u32,
            name: block.name.clone(),
            offset_bytes: block.offset_bytes,
            len_bytes: block.len_bytes,
        }
    }
}

/// The part of a block in a chunk of the section that starts at `at_bytes`.
fn part_of<'a>(block: &Block, chunk: &'a [u8], at_bytes: u64) -> &'a [u8] {
    let within =
        |offset_bytes: u64| offset_bytes.saturating_sub(at_bytes).min(chunk.len() as u64) as usize;
    &chunk[within(block.offset_bytes)..within(block.offset_bytes + block.len_bytes)]
}
