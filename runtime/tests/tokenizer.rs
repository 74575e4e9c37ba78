//! The tokenizer against ids that open_clip 3.3.0 gave.

use std::path::{Path, PathBuf};

use kiln_runtime::pipeline::tokenizer::{CONTEXT_LENGTH, END_ID, START_ID, Tokenizer};

fn in_crate(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn tokenizer() -> Tokenizer {
    let merges = std::fs::read(in_crate("../graphs/assets/clip_merges.txt")).expect("merges");
    Tokenizer::from_merges(&merges).expect("CLIP's merges")
}

#[test]
fn ids_equal_open_clip() {
    let tokenizer = tokenizer();
    let goldens = std::fs::read_to_string(in_crate("tests/data/tokenizer.jsonl")).expect("goldens");
    let mut failures = Vec::new();
    let mut count = 0;
    for line in goldens.lines() {
        let golden: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let prompt = golden["prompt"].as_str().expect("a prompt");
        let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone()).expect("ids");
        // The goldens stop at the first end token, which a prompt may contain literally.
        let mut found = tokenizer.encode(prompt);
        let end = found.iter().position(|&id| id == END_ID).expect("an end token");
        found.truncate(end + 1);
        if found != ids {
            failures.push(format!("{prompt:?}\n  found    {found:?}\n  expected {ids:?}"));
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
    assert!(count > 600, "only {count} prompts");
}

#[test]
fn an_overlong_prompt_is_cut_and_says_so() {
    let tokenizer = tokenizer();
    let fits = tokenizer.tokenize(&"heart ".repeat(CONTEXT_LENGTH - 2));
    assert_eq!((fits.ids.len(), fits.truncated), (CONTEXT_LENGTH, false));
    let cut = tokenizer.tokenize(&"heart ".repeat(CONTEXT_LENGTH - 1));
    assert_eq!((cut.ids.len(), cut.truncated), (CONTEXT_LENGTH, true));
    assert_eq!((cut.ids.first(), cut.ids.last()), (Some(&START_ID), Some(&END_ID)));
    assert_eq!(cut.ids, fits.ids);
}

#[test]
fn literal_markers_are_their_tokens() {
    let ids = tokenizer().encode("<start_of_text>hi<end_of_text>");
    assert_eq!(ids, [START_ID, START_ID, 1883, END_ID, END_ID]);
}

#[test]
fn the_iota_subscript_separates() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("a\u{345}b!\u{345}!"), tokenizer.encode("a b! !"));
}

#[test]
fn padding_is_zero() {
    let encoding = tokenizer().tokenize("a red heart");
    let padded = encoding.padded();
    assert_eq!(padded[..6], [49406, 320, 736, 1936, 49407, 0]);
    assert!(!encoding.truncated && padded[6..].iter().all(|&id| id == 0));
}

#[test]
fn a_damaged_vocabulary_is_an_error() {
    let merges = std::fs::read(in_crate("../graphs/assets/clip_merges.txt")).expect("merges");
    for damaged in [&b""[..], b"#version\n\xff", &merges[..merges.len() / 2], b"#version\na\n"] {
        assert!(Tokenizer::from_merges(damaged).is_err());
    }
    let twice = String::from_utf8_lossy(&merges).replacen("t h\n", "i n\n", 1);
    assert!(Tokenizer::from_merges(twice.as_bytes()).is_err());
}

#[test]
fn a_very_long_word_takes_no_quadratic_time() {
    let tokenizer = tokenizer();
    let word: String =
        (0..200_000u32).map(|n| char::from(b'a' + (n % 4099 * (n % 4093) % 23) as u8)).collect();
    assert!(tokenizer.tokenize(&word).truncated);
}

#[test]
fn any_text_gives_valid_ids() {
    let tokenizer = tokenizer();
    arbtest::arbtest(|u| {
        let text: String = u.arbitrary()?;
        let encoding = tokenizer.tokenize(&text);
        assert!((2..=CONTEXT_LENGTH).contains(&encoding.ids.len()));
        assert!(encoding.ids.iter().all(|&id| id <= END_ID));
        Ok(())
    });
}
