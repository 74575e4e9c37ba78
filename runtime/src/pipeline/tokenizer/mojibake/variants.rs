//! Decoding of UTF-8 and its common variants: surrogate pairs written as two three-byte sequences
//! (CESU-8), and U+0000 written as `C0 80` (Java).
//!
//! Source: `ftfy` 6.3 (`ftfy.bad_codecs.utf8_variants`), including its treatment of the end of a
//! line.

use std::borrow::Cow;

/// Decodes bytes. `None` if they are neither UTF-8 nor a known variant.
pub(super) fn decode(bytes: &[u8]) -> Option<Cow<'_, str>> {
    if !bytes.iter().any(|byte| matches!(byte, 0xc0 | 0xed)) {
        return std::str::from_utf8(bytes).ok().map(Cow::Borrowed);
    }
    let mut text = String::with_capacity(bytes.len());
    let (mut plain_start, mut at) = (0, 0);
    while at < bytes.len() {
        match misspelt(&bytes[at..]) {
            Some((c, length_bytes)) => {
                text.push_str(std::str::from_utf8(&bytes[plain_start..at]).ok()?);
                text.push(c);
                at += length_bytes;
                plain_start = at;
            }
            None => at += 1,
        }
    }
    text.push_str(std::str::from_utf8(&bytes[plain_start..]).ok()?);
    Some(Cow::Owned(text))
}

/// Character and byte length of the leading variant sequence, if there is one.
///
/// A line feed at the end of the text may replace the last byte of a sequence. The patterns of the
/// original accept the end of the text there, and in Python the end is also before a final line
/// feed.
fn misspelt(bytes: &[u8]) -> Option<(char, usize)> {
    match *bytes {
        [0xc0, 0x80, ..] | [0xc0, b'\n'] => Some(('\0', 2)),
        [0xed, b1 @ 0xa0..=0xaf, b2 @ 0x80..=0xbf, 0xed, b4 @ 0xb0..=0xbf, b5, ref rest @ ..]
            if matches!(b5, 0x80..=0xbf) || b5 == b'\n' && rest.is_empty() =>
        {
            let bits = |byte: u8, count: u32| u32::from(byte) & ((1 << count) - 1);
            let offset = bits(b1, 4) << 16 | bits(b2, 6) << 10 | bits(b4, 4) << 6 | bits(b5, 6);
            char::from_u32(0x10000 + offset).map(|c| (c, 6))
        }
        _ => None,
    }
}
