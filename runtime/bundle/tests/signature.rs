//! Signed bundles: what is not what the trusted key has signed is refused.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_bundle::format::BlockCheck;
use kiln_bundle::plan::{BlockId, Gather, Step};
use kiln_bundle::sign::{PublicKey, SigningKey};
use kiln_bundle::{BundleError, BundleFile, BundleWriter, hash, testing};

const SECTIONS: usize = 5;
/// The section that has the signature.
const SIGNATURE: usize = 4;
const PROGRAM: &[u8] = b"a compiled program";
const PROGRAM_NAME: u128 = 7;

fn key(secret: u8) -> SigningKey {
    SigningKey::from_secret([secret; 32]).unwrap()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("tiny.kiln")
    }

    /// Writes a bundle with a compiled program, which key 1 has signed. Returns its bytes.
    fn signed(&self) -> Vec<u8> {
        let path = self.path();
        testing::write(&path).unwrap();
        let programs = [(PROGRAM_NAME, PROGRAM.to_vec())];
        BundleFile::open(&path).unwrap().write_with_programs(&path, &programs).unwrap();
        let len_bytes = BundleFile::open(&path).unwrap().write_signed(&path, &key(1)).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, len_bytes);
        bytes
    }

    /// The error of opening and verifying these bytes as those of a trusted signer.
    fn refused(&self, bytes: &[u8], trusted: PublicKey) -> Option<BundleError> {
        fs::write(self.path(), bytes).unwrap();
        let opened = BundleFile::open_signed(&self.path(), trusted);
        opened.and_then(|bundle| bundle.verify_all(|_| {})).err()
    }
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn section(bytes: &[u8], index: usize) -> std::ops::Range<usize> {
    let (start, len) = (word(bytes, 32 + 32 * index), word(bytes, 40 + 32 * index));
    start..start + len
}

/// Makes all checksums right again, as a forger can.
fn reseal(bytes: &mut [u8]) {
    for index in 0..SECTIONS {
        let found = hash(&bytes[section(bytes, index)]);
        bytes[48 + 32 * index..56 + 32 * index].copy_from_slice(&found.to_le_bytes());
    }
    let header = hash(&bytes[..4088]);
    bytes[4088..4096].copy_from_slice(&header.to_le_bytes());
}

/// Puts the signature section of another bundle, or none, in place of the bundle's own.
fn with_signature(bytes: &[u8], signature: &[u8]) -> Vec<u8> {
    let own = section(bytes, SIGNATURE);
    let mut bytes = [&bytes[..own.start], signature].concat();
    let len = bytes.len() as u64;
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    bytes[168..176].copy_from_slice(&(signature.len() as u64).to_le_bytes());
    reseal(&mut bytes);
    bytes
}

fn gather(bundle: &BundleFile) -> Gather {
    let steps = bundle.plan().networks.iter().flat_map(|network| network.steps.clone());
    let mut gathers = steps.filter_map(|step| match step {
        Step::Gather(gather) => Some(gather),
        _ => None,
    });
    gathers.next().unwrap()
}

#[test]
fn a_signed_bundle_is_read_as_any() {
    let place = Place::new();
    place.signed();
    let trusted = key(1).public();
    let plain = BundleFile::open(&place.path()).unwrap();
    let bundle = BundleFile::open_signed(&place.path(), trusted).unwrap();
    assert_eq!((plain.signer().unwrap(), plain.trusted()), (Some(trusted), None));
    assert_eq!(bundle.trusted(), Some(trusted));
    assert_eq!(bundle.plan(), &testing::plan());
    assert_eq!(bundle.tokenizer(), testing::TOKENIZER);
    assert_eq!(bundle.read_program(PROGRAM_NAME).unwrap().as_deref(), Some(PROGRAM));
    let gather = gather(&bundle);
    for row in 0..gather.row_count {
        let mut rows = [vec![0; gather.row_bytes as usize], vec![0; gather.row_bytes as usize]];
        // The rows of this bundle have no checksums of their own.
        let _ = plain.read_row(&gather, row, &mut rows[0]);
        bundle.read_row(&gather, row, &mut rows[1]).unwrap();
        assert_eq!(rows[0], rows[1]);
    }
    for (index, block) in bundle.plan().blocks.iter().enumerate() {
        let mut bytes = vec![0; block.len_bytes as usize];
        bundle.read_weights(block.offset_bytes, &mut bytes).unwrap();
        bundle.verify_block(BlockId(index as u32), &bytes).unwrap();
    }
    bundle.verify_all(|_| {}).unwrap();
    plain.verify_all(|_| {}).unwrap();
    let size = bundle.sizes()[0];
    assert_eq!(bundle.at_size(size).unwrap().trusted(), Some(trusted));
}

#[test]
fn a_writer_signs_as_the_copy_does() {
    let place = Place::new();
    let copy = place.folder.path().join("copy.kiln");
    let write = |signing| {
        let mut writer = BundleWriter::create(&place.path()).unwrap().signed(signing);
        for block in &testing::plan().blocks {
            let weights = testing::weights();
            let (start, len) = (block.offset_bytes as usize, block.len_bytes as usize);
            writer.write_block(&weights[start..start + len]).unwrap();
        }
        let table = &testing::weights()[gather_at()..];
        writer.write_stream([Ok::<_, BundleError>(table)]).unwrap();
        writer.finish(&testing::plan(), testing::TOKENIZER).unwrap();
    };
    write(None);
    BundleFile::open(&place.path()).unwrap().write_signed(&copy, &key(1)).unwrap();
    write(Some(key(1)));
    assert!(fs::read(place.path()).unwrap() == fs::read(&copy).unwrap());
    // A second signer takes the place of the first.
    let bundle = BundleFile::open(&copy).unwrap();
    bundle.write_signed(&copy, &key(2)).unwrap();
    assert!(BundleFile::open_signed(&copy, key(2).public()).is_ok());
    assert!(BundleFile::open_signed(&copy, key(1).public()).is_err());
}

