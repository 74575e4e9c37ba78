//! The texts of a picture as Exif data, for formats without texts of their own.
//!
//! `UserComment` has the parameters in the form that other programs read, as AUTOMATIC1111's web UI
//! writes it. `MakerNote` has one entry for each parameter, as JSON.

use std::io::{self, Cursor};

use exif::experimental::Writer;
use exif::{Exif, Field, In, Reader, Tag, Value};

/// The key of the text for other programs.
const PARAMETERS: &str = "parameters";
/// Begins our `MakerNote`.
const MAKER: &[u8] = b"Kiln\0";
/// Begins a `UserComment` in UTF-16.
const UTF_16: &[u8] = b"UNICODE\0";
/// Bytes of the name of a `UserComment`'s encoding.
const ENCODING_BYTES: usize = 8;

/// Exif data, big endian, of keys and values.
pub fn write(texts: &[(&'static str, String)]) -> io::Result<Vec<u8>> {
    let of = |tag, value| Field { tag, ifd_num: In::PRIMARY, value };
    let value = |key: &str| texts.iter().find(|(known, _)| *known == key).map(|(_, text)| text);
    let comment = value(PARAMETERS).map_or("", String::as_str);
    let comment = comment.encode_utf16().flat_map(u16::to_be_bytes);
    let comment = UTF_16.iter().copied().chain(comment).collect();
    let own: Vec<_> = texts.iter().filter(|(key, _)| *key != PARAMETERS).collect();
    let mut note = MAKER.to_vec();
    serde_json::to_writer(&mut note, &own)?;
    let software = value("Software").map_or("", String::as_str).as_bytes().to_vec();
    let fields = [
        of(Tag::Software, Value::Ascii(vec![software])),
        of(Tag::MakerNote, Value::Undefined(note, 0)),
        of(Tag::UserComment, Value::Undefined(comment, 0)),
    ];
    let mut writer = Writer::new();
    fields.iter().for_each(|field| writer.push_field(field));
    let mut bytes = Cursor::new(Vec::new());
    writer.write(&mut bytes, false).map_err(io::Error::other)?;
    Ok(bytes.into_inner())
}

/// Keys and values of Exif data, from this program or another; none of damaged data.
pub fn read(bytes: Vec<u8>) -> Vec<(String, String)> {
    let bytes = bytes.strip_prefix(b"Exif\0\0").map(<[u8]>::to_vec).unwrap_or(bytes);
    let Ok(found) = Reader::new().read_raw(bytes) else { return Vec::new() };
    let comment = undefined(&found, Tag::UserComment).and_then(|comment| text(&found, comment));
    let note = undefined(&found, Tag::MakerNote).and_then(|note| note.strip_prefix(MAKER));
    let own = note.and_then(|note| serde_json::from_slice::<Vec<(String, String)>>(note).ok());
    let comment = comment.map(|comment| (PARAMETERS.to_owned(), comment));
    comment.into_iter().chain(own.into_iter().flatten()).collect()
}

fn undefined(found: &Exif, tag: Tag) -> Option<&[u8]> {
    match &found.get_field(tag, In::PRIMARY)?.value {
        Value::Undefined(bytes, _) => Some(bytes),
        _ => None,
    }
}

/// The text of a `UserComment`.
fn text(found: &Exif, comment: &[u8]) -> Option<String> {
    let (encoding, text) = comment.split_at_checked(ENCODING_BYTES)?;
    if encoding != UTF_16 {
        return Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    }
    let unit = |bytes: &[u8; 2]| match found.little_endian() {
        true => u16::from_le_bytes(*bytes),
        false => u16::from_be_bytes(*bytes),
    };
    let units: Vec<u16> = text.as_chunks::<2>().0.iter().map(unit).collect();
    Some(String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_were_written() {
        let texts = [("parameters", "caf\u{e9}\nSteps: 1"), ("prompt", "caf\u{e9}"), ("seed", "7")];
        let texts = texts.map(|(key, value)| (key, value.to_owned()));
        let bytes = write(&texts).unwrap();
        let expected = texts.clone().map(|(key, value)| (key.to_owned(), value));
        assert_eq!(read(bytes.clone()), expected);
        for len in 0..bytes.len() {
            read(bytes[..len].to_vec());
        }
        let longest = [("parameters", "p".repeat(13_000)), ("prompt", "\u{e9}".repeat(6_000))];
        assert!(write(&longest).unwrap().len() < 65_528);
    }
}
