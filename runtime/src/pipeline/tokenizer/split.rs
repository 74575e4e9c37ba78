//! Cleans a prompt and splits it into the pieces that byte-pair encoding works on.
//!
//! Source: `basic_clean`, `whitespace_clean` and the pattern of open_clip 3.3.0's
//! `SimpleTokenizer`.

use super::{entities, mojibake, unicode};

/// Markers that a prompt may contain literally.
pub(super) const START_OF_TEXT: &str = "<start_of_text>";
pub(super) const END_OF_TEXT: &str = "<end_of_text>";

/// Repairs the text, decodes HTML references twice, collapses white space and lowers the case.
pub(super) fn clean(text: &str) -> String {
    let fixed = mojibake::fix_text(text);
    let once = entities::unescape(&fixed);
    let twice = entities::unescape(&once);
    let words = twice.split(unicode::is_python_space).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Splits cleaned text into markers, contractions, runs of letters, single numbers and runs of
/// other characters. Separators are dropped.
pub(super) fn pieces(cleaned: &str) -> impl Iterator<Item = &str> {
    let mut rest = cleaned;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(is_separator);
        let first = rest.chars().next()?;
        let (piece, later) = rest.split_at(piece_length_bytes(rest, first));
        rest = later;
        Some(piece)
    })
}

/// Length of the leading piece of `text`. Its first character is `first`, which is no separator.
fn piece_length_bytes(text: &str, first: char) -> usize {
    const CONTRACTIONS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
    let literals = [START_OF_TEXT, END_OF_TEXT].into_iter().chain(CONTRACTIONS);
    let literal = literals.filter_map(|literal| prefix_length_bytes(text, literal)).next();
    let run = |member: fn(char) -> bool| text.find(|c| !member(c)).unwrap_or(text.len());
    match literal {
        Some(length_bytes) => length_bytes,
        None if unicode::is_letter(first) => run(unicode::is_letter),
        None if unicode::is_number(first) => first.len_utf8(),
        None => run(is_other),
    }
}

/// White space, and the iota subscript. The pattern ignores case: the iota subscript folds to a
/// small iota and so is excluded from the other characters, but is no letter itself.
fn is_separator(c: char) -> bool {
    c.is_whitespace() || c == '\u{345}'
}

fn is_other(c: char) -> bool {
    !is_separator(c) && !unicode::is_letter(c) && !unicode::is_number(c)
}

/// Length of `literal` at the start of `text`, ignoring case. In lower-case text the only exception
/// is the long s, which folds to s.
fn prefix_length_bytes(text: &str, literal: &str) -> Option<usize> {
    let mut chars = text.chars();
    let matches = literal.chars().all(|expected| {
        chars
            .next()
            .is_some_and(|c| c.eq_ignore_ascii_case(&expected) || c == 'ſ' && expected == 's')
    });
    matches.then(|| text.len() - chars.as_str().len())
}
