//! Byte sequences that are UTF-8 except for a lost byte.
//!
//! Source: the patterns of `ftfy` 6.3 (`ftfy.chardata`, `ftfy.fixes`).

/// Byte of U+FFFD in a sloppy code page.
const LOST: u8 = 0x1a;
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Restores no-break spaces (byte A0) that became spaces inside sequences of UTF-8.
pub(super) fn restore_no_break_spaces(bytes: &[u8]) -> Vec<u8> {
    let spaced = split_a_grave(bytes);
    let mut restored = Vec::with_capacity(spaced.len());
    let mut rest = &*spaced;
    while let Some(&first) = rest.first() {
        let length = spaced_sequence_length(rest).unwrap_or(0);
        if length == 0 {
            restored.push(first);
            rest = &rest[1..];
        } else {
            restored.extend(rest[..length].iter().map(|&b| if b == b' ' { 0xa0 } else { b }));
            rest = &rest[length..];
        }
    }
    restored
}

/// Restores the A0 of `C3 20`, mostly the word "à", and keeps the space. Beginnings of Portuguese
/// words are excluded.
fn split_a_grave(bytes: &[u8]) -> Vec<u8> {
    const NOT_A_WORD: [&[u8]; 5] = [b" ", b"quele", b"quela", b"quilo", b"s "];
    let mut split = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        match rest.strip_prefix(b"\xc3 ") {
            Some(later) if !NOT_A_WORD.iter().any(|word| later.starts_with(word)) => {
                split.extend(b"\xc3\xa0 ");
                rest = later;
            }
            _ => {
                split.push(first);
                rest = &rest[1..];
            }
        }
    }
    split
}

/// Length of the leading sequence that is UTF-8 once one space becomes A0.
fn spaced_sequence_length(bytes: &[u8]) -> Option<usize> {
    let continuation = |byte: u8| matches!(byte, 0x80..=0xbf);
    // Without 85 and A0, which occur in text that is not misread.
    let likely = |byte: u8| continuation(byte) && byte != 0x85 && byte != 0xa0;
    match *bytes {
        [0xc2 | 0xc3 | 0xc5 | 0xce | 0xd0 | 0xd9, b' ', ..] => Some(2),
        [0xe2 | 0xe3, b' ', b, ..] if likely(b) => Some(3),
        [0xe0..=0xe3, b, b' ', ..] if likely(b) => Some(3),
        [0xf0, b' ', b, c, ..] | [0xf0, b, b' ', c, ..] | [0xf0, b, c, b' ', ..]
            if continuation(b) && continuation(c) =>
        {
            Some(4)
        }
        _ => None,
    }
}

/// Replaces sequences of UTF-8 that lost bytes by the encoding of U+FFFD.
pub(super) fn replace_lossy_sequences(bytes: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        match lossy_sequence_length(rest) {
            Some(length) => {
                replaced.extend(REPLACEMENT);
                rest = &rest[length..];
            }
            None => {
                replaced.push(first);
                rest = &rest[1..];
            }
        }
    }
    replaced
}

/// Length of the leading lossy sequence. At most one of its bytes may have become `?`.
fn lossy_sequence_length(bytes: &[u8]) -> Option<usize> {
    let continuation = |byte: u8| matches!(byte, 0x80..=0xbf);
    let lost = |byte: u8| matches!(byte, LOST | b'?');
    let held = |byte: u8| byte == LOST || continuation(byte);
    let any = |byte: u8| lost(byte) || continuation(byte);
    match *bytes {
        [0xc2..=0xdf, LOST, ..] | [0xc2 | 0xc3, b'?', ..] => Some(2),
        [0xed, 0xa0..=0xaf, b, 0xed, 0xb0..=0xbf, d, ..]
            if lost(b) && any(d) || any(b) && lost(d) =>
        {
            Some(6)
        }
        [0xe0..=0xef, a, b, ..] if lost(a) && held(b) || held(a) && lost(b) => Some(3),
        [0xf0..=0xf4, a, b, c, ..]
            if lost(a) && held(b) && held(c)
                || held(a) && lost(b) && held(c)
                || held(a) && held(b) && lost(c) =>
        {
            Some(4)
        }
        [LOST, ..] => Some(1),
        _ => None,
    }
}
