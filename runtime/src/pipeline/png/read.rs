//! Reading PNG files: their text and their pixels.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Seek};
use std::path::Path;

use ::png::{ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use super::orientation::Orientation;
use super::{PngError, RgbImage};
use crate::pipeline::resize::Cover;

/// Largest memory for the chunks and rows of a file, and for all of its text when it is
/// decompressed, in bytes.
const MAX_BYTES: usize = 8 << 20;
/// Most pixels of a row or a column.
const MAX_SIDE: u32 = 1 << 16;
/// Most pixels of an image.
const MAX_PIXELS: u64 = 1 << 28;

/// An image's size and its text chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Keys and values of `tEXt`, `zTXt` and `iTXt` chunks, each kind in the order of the file.
    pub text: Vec<(String, String)>,
}

/// An error of decompression. Too much text is the reader's own limit.
fn no_text(error: DecodingError) -> DecodingError {
    match error.to_string().contains("limit") {
        true => DecodingError::LimitsExceeded,
        false => error,
    }
}

/// An image that was scaled, and the size of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scaled {
    /// The image.
    pub image: RgbImage,
    /// Width and height in pixels of the image in the file, upright.
    pub from: (u32, u32),
}

/// The bytes that may still be decompressed after the last text.
fn left(bytes: usize, text: &[(String, String)]) -> usize {
    bytes.saturating_sub(text.last().map_or(0, |(_, value)| value.len()))
}

/// Reads an image's size and its text.
///
/// Errors: [`PngError::Read`], with the path.
pub fn read_described(path: &Path) -> Result<Described, PngError> {
    read(path, describe)
}

/// [`read_described`] of a file in memory.
pub fn described(file: &[u8]) -> Result<Described, PngError> {
    describe(Cursor::new(file)).map_err(|fault| fault.at(Path::new(IN_MEMORY)))
}

/// Reads an image of any depth and number of channels, scaled to cover `width` x `height`.
///
/// Rows are scaled as they are read, so that memory does not grow with the image.
/// The image is upright: turned as its Exif data say.
/// Numerics: 16 bits become 8, grey becomes RGB, transparent pixels are blended with white.
/// Errors: [`PngError::Read`], with the path, also for more than [`MAX_PIXELS`].
pub fn read_cover(path: &Path, width: u32, height: u32) -> Result<Scaled, PngError> {
    read(path, |file| cover(file, width, height))
}

/// [`read_cover`] of a file in memory.
pub fn covered(file: &[u8], width: u32, height: u32) -> Result<Scaled, PngError> {
    let image = cover(Cursor::new(file), width, height);
    image.map_err(|fault| fault.at(Path::new(IN_MEMORY)))
}

/// Name of a file in memory in messages.
const IN_MEMORY: &str = "the picture";

/// Reason why a file cannot be read, before its name is known.
enum Fault {
    Size(PngError),
    Decoding(DecodingError, String),
}

impl Fault {
    /// `limits`: the message for a file that would take too much memory.
    fn of(limits: String) -> impl Fn(DecodingError) -> Fault {
        move |error| Fault::Decoding(error, limits.clone())
    }

    fn at(self, path: &Path) -> PngError {
        let message = match self {
            Fault::Size(error) => return error,
            Fault::Decoding(DecodingError::IoError(error), _) => error.to_string(),
            Fault::Decoding(DecodingError::LimitsExceeded, limits) => limits,
            Fault::Decoding(other, _) => format!("not a whole PNG file ({other})"),
        };
        PngError::Read { path: path.to_owned(), message }
    }
}

fn describe(file: impl BufRead + Seek) -> Result<Described, Fault> {
    let read = || {
        let mut reader = open(file, Transformations::IDENTITY, false)?;
        // Text may stand after the pixels.
        reader.finish()?;
        let info = reader.info();
        let mut text = Vec::new();
        for chunk in &info.uncompressed_latin1_text {
            text.push((chunk.keyword.clone(), chunk.text.clone()));
        }
        let mut left_bytes = MAX_BYTES;
        for chunk in &info.compressed_latin1_text {
            let mut chunk = chunk.clone();
            chunk.decompress_text_with_limit(left_bytes).map_err(no_text)?;
            text.push((chunk.keyword.clone(), chunk.get_text()?));
            left_bytes = left(left_bytes, &text);
        }
        for chunk in &info.utf8_text {
            let mut chunk = chunk.clone();
            chunk.decompress_text_with_limit(left_bytes).map_err(no_text)?;
            text.push((chunk.keyword.clone(), chunk.get_text()?));
            left_bytes = left(left_bytes, &text);
        }
        Ok(Described { width: info.width, height: info.height, text })
    };
    read().map_err(Fault::of(format!("it has over {MAX_BYTES} bytes of text")))
}

