//! Repairs text that was decoded with the wrong encoding, and a dozen smaller faults.
//!
//! Owns the order of the repairs. `badness` judges text, `codepage` maps bytes. The result is that
//! of `ftfy.fix_text` with its default settings.
//!
//! Source: Robyn Speer, `ftfy` 6.3 (Apache-2.0), which cleaned the captions CLIP was trained on.

mod badness;
mod codepage;
mod lossy;
mod variants;

use std::borrow::Cow;

use unicode_normalization::UnicodeNormalization;

use super::{entities, unicode};
use badness::is_bad;
use codepage::{CANDIDATES, LATIN_1, WINDOWS_1252};

/// Text is repaired line by line. Longer lines are repaired in pieces of this length.
const MAX_SEGMENT_CHARS: usize = 1_000_000;

/// Repairs text. HTML entities are decoded up to the first line with a literal `<`.
pub(super) fn fix_text(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    let mut unescape = true;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(MAX_SEGMENT_CHARS).map_or(rest.len(), |(at, _)| at);
            let (segment, later) = rest.split_at(end);
            unescape &= !segment.contains('<');
            fixed.push_str(&fix_segment(segment, unescape));
            rest = later;
        }
    }
    fixed
}

/// Applies all repairs to one segment until nothing changes.
fn fix_segment(segment: &str, unescape: bool) -> String {
    let mut text = segment.to_owned();
    loop {
        let decoded =
            if unescape { entities::unescape_strict(&text) } else { Cow::Borrowed(&*text) };
        let decoded = fix_encoding(&decoded);
        let plain = if decoded.is_ascii() { decoded } else { plain_characters(&decoded) };
        let plain = plain.replace("\r\n", "\n").replace(is_line_break, "\n");
        let mut next = remove_terminal_escapes(&plain);
        next.retain(|c| !is_unwanted_control(c));
        if !next.is_ascii() {
            next = next.nfc().collect();
        }
        if next == text {
            return text;
        }
        text = next;
    }
}

/// Undoes wrong decodings until the text is stable.
fn fix_encoding(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        match fix_encoding_once(&text) {
            Some(fixed) if fixed != text => text = fixed,
            _ => return text,
        }
    }
}

/// Undoes one wrong decoding. `None` if none is found.
fn fix_encoding_once(text: &str) -> Option<String> {
    if !is_bad(text) {
        return None;
    }
    for page in &CANDIDATES {
        let Some(mut bytes) = page.encode(text) else {
            continue;
        };
        if page.has_lost_spaces {
            bytes = lossy::restore_no_break_spaces(&bytes);
        }
        if page.sloppy {
            bytes = lossy::replace_lossy_sequences(&bytes);
        }
        if let Some(decoded) = variants::decode(&bytes) {
            return Some(decoded.into_owned());
        }
    }
    let inconsistent = decode_inconsistent_utf8(text);
    if inconsistent != text {
        return Some(inconsistent);
    }
    if let Some(bytes) = LATIN_1.encode(text)
        && bytes.iter().all(|&byte| WINDOWS_1252.assigns(byte))
    {
        return Some(bytes.iter().map(|&byte| WINDOWS_1252.decode_byte(byte)).collect());
    }
    Some(text.chars().map(fix_c1_control).collect())
}

/// Repairs the parts of a text that look like UTF-8, if the text as a whole does not.
fn decode_inconsistent_utf8(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut fixed = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let length = match at.checked_sub(1).map(|before| chars[before]) {
            Some(before) if is_continuation(before) && !is_quiet_continuation(before) => 0,
            _ => misread_run_length(&chars[at..]),
        };
        if length == 0 {
            fixed.push(chars[at]);
            at += 1;
            continue;
        }
        let part: String = chars[at..at + length].iter().collect();
        // A shorter text only; otherwise this function would call itself without end.
        if length < chars.len() && is_bad(&part) {
            fixed.push_str(&fix_encoding(&part));
        } else {
            fixed.push_str(&part);
        }
        at += length;
    }
    fixed
}

