//! The bytes of a PNG file: filtered rows, compressed, in chunks with their checksums.

use std::io::{self, Write};

use super::{CHANNELS, RgbImage};

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Writes a picture of 8 bits a channel, with texts: `tEXt` where they are ASCII, which everything
/// reads, or else `iTXt` (UTF-8).
///
/// Errors: the writer's.
pub(super) fn encode(
    writer: &mut impl Write,
    image: &RgbImage,
    texts: &[(&str, String)],
) -> io::Result<()> {
    writer.write_all(&SIGNATURE)?;
    let mut header = [image.width.to_be_bytes(), image.height.to_be_bytes()].concat();
    // Bits, RGB, and the only compression, filtering and order of rows but for interlacing.
    header.extend([8, 2, 0, 0, 0]);
    chunk(writer, b"IHDR", &header)?;
    for (key, value) in texts {
        match value.is_ascii() {
            true => chunk(writer, b"tEXt", &[key.as_bytes(), b"\0", value.as_bytes()].concat())?,
            // Not compressed, in no language, the key not translated.
            false => {
                let text = [key.as_bytes(), b"\0\0\0\0\0", value.as_bytes()].concat();
                chunk(writer, b"iTXt", &text)?;
            }
        }
    }
    let level = yazi::CompressionLevel::Default;
    let body = yazi::compress(&filtered(image), yazi::Format::Zlib, level);
    let body = body.map_err(|error| io::Error::other(format!("{error:?}")))?;
    chunk(writer, b"IDAT", &body)?;
    chunk(writer, b"IEND", &[])
}

fn chunk(writer: &mut impl Write, kind: &[u8; 4], data: &[u8]) -> io::Result<()> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a chunk is too long");
    let len = u32::try_from(data.len()).map_err(too_long)?;
    writer.write_all(&len.to_be_bytes())?;
    writer.write_all(kind)?;
    writer.write_all(data)?;
    writer.write_all(&crc32(&[kind, data]).to_be_bytes())
}

/// Each row as its differences from its neighbours, by the filter that leaves the smallest ones.
fn filtered(image: &RgbImage) -> Vec<u8> {
    let row_bytes = image.width as usize * CHANNELS;
    let mut out = Vec::with_capacity(image.pixels.len() + image.height as usize);
    let first = vec![0; row_bytes];
    let mut above = &first[..];
    let mut trial = vec![0; row_bytes];
    let mut best = vec![0; row_bytes];
    for row in image.pixels.chunks_exact(row_bytes) {
        let mut least = (u64::MAX, 0);
        for (filter, guess_of) in FILTERS.iter().enumerate() {
            for (at, byte) in trial.iter_mut().enumerate() {
                let before = |line: &[u8]| if at < CHANNELS { 0 } else { line[at - CHANNELS] };
                let guess = guess_of(before(row), above[at], before(above));
                *byte = row[at].wrapping_sub(guess);
            }
            let sum = trial.iter().map(|&byte| u64::from(byte.min(byte.wrapping_neg()))).sum();
            if sum < least.0 {
                least = (sum, filter);
                std::mem::swap(&mut trial, &mut best);
            }
        }
        out.push(least.1 as u8);
        out.extend(&best);
        above = row;
    }
    out
}

/// What each filter, by its number, expects from the bytes to the left, above, and above that one.
const FILTERS: [fn(u8, u8, u8) -> u8; 5] = [
    |_, _, _| 0,
    |left, _, _| left,
    |_, above, _| above,
    |left, above, _| ((u16::from(left) + u16::from(above)) / 2) as u8,
    paeth,
];

/// Source: PNG specification, section 9.4.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let estimate = i16::from(left) + i16::from(above) - i16::from(corner);
    let distance = |byte: u8| (estimate - i16::from(byte)).abs();
    let nearest = if distance(above) <= distance(corner) { above } else { corner };
    match distance(left) <= distance(above) && distance(left) <= distance(corner) {
        true => left,
        false => nearest,
    }
}

/// The checksum of what all parts are together.
///
/// Source: PNG specification, annex D.
fn crc32(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ value >> 1 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0, |crc, &byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standards() {
        assert_eq!(crc32(&[b"12345", b"6789"]), 0xcbf4_3926);
    }

    /// Every filter is chosen somewhere, and the `png` crate reads every picture back.
    #[test]
    fn another_reader_gets_the_pixels_back() {
        let mut used = [false; 5];
        arbtest::arbtest(|u| {
            let (width, height) = (u.int_in_range(1..=9)?, u.int_in_range(1..=9)?);
            let kind = u.int_in_range(0..=3)?;
            let mut pixels = Vec::new();
            for at in 0..width * height * 3 {
                let noise = u.int_in_range(0..=3u8)?;
                let (x, y) = (at / 3 % width * 9, at / 3 / width * 9);
                pixels.push(match kind {
                    0 => u.arbitrary()?,
                    1 => (x as u8).wrapping_add(noise),
                    2 => (y as u8).wrapping_add(noise),
                    _ => ((x + y) as u8).wrapping_mul(2).wrapping_add(noise),
                });
            }
            let image = RgbImage::from_pixels(width, height, pixels).unwrap();
            for row in filtered(&image).chunks(width as usize * 3 + 1) {
                used[usize::from(row[0])] = true;
            }
            let mut bytes = Vec::new();
            encode(&mut bytes, &image, &[]).unwrap();
            let mut reader = ::png::Decoder::new(io::Cursor::new(bytes)).read_info().unwrap();
            let mut found = vec![0; reader.output_buffer_size().unwrap()];
            reader.next_frame(&mut found).unwrap();
            assert_eq!(found, image.pixels());
            Ok(())
        })
        .budget_ms(1000);
        assert_eq!(used, [true; 5]);
    }
}