fn cover(file: impl BufRead + Seek, width: u32, height: u32) -> Result<Scaled, Fault> {
    let read = || {
        let mut reader = open(file, Transformations::normalize_to_color8(), true)?;
        let size = reader.info().size();
        let color = reader.output_color_type().0;
        let orientation = Orientation::of(reader.info().exif_metadata.as_deref());
        let stored = if orientation.is_transposed() { (height, width) } else { (width, height) };
        let mut cover = Cover::new(size, stored);
        let mut places = places(size, reader.info().interlaced);
        let mut rgb = Vec::new();
        while let Some(row) = reader.next_row()? {
            to_rgb(row.data(), color, &mut rgb);
            if let (Some((y, columns)), Ok(cover)) = (places.next(), &mut cover) {
                cover.add(y, columns, &rgb);
            }
        }
        let from = if orientation.is_transposed() { (size.1, size.0) } else { size };
        Ok((cover, from, orientation))
    };
    let limits = format!("it has over {MAX_PIXELS} pixels, or over {MAX_SIDE} on a side");
    let (cover, from, orientation) = read().map_err(Fault::of(limits))?;
    let image = cover.and_then(Cover::finish).map_err(Fault::Size)?;
    Ok(Scaled { image: orientation.apply(image), from })
}

/// The rows of an image in the order of its file: each row, its first column and the distance of
/// its columns.
///
/// Source: PNG specification, third edition (W3C 2025), section 8.2: Adam7.
fn places(
    (width, height): (u32, u32),
    is_interlaced: bool,
) -> impl Iterator<Item = (usize, (usize, usize))> {
    /// First column and row, and their distances, of each pass.
    const ADAM7: [[usize; 4]; 7] = [
        [0, 0, 8, 8],
        [4, 0, 8, 8],
        [0, 4, 4, 8],
        [2, 0, 4, 4],
        [0, 2, 2, 4],
        [1, 0, 2, 2],
        [0, 1, 1, 2],
    ];
    let passes = if is_interlaced { &ADAM7[..] } else { &[[0, 0, 1, 1]] };
    let passes = passes.iter().filter(move |pass| pass[0] < width as usize);
    passes.flat_map(move |&[x, y, columns, rows]| {
        (y..height as usize).step_by(rows).map(move |y| (y, (x, columns)))
    })
}

/// Reads a file on disk.
fn read<T>(
    path: &Path,
    body: impl FnOnce(BufReader<File>) -> Result<T, Fault>,
) -> Result<T, PngError> {
    let file = File::open(path).map_err(DecodingError::IoError);
    let file = file.map_err(Fault::of(String::new()));
    file.and_then(|file| body(BufReader::new(file))).map_err(|fault| fault.at(path))
}

/// Reads a file up to its pixels, without its text if only the pixels count.
fn open<R: BufRead + Seek>(
    file: R,
    transformations: Transformations,
    only_pixels: bool,
) -> Result<Reader<R>, DecodingError> {
    let mut decoder = Decoder::new_with_limits(file, Limits { bytes: MAX_BYTES });
    decoder.set_transformations(transformations);
    decoder.set_ignore_text_chunk(only_pixels);
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = decoder.read_header_info()?.size();
    let is_large =
        width.max(height) > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS;
    if only_pixels && is_large {
        return Err(DecodingError::LimitsExceeded);
    }
    decoder.read_info()
}

