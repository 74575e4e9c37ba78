//! Unicode as far as prompts need it: character classes as Python's `str` and `re` define them, and
//! the composed normal form.
//!
//! The tables are made from crates that follow the standard, which only the tests link.

mod nfc;
mod tables;

use std::cmp::Ordering;

pub(super) use nfc::nfc;
use tables::{DECIMALS, LETTERS, NUMBERS, WIDTHS};

/// Whether `str.split()` and `\s` take the character for white space.
///
/// Unicode's `White_Space`, and the four separators U+001C..=U+001F.
pub(super) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// Whether the character is a letter (`\p{L}`).
pub(super) fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic() || !c.is_ascii() && is_in(LETTERS, c)
}

/// Whether the character is a number (`\p{N}`): digits, letter-like numbers and fractions.
pub(super) fn is_number(c: char) -> bool {
    c.is_ascii_digit() || !c.is_ascii() && is_in(NUMBERS, c)
}

/// Whether the character is a decimal digit of any script (`\d`).
pub(super) fn is_decimal_digit(c: char) -> bool {
    is_in(DECIMALS, c)
}

/// Whether the character is part of a word (`\w`).
pub(super) fn is_word(c: char) -> bool {
    c == '_' || is_letter(c) || is_number(c)
}

/// What U+FF01..=U+FFEF is a wide or narrow form of: its normal form KC, where that is another.
pub(super) fn ordinary_width(c: char) -> Option<&'static str> {
    let found = WIDTHS.binary_search_by_key(&c, |entry| entry.0).ok()?;
    Some(WIDTHS[found].1)
}

/// Whether a character is in one of the ranges, which are sorted.
fn is_in(ranges: &[(char, char)], c: char) -> bool {
    let place = |&(first, last): &(char, char)| match c {
        _ if last < c => Ordering::Less,
        _ if first > c => Ordering::Greater,
        _ => Ordering::Equal,
    };
    ranges.binary_search_by(place).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::path::Path;

    use unicode_normalization::UnicodeNormalization;
    use unicode_normalization::char::{canonical_combining_class, compose, decompose_canonical};
    use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

    const TOP: &str = "\
//! Tables of Unicode, by the `unicode-normalization` and `unicode-properties` crates. Written by
//! `KILN_WRITE_TABLES=1 cargo test -p kiln-runtime --lib tables`; do not edit.

";

    /// Runs of characters with the same value, but for those without one.
    fn runs<T: PartialEq + Copy>(value: impl Fn(char) -> Option<T>) -> Vec<(char, char, T)> {
        let mut list: Vec<(char, char, T)> = Vec::new();
        for c in '\0'..=char::MAX {
            let Some(value) = value(c) else { continue };
            match list.last_mut() {
                Some((_, last, same)) if *same == value && *last as u32 + 1 == c as u32 => {
                    *last = c
                }
                _ => list.push((c, c, value)),
            }
        }
        list
    }

    fn table(text: &mut String, doc: &str, name: &str, ty: &str, entries: Vec<String>) {
        write!(text, "/// {doc}\n#[rustfmt::skip]\npub(super) const {name}: &[{ty}] = &[").unwrap();
        let mut column = 100;
        for entry in entries {
            if column + entry.len() + 2 > 99 {
                text.push_str("\n   ");
                column = 3;
            }
            column += entry.len() + 2;
            write!(text, " {entry},").unwrap();
        }
        text.push_str("\n];\n\n");
    }

    fn escape(c: char) -> String {
        format!("'\\u{{{:x}}}'", c as u32)
    }

    fn made() -> String {
        let mut text = TOP.to_owned();
        let group = |wanted| runs(move |c| (c.general_category_group() == wanted).then_some(()));
        let decimal = |c: char| c.general_category() == GeneralCategory::DecimalNumber;
        for (doc, name, list) in [
            ("Letters (`\\p{L}`).", "LETTERS", group(GeneralCategoryGroup::Letter)),
            ("Numbers (`\\p{N}`).", "NUMBERS", group(GeneralCategoryGroup::Number)),
            ("Decimal digits (`\\p{Nd}`).", "DECIMALS", runs(|c| decimal(c).then_some(()))),
        ] {
            let entry = |(a, b, ()): (char, char, ())| format!("({}, {})", escape(a), escape(b));
            table(&mut text, doc, name, "(char, char)", list.into_iter().map(entry).collect());
        }
        let classes = runs(|c| Some(canonical_combining_class(c)).filter(|&class| class != 0));
        let class = |(a, b, n): (char, char, u8)| format!("({}, {}, {n})", escape(a), escape(b));
        let doc = "Combining classes other than 0.";
        let classes = classes.into_iter().map(class).collect();
        table(&mut text, doc, "CLASSES", "(char, char, u8)", classes);
        let (mut decompositions, mut compositions) = (Vec::new(), Vec::new());
        for c in ('\0'..=char::MAX).filter(|c| !('\u{ac00}'..='\u{d7a3}').contains(c)) {
            let mut parts = Vec::new();
            decompose_canonical(c, |part| parts.push(part));
            if parts == [c] {
                continue;
            }
            let string: String = parts.iter().map(|&part| escape(part).replace('\'', "")).collect();
            decompositions.push(format!("({}, \"{string}\")", escape(c)));
            let (last, rest) = parts.split_last().unwrap();
            let first: Vec<char> = rest.iter().copied().nfc().collect();
            if let [first] = first[..]
                && compose(first, *last) == Some(c)
            {
                compositions.push((first, *last, c));
            }
        }
        let doc = "Canonical decompositions, but for Hangul's.";
        table(&mut text, doc, "DECOMPOSITIONS", "(char, &str)", decompositions);
        compositions.sort_unstable();
        let entry = |(a, b, c)| format!("({}, {}, {})", escape(a), escape(b), escape(c));
        let compositions = compositions.into_iter().map(entry).collect();
        let doc = "Pairs and what they are together, but for Hangul's.";
        table(&mut text, doc, "COMPOSITIONS", "(char, char, char)", compositions);
        let string = |parts: &[char]| -> String {
            parts.iter().map(|&part| escape(part).replace('\'', "")).collect()
        };
        let plain = |c: char| {
            let parts: Vec<char> = c.nfkc().collect();
            (parts != [c]).then(|| format!("({}, \"{}\")", escape(c), string(&parts)))
        };
        let widths = ('\u{ff01}'..='\u{ffef}').filter_map(plain).collect();
        table(&mut text, "Wide and narrow forms.", "WIDTHS", "(char, &str)", widths);
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    #[test]
    fn the_tables_are_those_of_the_crates() {
        let path = "src/pipeline/tokenizer/unicode/tables.rs";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let made = made();
        if std::env::var_os("KILN_WRITE_TABLES").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert!(std::fs::read_to_string(&path).unwrap() == made, "set KILN_WRITE_TABLES=1");
    }

    #[test]
    fn classes_are_those_of_the_crates() {
        for c in '\0'..=char::MAX {
            let group = c.general_category_group();
            assert_eq!(super::is_letter(c), group == GeneralCategoryGroup::Letter, "{c:?}");
            assert_eq!(super::is_number(c), group == GeneralCategoryGroup::Number, "{c:?}");
            let decimal = c.general_category() == GeneralCategory::DecimalNumber;
            assert_eq!(super::is_decimal_digit(c), decimal, "{c:?}");
        }
    }
}
