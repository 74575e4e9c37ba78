//! Bundles as files: what was written is read, and nothing else is taken for a bundle.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use kiln_bundle::format::{MAX_TOKENIZER_BYTES, VERSION};
use kiln_bundle::plan::BlockId;
use kiln_bundle::{BundleError, BundleFile, BundleWriter, testing};

fn written() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.kiln");
    let len_bytes = testing::write(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), len_bytes);
    (folder, path)
}

#[test]
fn what_was_written_is_read() {
    let (folder, path) = written();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let bundle = BundleFile::open(&path).unwrap();
    let plan = testing::plan();
    assert_eq!(bundle.plan(), &plan);
    assert_eq!(bundle.tokenizer(), testing::TOKENIZER);
    assert_eq!(bundle.checked().peak_bytes, plan.memory.peak_bytes());

    let weights = testing::weights();
    assert_eq!(bundle.weights_len_bytes(), (weights.len() as u64).next_multiple_of(4096));
    let mut bytes = vec![0; weights.len()];
    bundle.read_weights(0, &mut bytes).unwrap();
    assert_eq!(bytes, weights);
    let at = bundle.weights_at_bytes() as usize;
    assert_eq!(fs::read(&path).unwrap()[at..at + weights.len()], weights);

    for (index, block) in plan.blocks.iter().enumerate() {
        let mut bytes = vec![0; block.len_bytes as usize];
        bundle.read_weights(block.offset_bytes, &mut bytes).unwrap();
        let id = BlockId(index as u32);
        bundle.verify_block(id, &bytes).unwrap();
        bytes[17] ^= 1;
        let error = bundle.verify_block(id, &bytes).unwrap_err();
        assert!(error.to_string().contains(&block.name), "{error}");
        assert!(bundle.verify_block(id, &bytes[1..]).is_err());
    }
    assert!(matches!(
        bundle.verify_block(BlockId(3), &[]),
        Err(BundleError::NoSuchBlock { block: 3, .. })
    ));
    let mut heard = 0;
    bundle.verify_all(|done_bytes| heard = done_bytes).unwrap();
    assert_eq!(heard, bundle.weights_len_bytes());
}

#[test]
fn programs_are_added_and_everything_else_stays() {
    let (folder, path) = written();
    let before = fs::read(&path).unwrap();
    let programs = [(3, b"first".to_vec()), (u128::MAX - 1, vec![]), (9, vec![7; 5000])];
    let bundle = BundleFile::open(&path).unwrap();
    assert_eq!(bundle.program_names().count(), 0);
    let len_bytes = bundle.write_with_programs(&path, &programs).unwrap();
    let after = fs::read(&path).unwrap();
    assert_eq!((after.len() as u64, fs::read_dir(folder.path()).unwrap().count()), (len_bytes, 1));
    assert_eq!(after[4096..before.len()], before[4096..]);

    let bundle = BundleFile::open(&path).unwrap();
    bundle.verify_all(|_| {}).unwrap();
    assert_eq!(bundle.program_names().collect::<Vec<_>>(), [3, u128::MAX - 1, 9]);
    for (name, program) in &programs {
        assert_eq!(bundle.read_program(*name).unwrap().as_ref(), Some(program));
    }
    assert_eq!(bundle.read_program(4).unwrap(), None);
    bundle.write_with_programs(&path, &programs[..1]).unwrap();
    let bundle = BundleFile::open(&path).unwrap();
    assert_eq!(bundle.program_names().collect::<Vec<_>>(), [3]);
    assert_eq!((bundle.plan(), bundle.tokenizer()), (&testing::plan(), testing::TOKENIZER));

    let mut damaged = after.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fs::write(&path, damaged).unwrap();
    let error = BundleFile::open(&path).unwrap().verify_all(|_| {}).unwrap_err();
    assert!(error.to_string().contains("a program"), "{error}");
}

