//! Bundles from anywhere: errors, not panics, and no more memory than the file's size warrants.
//!
//! The allocator counts what each thread holds, so that a test sees the peak of its own calls.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use arbtest::arbitrary::{self, Unstructured};
use kiln_bundle::check::check;
use kiln_bundle::format::encode_plans;
use kiln_bundle::{BundleError, BundleFile, codec, hash, testing};

thread_local! {
    static LIVE_BYTES: Cell<i64> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: i64) {
    let live_bytes = LIVE_BYTES.get() + bytes;
    LIVE_BYTES.set(live_bytes);
    PEAK_BYTES.set(PEAK_BYTES.get().max(live_bytes));
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a few kilobytes of forged plan may make a reader allocate: each of a few nested vectors
/// may reserve the mebibyte that serde allows before its first element turns out to be missing.
const MOST_BYTES: i64 = 5 << 20;

fn within_memory<T>(body: impl FnOnce() -> T) -> T {
    let before_bytes = LIVE_BYTES.get();
    PEAK_BYTES.set(before_bytes);
    let result = body();
    let peak_bytes = PEAK_BYTES.get() - before_bytes;
    assert!(peak_bytes < MOST_BYTES, "{peak_bytes} bytes were allocated");
    result
}

struct Fixture {
    _folder: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.kiln");
        testing::write(&path).unwrap();
        let programs = [(7, b"a program".to_vec()), (u128::MAX, vec![3; 500])];
        BundleFile::open(&path).unwrap().write_with_programs(&path, &programs).unwrap();
        let bytes = fs::read(&path).unwrap();
        Fixture { _folder: folder, path, bytes }
    }

    /// Opens other bytes under the same name, and reads all of them if they open.
    fn verify(&self, bytes: &[u8]) -> Result<(), BundleError> {
        fs::write(&self.path, bytes).unwrap();
        within_memory(|| BundleFile::open(&self.path)?.verify_all(|_| {}))
    }
}

const PAGE: usize = 4096;

/// Makes the header's checksum right again.
fn reseal(bytes: &mut [u8]) {
    let checksum = hash(&bytes[..PAGE - 8]);
    bytes[PAGE - 8..PAGE].copy_from_slice(&checksum.to_le_bytes());
}

/// Start and end of a section, by its row in the table.
fn section(bytes: &[u8], row: usize) -> (usize, usize) {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let at = 24 + 32 * row;
    (word(at + 8), word(at + 8) + word(at + 16))
}

/// Integers at which arithmetic breaks, and any others.
fn absurd(u: &mut Unstructured<'_>) -> arbitrary::Result<u64> {
    Ok(match u.int_in_range(0..=5)? {
        0 => u64::MAX,
        1 => 1 << u.int_in_range(0..=63)?,
        2 => (1u64 << u.int_in_range(1..=63)?) - 1,
        3 => i64::MAX as u64,
        4 => u.int_in_range(0..=5000)?,
        _ => u.arbitrary()?,
    })
}

#[test]
fn any_truncation_is_refused() {
    let fixture = Fixture::new();
    let len = fixture.bytes.len();
    for cut in (0..len).step_by(61).chain([4095, 4096, 4097, len - 1]) {
        assert!(fixture.verify(&fixture.bytes[..cut]).is_err(), "{cut} bytes");
    }
    let longer = [&fixture.bytes[..], &[0]].concat();
    assert!(matches!(fixture.verify(&longer), Err(BundleError::Length { .. })));
    fixture.verify(&fixture.bytes).unwrap();
}

#[test]
fn any_bit_flip_is_found() {
    let fixture = Fixture::new();
    let (weights_end, _) = section(&fixture.bytes, 1);
    let (programs_at, _) = section(&fixture.bytes, 3);
    arbtest::arbtest(|u| {
        let mut bytes = fixture.bytes.clone();
        let at = match u.ratio(1, 2)? {
            true => u.int_in_range(0..=160)?,
            false => u.int_in_range(0..=bytes.len() - 1)?,
        };
        bytes[at] ^= 1 << u.int_in_range(0..=7)?;
        assert!(fixture.verify(&bytes).is_err(), "byte {at}");
        if !(PAGE..weights_end).contains(&at) && at < programs_at {
            assert!(BundleFile::open(&fixture.path).is_err(), "byte {at}");
        }
        Ok(())
    })
    .budget_ms(1500);
}

