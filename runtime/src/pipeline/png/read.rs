//! Reading PNG files: their text and their pixels.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use ::png::{ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use super::{PngError, RgbImage};

/// Largest memory that reading a file may take, in bytes.
const MAX_BYTES: usize = 1 << 30;

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

/// Reads an image's size and its text.
///
/// Errors: [`PngError::Read`], with the path.
pub fn read_described(path: &Path) -> Result<Described, PngError> {
    read(path, |file| {
        let mut reader = open(file, Transformations::IDENTITY)?;
        // Text may stand after the pixels.
        reader.finish()?;
        let info = reader.info();
        let mut text = Vec::new();
        for chunk in &info.uncompressed_latin1_text {
            text.push((chunk.keyword.clone(), chunk.text.clone()));
        }
        for chunk in &info.compressed_latin1_text {
            text.push((chunk.keyword.clone(), chunk.get_text()?));
        }
        for chunk in &info.utf8_text {
            text.push((chunk.keyword.clone(), chunk.get_text()?));
        }
        Ok(Described { width: info.width, height: info.height, text })
    })
}

/// Reads an image's pixels, of any depth and number of channels.
///
/// Numerics: 16 bits become 8, grey becomes RGB, transparent pixels are blended with white.
/// Errors: [`PngError::Read`], with the path.
pub fn read_rgb(path: &Path) -> Result<RgbImage, PngError> {
    let (width, height, pixels) = read(path, |file| {
        let mut reader = open(file, Transformations::normalize_to_color8())?;
        let bytes = reader.output_buffer_size().unwrap_or(usize::MAX);
        if bytes > MAX_BYTES {
            return Err(DecodingError::LimitsExceeded);
        }
        let mut pixels = vec![0; bytes];
        let frame = reader.next_frame(&mut pixels)?;
        pixels.truncate(frame.buffer_size());
        Ok((frame.width, frame.height, to_rgb(&pixels, frame.color_type)))
    })?;
    RgbImage::from_pixels(width, height, pixels)
}

fn read<T>(
    path: &Path,
    body: impl FnOnce(BufReader<File>) -> Result<T, DecodingError>,
) -> Result<T, PngError> {
    let file = File::open(path).map_err(DecodingError::IoError);
    file.and_then(|file| body(BufReader::new(file))).map_err(|error| {
        let message = match error {
            DecodingError::IoError(error) => error.to_string(),
            other => format!("not a whole PNG file ({other})"),
        };
        PngError::Read { path: path.to_owned(), message }
    })
}

fn open<R: BufRead + Seek>(
    file: R,
    transformations: Transformations,
) -> Result<Reader<R>, DecodingError> {
    let mut decoder = Decoder::new_with_limits(file, Limits { bytes: MAX_BYTES });
    decoder.set_transformations(transformations);
    decoder.read_info()
}

fn to_rgb(pixels: &[u8], color: ColorType) -> Vec<u8> {
    let over_white = |value: u8, alpha: u8| {
        let (value, alpha) = (u32::from(value), u32::from(alpha));
        ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    match color {
        ColorType::Grayscale => pixels.iter().flat_map(|&value| [value; 3]).collect(),
        ColorType::GrayscaleAlpha => {
            pixels.chunks_exact(2).flat_map(|p| [over_white(p[0], p[1]); 3]).collect()
        }
        ColorType::Rgba => pixels
            .chunks_exact(4)
            .flat_map(|p| [p[0], p[1], p[2]].map(|value| over_white(value, p[3])))
            .collect(),
        // Palettes are expanded here.
        ColorType::Rgb | ColorType::Indexed => pixels.to_vec(),
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
            let image = read_rgb(&file(color, pixels, |_| ())).unwrap();
            assert_eq!(image.pixels(), expected, "{color:?}");
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = std::fs::read(file(ColorType::Rgb, &[1, 2, 3, 4, 5, 6], |_| ())).unwrap();
        for length in 0..whole.len() - 12 {
            let path = file(ColorType::Rgb, &[1; 6], |bytes| bytes.truncate(length));
            assert!(read_rgb(&path).is_err() || read_described(&path).is_err(), "{length}");
        }
        let error = read_described(Path::new("no.png")).unwrap_err().to_string();
        assert!(error.contains("no.png"), "{error}");
    }
}
