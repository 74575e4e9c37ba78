//! Damage to the file while it is used: one clear error, and never a wait without end.

mod small;

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use kiln_bundle::BundleError;
use kiln_bundle::plan::Plan;
use kiln_runtime::{Progress, Request, RuntimeError, Session, SessionOptions};
use small::Small;

fn merges() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../graphs/assets/clip_merges.txt");
    std::fs::read(path).unwrap()
}

/// Fails the test if `body` takes a minute.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(body()));
    receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs, or it panicked")
}

fn damage(path: &Path, plan: &Plan, block: usize) {
    let mut file = OpenOptions::new().write(true).open(path).unwrap();
    // The weights begin after the header's page.
    file.seek(SeekFrom::Start(4096 + plan.blocks[block].offset_bytes + 5000)).unwrap();
    file.write_all(&[0xff; 4]).unwrap();
}

fn generate(session: &mut Session, mut at_step: impl FnMut(usize)) -> Result<(), RuntimeError> {
    let request = Request { steps: Some(6), ..Request::default() };
    let observe = &mut |progress: Progress<'_>| {
        if let Progress::Step { done, .. } = progress {
            at_step(done);
        }
        ControlFlow::Continue(())
    };
    session.generate(&request, observe).map(drop)
}

#[test]
fn a_corrupt_block_is_named() {
    for block in 0..=small::RESIDENT_BLOCK + 1 {
        for staging_bytes in [0, 8192] {
            let error = in_time(move || {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("small.kiln");
                let small = Small { staging_bytes, ..Small::default() };
                let plan = small.write(&path, &merges());
                damage(&path, &plan, block);
                let mut session = Session::open(&path, &SessionOptions::default()).unwrap();
                let error = generate(&mut session, |_| {}).unwrap_err();
                // And again: nothing is left behind.
                assert!(generate(&mut session, |_| {}).is_err());
                error
            });
            assert!(
                matches!(error, RuntimeError::Bundle(BundleError::CorruptBlock { .. })),
                "{error}"
            );
            assert!(error.to_string().contains(&format!("block {block}")), "{error}");
            assert_eq!(error.exit_code(), 1);
        }
    }
}

#[test]
fn a_file_that_is_cut_while_running_is_an_error() {
    for keep_bytes in [0, 4096 + small::BLOCK_BYTES * 4] {
        let error = in_time(move || {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("small.kiln");
            Small::default().write(&path, &merges());
            let mut session = Session::open(&path, &SessionOptions::default()).unwrap();
            let cut = |step| {
                if step == 2 {
                    OpenOptions::new()
                        .write(true)
                        .open(&path)
                        .unwrap()
                        .set_len(keep_bytes)
                        .unwrap();
                }
            };
            generate(&mut session, cut).unwrap_err()
        });
        assert!(matches!(error, RuntimeError::Bundle(BundleError::Truncated { .. })), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_is_removed_while_running_is_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, &merges());
    let mut session = Session::open(&path, &SessionOptions::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    generate(&mut session, |_| {}).unwrap();
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    let mut plan = Small::default().write(&path, b"");
    plan.sources[0] = "__kernel void scale() { undeclared_thing(); }".into();
    let again = folder.path().join("again.kiln");
    let weights = std::fs::read(&path).unwrap();
    let mut writer = kiln_bundle::BundleWriter::create(&again).unwrap();
    let end = plan.blocks.last().map(|b| b.offset_bytes + b.len_bytes).unwrap() as usize;
    let table = small::VOCABULARY * (small::WIDTH * 4 + 8);
    writer.write_block(&weights[4096..4096 + end + table]).unwrap();
    writer.finish(&plan, b"").unwrap();
    let error = Session::open(&again, &SessionOptions::default()).err().unwrap();
    assert!(matches!(error, RuntimeError::Build { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("undeclared_thing") && message.contains("scale"), "{message}");
    assert!(message.contains("CL_BUILD_PROGRAM_FAILURE"), "{message}");
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn a_picture_without_a_tokenizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.kiln");
    Small::default().write(&path, b"");
    let mut session = Session::open(&path, &SessionOptions::default()).unwrap();
    assert!(generate(&mut session, |_| {}).unwrap_err().to_string().contains("tokenizer"));
}