#[test]
fn a_forged_header_is_refused() {
    let fixture = Fixture::new();
    arbtest::arbtest(|u| {
        let mut bytes = fixture.bytes.clone();
        for _ in 0..u.int_in_range(1..=3)? {
            let at = 8 * u.int_in_range(1..=19)?;
            bytes[at..at + 8].copy_from_slice(&absurd(u)?.to_le_bytes());
        }
        let changed = bytes != fixture.bytes;
        reseal(&mut bytes);
        assert!(fixture.verify(&bytes).is_err() || !changed);
        Ok(())
    })
    .budget_ms(1000);
}

/// Replaces the plan, and makes every checksum and length right again.
fn with_plan(bytes: &[u8], plan: &[u8]) -> Vec<u8> {
    let (plan_at, plan_end) = section(bytes, 1);
    let mut forged = [&bytes[..plan_at], plan, &bytes[plan_end..]].concat();
    let mut put = |at: usize, word: u64| forged[at..at + 8].copy_from_slice(&word.to_le_bytes());
    put(16, (bytes.len() - (plan_end - plan_at) + plan.len()) as u64);
    put(24 + 32 + 16, plan.len() as u64);
    put(24 + 32 + 24, hash(plan));
    let tokenizer_at = plan_at + plan.len();
    put(24 + 64 + 8, tokenizer_at as u64);
    put(24 + 96 + 8, (section(bytes, 3).0 - plan_end + tokenizer_at) as u64);
    reseal(&mut forged);
    forged
}

#[test]
fn a_forged_plan_neither_panics_nor_fills_memory() {
    let fixture = Fixture::new();
    let plan = encode_plans(&[testing::plan()]).unwrap();
    fixture.verify(&with_plan(&fixture.bytes, &plan)).unwrap();
    arbtest::arbtest(|u| {
        let mut plan = plan.clone();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.int_in_range(0..=plan.len() - 8)?;
            let word = absurd(u)?.to_le_bytes();
            let len = *u.choose(&[1, 4, 8])?;
            plan[at..at + len].copy_from_slice(&word[..len]);
        }
        let _ = fixture.verify(&with_plan(&fixture.bytes, &plan));
        Ok(())
    })
    .budget_ms(2500);
}

#[test]
fn a_forged_index_of_programs_neither_panics_nor_fills_memory() {
    let fixture = Fixture::new();
    let (at, end) = section(&fixture.bytes, 3);
    arbtest::arbtest(|u| {
        let mut bytes = fixture.bytes.clone();
        for _ in 0..u.int_in_range(1..=3)? {
            let word = at + 8 * u.int_in_range(0..=8)?;
            bytes[word..word + 8].copy_from_slice(&absurd(u)?.to_le_bytes());
        }
        let checksum = hash(&bytes[at..end]).to_le_bytes();
        bytes[24 + 96 + 24..24 + 96 + 32].copy_from_slice(&checksum);
        reseal(&mut bytes);
        fs::write(&fixture.path, &bytes).unwrap();
        within_memory(|| {
            let Ok(bundle) = BundleFile::open(&fixture.path) else { return };
            for name in bundle.program_names() {
                let _ = bundle.read_program(name);
            }
        });
        Ok(())
    })
    .budget_ms(1000);
}

#[test]
fn a_forged_plan_that_decodes_does_not_panic_the_checker() {
    let encoded = codec::encode(&testing::plan()).unwrap();
    let mut decoded_count = 0;
    arbtest::arbtest(|u| {
        let mut plan = encoded.clone();
        for _ in 0..u.int_in_range(1..=3)? {
            let at = u.int_in_range(0..=plan.len() - 8)?;
            plan[at] = u.arbitrary()?;
        }
        within_memory(|| {
            if let Ok(plan) = codec::decode(&plan) {
                decoded_count += 1;
                let _ = check(&plan, 20480);
                let _ = check(&plan, u64::MAX);
            }
        });
        Ok(())
    })
    .budget_ms(1500);
    assert!(decoded_count > 100, "{decoded_count} plans decoded");
}

#[test]
fn any_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("noise.kiln");
    let open = |path: &Path| within_memory(|| BundleFile::open(path).is_err());
    arbtest::arbtest(|u| {
        let bytes: Vec<u8> = u.arbitrary()?;
        fs::write(&path, &bytes).unwrap();
        assert!(open(&path));
        assert!(within_memory(|| codec::decode(&bytes)).is_err());
        Ok(())
    })
    .budget_ms(500);
}