#[test]
fn reads_outside_the_weights_are_refused() {
    let (_folder, path) = written();
    let bundle = BundleFile::open(&path).unwrap();
    for offset in [bundle.weights_len_bytes(), bundle.weights_len_bytes() - 15, u64::MAX - 3] {
        let error = bundle.read_weights(offset, &mut [0; 16]).unwrap_err();
        assert!(matches!(error, BundleError::OutOfRange { .. }), "{error}");
    }
    bundle.read_weights(bundle.weights_len_bytes() - 16, &mut [0; 16]).unwrap();
}

#[test]
fn truncation_while_running_is_an_error() {
    let (_folder, path) = written();
    let bundle = BundleFile::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
    let error = bundle.read_weights(4096, &mut [0; 16]).unwrap_err();
    assert!(error.to_string().contains("truncated while running"), "{error}");
    assert!(bundle.verify_all(|_| {}).is_err());
}

#[test]
fn threads_share_a_bundle() {
    let (_folder, path) = written();
    let bundle = BundleFile::open(&path).unwrap();
    let weights = testing::weights();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (bundle, weights) = (&bundle, &weights);
            scope.spawn(move || {
                for offset in (start * 100..weights.len() - 64).step_by(333) {
                    let mut bytes = [0; 64];
                    bundle.read_weights(offset as u64, &mut bytes).unwrap();
                    assert_eq!(bytes, weights[offset..offset + 64]);
                }
            });
        }
    });
}