fn gather_at() -> usize {
    let networks = testing::plan().networks;
    let steps = networks.iter().flat_map(|network| &network.steps);
    let mut tables = steps.filter_map(|step| match step {
        Step::Gather(gather) => Some(gather.table_offset_bytes as usize),
        _ => None,
    });
    tables.next().unwrap()
}

#[test]
fn every_changed_byte_is_refused_whatever_its_checksums_say() {
    let place = Place::new();
    let (bytes, trusted) = (place.signed(), key(1).public());
    assert!(place.refused(&bytes, trusted).is_none());
    let starts = (0..SECTIONS).map(|index| section(&bytes, index).start);
    let ends = (0..SECTIONS).map(|index| section(&bytes, index).end - 1);
    for at in (0..bytes.len()).step_by(191).chain(starts).chain(ends) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(place.refused(&changed, trusted).is_some(), "byte {at}");
        if at >= 4096 {
            reseal(&mut changed);
            let error = place.refused(&changed, trusted).expect("refused");
            let is_named = matches!(&error, BundleError::Forged { .. })
                || matches!(&error, BundleError::OtherSigner { .. });
            assert!(is_named && !error.to_string().contains('\n'), "byte {at}: {error}");
        }
    }
}

#[test]
fn other_signers_and_none_are_refused() {
    let place = Place::new();
    let (bytes, trusted) = (place.signed(), key(1).public());
    let signature = bytes[section(&bytes, SIGNATURE)].to_vec();
    let message = |bytes: &[u8], key| place.refused(bytes, key).expect("refused").to_string();
    let error = message(&bytes, key(2).public());
    assert!(error.contains(&format!("is signed by {trusted}")), "{error}");
    let error = message(&with_signature(&bytes, &[]), trusted);
    assert!(error.contains("is not signed"), "{error}");
    // Another key's signature under the name of the trusted one, and a part of a signature.
    let by = |secret| {
        let bundle = BundleFile::open(&place.path()).unwrap();
        bundle.write_signed(&place.path(), &key(secret)).unwrap();
        let bytes = fs::read(place.path()).unwrap();
        bytes[section(&bytes, SIGNATURE)].to_vec()
    };
    let forged = [&trusted.0[..], &by(2)[32..]].concat();
    for signature in [&forged[..], &signature[..32], &signature[..95], &signature[..96 + 47]] {
        let error = message(&with_signature(&bytes, signature), trusted);
        assert!(error.contains("the signature of"), "{error}");
    }
}

#[test]
fn another_kernel_under_an_old_signature_is_refused() {
    let place = Place::new();
    let (bytes, trusted) = (place.signed(), key(1).public());
    let signature = &bytes[section(&bytes, SIGNATURE)];
    let source = b"__kernel void first() {}";
    let at = bytes.windows(source.len()).position(|window| window == source).unwrap();
    let mut changed = bytes.clone();
    changed[at..at + source.len()].copy_from_slice(b"__kernel void first(){;}");
    reseal(&mut changed);
    // To anyone else it is a bundle.
    fs::write(place.path(), &changed).unwrap();
    BundleFile::open(&place.path()).unwrap().verify_all(|_| {}).unwrap();
    let changed = with_signature(&changed, signature);
    let error = place.refused(&changed, trusted).expect("refused");
    assert!(matches!(error, BundleError::Forged { .. }), "{error}");
}

/// Changes a byte of the open file, whose header and plan have been verified.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_read_later_is_compared_with_what_was_signed() {
    let place = Place::new();
    let bytes = place.signed();
    let bundle = BundleFile::open_signed(&place.path(), key(1).public()).unwrap();
    let is_forged = |result: Result<(), BundleError>| match result {
        Err(BundleError::Forged { .. }) => {}
        other => panic!("{other:?}"),
    };
    let (block, weights) = (bundle.plan().blocks[1].clone(), section(&bytes, 0).start);
    let check = |check: &mut BlockCheck| {
        let mut read = vec![0; block.len_bytes as usize];
        bundle.read_weights(block.offset_bytes, &mut read).unwrap();
        read.chunks(1000).for_each(|chunk| check.update(chunk));
        bundle.finish_check(BlockId(1), check)
    };
    let mut once = bundle.block_check();
    flip(&place.path(), weights + block.offset_bytes as usize + 70);
    is_forged(check(&mut once));
    flip(&place.path(), weights + block.offset_bytes as usize + 70);
    check(&mut once).unwrap();
    // A row with a checksum that is right.
    let gather = gather(&bundle);
    let row_bytes = gather.row_bytes as usize;
    let row_at = weights + gather.table_offset_bytes as usize + 3 * (row_bytes + 8);
    let mut row = vec![0; row_bytes];
    bundle.read_row(&gather, 3, &mut row).unwrap();
    let mut changed = bytes.clone();
    changed[row_at] ^= 1;
    let checksum = hash(&changed[row_at..row_at + row_bytes]);
    changed[row_at + row_bytes..row_at + row_bytes + 8].copy_from_slice(&checksum.to_le_bytes());
    fs::write(place.path(), &changed).unwrap();
    is_forged(bundle.read_row(&gather, 3, &mut row));
    fs::write(place.path(), &bytes).unwrap();
    flip(&place.path(), section(&bytes, 3).end - 1);
    is_forged(bundle.read_program(PROGRAM_NAME).map(drop));
}
