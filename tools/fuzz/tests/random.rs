//! Every target on its seeds, on damaged seeds, and on inputs that once broke it.

use std::fs;
use std::path::Path;

use arbtest::{arbitrary, arbtest};
use kiln_fuzz::{TARGETS, Target};

/// Time for the damaged seeds of a target.
const BUDGET_MS: u64 = 300;

/// Overwrites, flips, cuts, repeats and inserts.
fn damage(mut bytes: Vec<u8>, u: &mut arbitrary::Unstructured) -> arbitrary::Result<Vec<u8>> {
    for _ in 0..u.int_in_range(1..=4)? {
        if bytes.is_empty() {
            break;
        }
        let at = u.choose_index(bytes.len())?;
        match u.int_in_range(0..=5)? {
            0 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
            1 => bytes[at] = u.arbitrary()?,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, u.arbitrary()?),
            4 => {
                let end = (at + u.int_in_range(1..=64)?).min(bytes.len());
                bytes.extend_from_within(at..end);
            }
            _ => bytes[at] = *u.choose(b"0123456789,:[]{}()\"'-eLx\n\0\xff")?,
        }
    }
    Ok(bytes)
}

fn hold(target: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{}", target.name);
    for seed in &seeds {
        (target.run)(folder.path(), seed);
    }
    let broken = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/broken").join(target.name);
    for entry in fs::read_dir(broken).into_iter().flatten() {
        (target.run)(folder.path(), &fs::read(entry.unwrap().path()).unwrap());
    }
    arbtest(|u| {
        let seed = u.choose(&seeds)?.clone();
        (target.run)(folder.path(), &damage(seed, u)?);
        Ok(())
    })
    .budget_ms(BUDGET_MS);
}

#[test]
fn damaged_inputs_are_refused_in_one_line() {
    TARGETS.iter().for_each(hold);
}