#[test]
fn a_dropped_writer_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.kiln");
    let mut writer = BundleWriter::create(&path).unwrap();
    writer.write_block(&[1; 100]).unwrap();
    assert!(!path.exists());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_unsound_plan_is_not_written_over_an_old_bundle() {
    let (folder, path) = written();
    let before = fs::read(&path).unwrap();
    let mut plan = testing::plan();
    plan.memory.budget_bytes = 1;
    let writer = BundleWriter::create(&path).unwrap();
    let error = writer.finish(&plan, &[]).unwrap_err();
    assert!(matches!(error, BundleError::Unsound { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn two_writers_of_one_path_do_not_meet() {
    let (folder, path) = written();
    let before = fs::read(&path).unwrap();
    let first = BundleWriter::create(&path).unwrap();
    testing::write(&path).unwrap();
    drop(first);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_failing_producer_keeps_its_own_error() {
    #[derive(Debug)]
    enum Failure {
        Checkpoint,
        Bundle,
    }
    impl From<BundleError> for Failure {
        fn from(_: BundleError) -> Self {
            Failure::Bundle
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BundleWriter::create(&folder.path().join("x.kiln")).unwrap();
    let chunks = [Ok([1u8; 10]), Err(Failure::Checkpoint), Ok([2; 10])];
    let error = writer.write_stream(chunks).unwrap_err();
    assert!(matches!(error, Failure::Checkpoint), "{error:?}");
    assert_eq!(writer.write_stream([Ok::<_, Failure>([1u8; 10])]).unwrap(), 4096);
}

#[test]
fn what_is_no_bundle_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = BundleFile::open(&folder.path().join("missing.kiln")).err().unwrap();
    assert!(missing.to_string().contains("missing.kiln"), "{missing}");
    assert!(BundleFile::open(folder.path()).is_err());
    assert!(BundleWriter::create(std::path::Path::new("/")).is_err());
    for contents in [&b""[..], b"PK\x03\x04", &[0; 5000]] {
        let path = folder.path().join("other.bin");
        fs::write(&path, contents).unwrap();
        let error = BundleFile::open(&path).err().unwrap();
        assert!(matches!(error, BundleError::NotABundle { .. }), "{error}");
    }
}

#[test]
fn another_version_is_named() {
    let (_folder, path) = written();
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = VERSION as u8 + 1;
    fs::write(&path, bytes).unwrap();
    let error = BundleFile::open(&path).err().unwrap();
    let BundleError::Version { found, supported, .. } = error else { panic!("{error}") };
    assert_eq!((found, supported), (VERSION + 1, VERSION));
}

#[test]
fn a_tokenizer_that_no_reader_takes_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BundleWriter::create(&folder.path().join("x.kiln")).unwrap();
    writer.write_block(&testing::weights()).unwrap();
    let tokenizer = vec![0; MAX_TOKENIZER_BYTES as usize + 1];
    let error = writer.finish(&testing::plan(), &tokenizer).unwrap_err();
    assert!(matches!(error, BundleError::TooLarge { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn verification_finds_the_block_wherever_chunks_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chain.kiln");
    let sizes = [(3 << 20) + 5, 1 << 20, 4096, (1 << 20) - 8192, 1, (2 << 20) + 1];
    let mut plan = testing::chain(&sizes);
    let mut writer = BundleWriter::create(&path).unwrap();
    for (index, block) in plan.blocks.iter_mut().enumerate() {
        let bytes = vec![index as u8 + 1; block.len_bytes as usize];
        let (offset_bytes, len_bytes, checksum) = writer.write_block(&bytes).unwrap();
        assert_eq!((offset_bytes, len_bytes), (block.offset_bytes, block.len_bytes));
        block.checksum = checksum;
    }
    let table_at = writer.write_stream([Ok::<_, BundleError>([7; 100])]).unwrap();
    writer.finish(&plan, b"").unwrap();

    let bundle = BundleFile::open(&path).unwrap();
    let mut heard = vec![];
    bundle.verify_all(|done_bytes| heard.push(done_bytes)).unwrap();
    assert!(heard.is_sorted() && heard.last() == Some(&bundle.weights_len_bytes()), "{heard:?}");
    let good = fs::read(&path).unwrap();
    let weights_at = bundle.weights_at_bytes();
    let flipped = |offset: u64| {
        let mut bytes = good.clone();
        bytes[(weights_at + offset) as usize] ^= 4;
        fs::write(&path, bytes).unwrap();
        BundleFile::open(&path).unwrap().verify_all(|_| {}).unwrap_err()
    };
    for (index, block) in plan.blocks.iter().enumerate() {
        for offset in [block.offset_bytes, block.offset_bytes + block.len_bytes - 1] {
            match flipped(offset) {
                BundleError::CorruptBlock { block, .. } => assert_eq!(block as usize, index),
                other => panic!("{other}"),
            }
        }
    }
    assert!(matches!(flipped(table_at), BundleError::Corrupt { what: "a weight table", .. }));
}

#[test]
fn a_bundle_inside_of_another_file_is_read_in_place() {
    let (folder, path) = written();
    let bundle = fs::read(&path).unwrap();
    let name = Path::new("assets/model.kiln");
    // Packages align files to 4 bytes, not to pages.
    for before in [0, 4, 4096, 5000] {
        let package = folder.path().join("package.apk");
        let bytes = [&vec![7; before][..], &bundle, b"what follows"].concat();
        fs::write(&package, bytes).unwrap();
        let open = |offset_bytes, len_bytes| {
            BundleFile::open_at(File::open(&package).unwrap(), offset_bytes, len_bytes, name)
        };
        let (offset_bytes, len_bytes) = (before as u64, bundle.len() as u64);
        let (whole, part) =
            (BundleFile::open(&path).unwrap(), open(offset_bytes, len_bytes).unwrap());
        assert_eq!((part.plan(), part.tokenizer()), (whole.plan(), whole.tokenizer()));
        assert_eq!(part.weights_at_bytes(), offset_bytes + whole.weights_at_bytes());
        part.verify_all(|_| {}).unwrap();
        for (offset_bytes, len_bytes) in [
            (offset_bytes, len_bytes - 1),
            (offset_bytes, len_bytes + 1),
            (offset_bytes + 1, len_bytes),
            (offset_bytes, u64::MAX),
            (u64::MAX, len_bytes),
        ] {
            let error = open(offset_bytes, len_bytes).map(drop).unwrap_err().to_string();
            assert!(error.contains("assets/model.kiln"), "{error}");
        }
    }
    let folder = File::open(folder.path()).unwrap();
    let error = BundleFile::open_at(folder, 0, 4096, name).map(drop).unwrap_err();
    assert!(matches!(error, BundleError::NotABundle { .. }), "{error}");
}