/// A value behind which there is white, of this opacity.
pub fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Fills `rgb` with the pixels of a row.
fn to_rgb(pixels: &[u8], color: ColorType, rgb: &mut Vec<u8>) {
    rgb.clear();
    match color {
        ColorType::Grayscale => rgb.extend(pixels.iter().flat_map(|&value| [value; 3])),
        ColorType::GrayscaleAlpha => {
            rgb.extend(pixels.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]));
        }
        ColorType::Rgba => rgb.extend(
            pixels
                .chunks_exact(4)
                .flat_map(|p| [p[0], p[1], p[2]].map(|value| over_white(value, p[3]))),
        ),
        // Palettes are expanded here.
        ColorType::Rgb | ColorType::Indexed => rgb.extend_from_slice(pixels),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::png::{BitDepth, Encoder};

    fn file(color: ColorType, pixels: &[u8], finish: impl Fn(&mut Vec<u8>)) -> tempfile::TempPath {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(BitDepth::Eight);
        encoder.add_text_chunk("Title".into(), "a title".into()).unwrap();
        encoder.add_ztxt_chunk("Comment".into(), "compressed".into()).unwrap();
        encoder.add_itxt_chunk("prompt".into(), "caf\u{e9}".into()).unwrap();
        let mut body = encoder.write_header().unwrap();
        body.write_image_data(pixels).unwrap();
        body.finish().unwrap();
        finish(&mut bytes);
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn every_kind_of_text_is_read() {
        let path = file(ColorType::Grayscale, &[1, 2], |_| ());
        let found = read_described(&path).unwrap();
        let text = [("Title", "a title"), ("Comment", "compressed"), ("prompt", "caf\u{e9}")];
        let text = text.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        assert_eq!(found, Described { width: 2, height: 1, text });
    }

    #[test]
    fn every_kind_of_pixel_becomes_rgb() {
        for (color, pixels, expected) in [
            (ColorType::Grayscale, &[10, 20][..], [10, 10, 10, 20, 20, 20]),
            (ColorType::GrayscaleAlpha, &[10, 0, 20, 255], [255, 255, 255, 20, 20, 20]),
            (ColorType::Rgb, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba, &[0, 0, 0, 128, 4, 5, 6, 255], [127, 127, 127, 4, 5, 6]),
        ] {
            let image = read_cover(&file(color, pixels, |_| ()), 2, 1).unwrap().image;
            assert_eq!(image.pixels(), expected, "{color:?}");
        }
    }

    #[test]
    fn interlaced_files_are_read_row_by_row() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adam7.png");
        let image = read_cover(&path, 21, 13).unwrap().image;
        let places = (0..13).flat_map(|y| (0..21).map(move |x| (x, y)));
        let pixel = |(x, y): (u32, u32)| [x * 12, y * 19, x * y * 7].map(|value| value as u8);
        assert!(image.pixels() == places.flat_map(pixel).collect::<Vec<_>>());
    }

    #[test]
    fn a_turned_picture_is_read_upright() {
        // Clockwise by a quarter, big endian.
        let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let mut info = ::png::Info::with_size(2, 1);
        info.bit_depth = BitDepth::Eight;
        info.exif_metadata = Some(exif.as_slice().into());
        let mut bytes = Vec::new();
        let encoder = Encoder::with_info(&mut bytes, info).unwrap();
        let mut body = encoder.write_header().unwrap();
        body.write_image_data(&[10, 20]).unwrap();
        body.finish().unwrap();
        std::fs::write(&path, bytes).unwrap();
        let image = read_cover(&path, 1, 2).unwrap().image;
        assert_eq!(image.pixels(), [10, 10, 10, 20, 20, 20]);
    }

    #[test]
    fn what_would_take_much_memory_is_refused() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let write = |size: (u32, u32), text: &str| {
            let mut bytes = Vec::new();
            let mut encoder = Encoder::new(&mut bytes, size.0, size.1);
            encoder.set_color(ColorType::Grayscale);
            encoder.add_ztxt_chunk("Comment".into(), text.into()).unwrap();
            encoder.add_itxt_chunk("prompt".into(), "a".into()).unwrap();
            let mut body = encoder.write_header().unwrap();
            if size == (1, 1) {
                body.write_image_data(&[0]).unwrap();
            }
            drop(body);
            std::fs::write(&path, bytes).unwrap();
        };
        for size in [(1, 1 << 17), (1 << 17, 1), (1 << 15, 1 << 14)] {
            write(size, "");
            let error = read_cover(&path, 8, 8).unwrap_err().to_string();
            assert!(error.contains("268435456 pixels"), "{error}");
        }
        write((1, 1), &"A".repeat(MAX_BYTES + 1));
        let error = read_described(&path).unwrap_err().to_string();
        assert!(error.contains("8388608 bytes of text"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = std::fs::read(file(ColorType::Rgb, &[1, 2, 3, 4, 5, 6], |_| ())).unwrap();
        for length in 0..whole.len() - 12 {
            let path = file(ColorType::Rgb, &[1; 6], |bytes| bytes.truncate(length));
            assert!(read_cover(&path, 2, 1).is_err() || read_described(&path).is_err(), "{length}");
        }
        let error = read_described(Path::new("no.png")).unwrap_err().to_string();
        assert!(error.contains("no.png"), "{error}");
    }
}
