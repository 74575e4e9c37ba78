//! Unicode's composed normal form.

use super::tables::{CLASSES, COMPOSITIONS, DECOMPOSITIONS};

/// Hangul syllables are composed by arithmetic.
///
/// Source: The Unicode Standard, section 3.12.
mod hangul {
    pub(super) const SYLLABLES: u32 = 0xac00;
    pub(super) const LEADING: u32 = 0x1100;
    pub(super) const VOWELS: u32 = 0x1161;
    /// One before the first trailing consonant.
    pub(super) const TRAILING: u32 = 0x11a7;
    pub(super) const LEADING_COUNT: u32 = 19;
    pub(super) const VOWEL_COUNT: u32 = 21;
    pub(super) const TRAILING_COUNT: u32 = 28;
    pub(super) const SYLLABLE_COUNT: u32 = LEADING_COUNT * VOWEL_COUNT * TRAILING_COUNT;
}

/// The text in normal form C.
///
/// Source: Unicode Standard Annex 15.
pub(in super::super) fn nfc(text: &str) -> String {
    let mut chars = Vec::with_capacity(text.len());
    for c in text.chars() {
        decompose(c, &mut chars);
    }
    order(&mut chars);
    compose(&mut chars);
    chars.into_iter().map(|(c, _)| c).collect()
}

/// Appends a character's canonical decomposition, each with its combining class.
fn decompose(c: char, out: &mut Vec<(char, u8)>) {
    let index = u32::from(c).wrapping_sub(hangul::SYLLABLES);
    if index < hangul::SYLLABLE_COUNT {
        let vowels = hangul::VOWEL_COUNT * hangul::TRAILING_COUNT;
        let trailing = index % hangul::TRAILING_COUNT;
        let parts = [
            hangul::LEADING + index / vowels,
            hangul::VOWELS + index % vowels / hangul::TRAILING_COUNT,
            hangul::TRAILING + trailing,
        ];
        let count = if trailing == 0 { 2 } else { 3 };
        out.extend(parts[..count].iter().filter_map(|&part| char::from_u32(part)).map(|c| (c, 0)));
        return;
    }
    match DECOMPOSITIONS.binary_search_by_key(&c, |entry| entry.0) {
        Ok(found) => out.extend(DECOMPOSITIONS[found].1.chars().map(|part| (part, class(part)))),
        Err(_) => out.push((c, class(c))),
    }
}

/// Canonical combining class: 0 for what begins a sequence.
fn class(c: char) -> u8 {
    let found = CLASSES.binary_search_by(|&(first, last, _)| {
        let before = if last < c { std::cmp::Ordering::Less } else { std::cmp::Ordering::Equal };
        if first > c { std::cmp::Ordering::Greater } else { before }
    });
    found.map_or(0, |index| CLASSES[index].2)
}

/// Sorts the marks behind each character that begins a sequence.
fn order(chars: &mut [(char, u8)]) {
    for marks in chars.chunk_by_mut(|a, b| (a.1 == 0) == (b.1 == 0)) {
        if marks[0].1 != 0 {
            marks.sort_by_key(|&(_, class)| class);
        }
    }
}

/// Joins each mark with the character before it that begins a sequence, where no mark between them
/// is of its class or a higher one.
fn compose(chars: &mut Vec<(char, u8)>) {
    let mut kept = 0;
    let mut starter: Option<usize> = None;
    // Class of the last mark that was kept behind the starter.
    let mut last = None;
    for at in 0..chars.len() {
        let (c, own) = chars[at];
        if let Some(index) = starter
            && last.is_none_or(|last| last < own)
            && let Some(joined) = pair(chars[index].0, c)
        {
            chars[index].0 = joined;
            continue;
        }
        if own == 0 {
            (starter, last) = (Some(kept), None);
        } else {
            last = Some(own);
        }
        chars[kept] = (c, own);
        kept += 1;
    }
    chars.truncate(kept);
}

/// The character that two are.
fn pair(a: char, b: char) -> Option<char> {
    let (leading, vowel) =
        (u32::from(a).wrapping_sub(hangul::LEADING), u32::from(b).wrapping_sub(hangul::VOWELS));
    if leading < hangul::LEADING_COUNT && vowel < hangul::VOWEL_COUNT {
        let index = (leading * hangul::VOWEL_COUNT + vowel) * hangul::TRAILING_COUNT;
        return char::from_u32(hangul::SYLLABLES + index);
    }
    let (syllable, trailing) =
        (u32::from(a).wrapping_sub(hangul::SYLLABLES), u32::from(b).wrapping_sub(hangul::TRAILING));
    if syllable < hangul::SYLLABLE_COUNT
        && syllable.is_multiple_of(hangul::TRAILING_COUNT)
        && (1..hangul::TRAILING_COUNT).contains(&trailing)
    {
        return char::from_u32(u32::from(a) + trailing);
    }
    let found = COMPOSITIONS.binary_search_by_key(&(a, b), |entry| (entry.0, entry.1)).ok()?;
    Some(COMPOSITIONS[found].2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_normalization::UnicodeNormalization;

    fn check(text: &str) {
        assert_eq!(nfc(text), text.nfc().collect::<String>(), "{:?}", text.escape_unicode());
    }

    #[test]
    fn every_character_is_composed_as_the_crate_does() {
        for c in '\0'..=char::MAX {
            check(c.encode_utf8(&mut [0; 4]));
            // Between what it could join.
            check(&format!("A\u{323}{c}\u{301}"));
        }
        for (c, parts) in DECOMPOSITIONS {
            check(parts);
            check(&format!("{parts}\u{345}\u{300}{c}"));
        }
        for &(a, b, _) in COMPOSITIONS {
            check(&format!("{a}{b}{b}"));
            check(&format!("{a}\u{334}{b}"));
        }
    }

    #[test]
    fn sequences_are_composed_as_the_crate_does() {
        // Characters that join, are joined or come between, and Hangul's three kinds.
        let mut pool: Vec<char> = COMPOSITIONS.iter().flat_map(|&(a, b, c)| [a, b, c]).collect();
        pool.extend(CLASSES.iter().map(|&(first, ..)| first));
        pool.extend(DECOMPOSITIONS.iter().map(|&(c, _)| c));
        pool.extend(['\u{1100}', '\u{1161}', '\u{11a8}', '\u{11a7}', '\u{ac00}', '\u{ac01}']);
        arbtest::arbtest(|u| {
            let mut text = String::new();
            for _ in 0..u.int_in_range(0..=8)? {
                text.push(*u.choose(&pool)?);
            }
            check(&text);
            Ok(())
        })
        .budget_ms(1000);
    }
}