/// Number of leading characters that are misread two- to four-byte sequences of UTF-8.
fn misread_run_length(chars: &[char]) -> usize {
    let mut run = 0;
    loop {
        let Some((&lead, later)) = chars[run..].split_first() else {
            return run;
        };
        let follow = later.iter().take(3).take_while(|&&c| c == ' ' || is_continuation(c)).count();
        let lead_is = |accept: fn(u8) -> bool| codepage::any_latin_byte(lead, accept);
        run += if follow >= 1 && lead_is(|byte| matches!(byte, 0xc2..=0xdf)) {
            2
        } else if follow >= 2 && lead_is(|byte| matches!(byte, 0xe0..=0xef)) {
            3
        } else if follow >= 3 && lead_is(|byte| matches!(byte, 0xf0 | 0xf3)) {
            4
        } else {
            return run;
        };
    }
}

fn is_continuation(c: char) -> bool {
    codepage::any_latin_byte(c, |byte| matches!(byte, 0x80..=0xbf))
}

/// Punctuation that is taken literally next to misread text, although it may be a misread byte.
fn is_quiet_continuation(c: char) -> bool {
    matches!(c, '–' | '—' | '―' | '‘' | '’' | '‚' | '“' | '”' | '„' | '•' | '…')
}

fn fix_c1_control(c: char) -> char {
    match u8::try_from(c) {
        Ok(byte @ 0x80..=0x9f) => WINDOWS_1252.decode_byte(byte),
        _ => c,
    }
}

/// Replaces C1 controls, Latin ligatures, full- and halfwidth forms and curly quotes.
fn plain_characters(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars().map(fix_c1_control) {
        match latin_ligature(c) {
            Some(letters) => plain.push_str(letters),
            None if c == '\u{3000}' => plain.push(' '),
            None if ('\u{ff01}'..='\u{ffef}').contains(&c) => plain.extend(c.nfkc()),
            None => plain.push(c),
        }
    }
    plain
        .replace(['\u{201c}', '\u{201d}', '\u{201e}', '\u{201f}'], "\"")
        .replace(['\u{2bc}', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'], "'")
}

/// The letters of a typographic ligature, or of a digraph for conversion from Cyrillic.
fn latin_ligature(c: char) -> Option<&'static str> {
    Some(match c {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

fn is_line_break(c: char) -> bool {
    matches!(c, '\r' | '\u{2028}' | '\u{2029}' | '\u{85}')
}

/// Removes the escape sequences that colour text in a terminal.
fn remove_terminal_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        let (before, sequence) = rest.split_at(start);
        plain.push_str(before);
        let after = sequence[2..].trim_start_matches(|c| c == ';' || unicode::is_decimal_digit(c));
        if after.starts_with(|c: char| c.is_ascii_alphabetic()) {
            rest = &after[1..];
        } else {
            plain.push_str(&sequence[..2]);
            rest = &sequence[2..];
        }
    }
    plain.push_str(rest);
    plain
}

/// Control characters without an effect on text, except white space.
fn is_unwanted_control(c: char) -> bool {
    matches!(c,
        '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}' | '\u{206a}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}

#[cfg(test)]
mod tests {
    use super::fix_text;

    #[test]
    fn misread_text_is_read_again() {
        for (text, expected) in [
            ("âœ” No problems", "✔ No problems"),
            ("sÃ³ voilÃ  le travail", "só voilà le travail"),
            ("schÃƒÂ¶n", "schön"),
            ("â€œ like this â€�", "\" like this �"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("ÐŸÑ€Ð¸Ð²ÐµÑ‚ and Größe", "Привет and Größe"),
        ] {
            assert_eq!(fix_text(text), expected);
        }
    }

    #[test]
    fn glitches_are_removed_and_good_text_is_kept() {
        for (text, expected) in [
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ Ｕﾀｰﾝ", "LOUD NOISES Uターン"),
            ("\u{1b}[36;44mblue\u{1b}[0m\r\n\u{feff}x", "blue\nx"),
            ("e\u{301} déjà 東京 😀", "é déjà 東京 😀"),
            ("<b>&amp;", "<b>&amp;"),
        ] {
            assert_eq!(fix_text(text), expected);
        }
    }
}
