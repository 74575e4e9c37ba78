//! JPEG files.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

use jpeg_encoder::{ColorType, Encoder, EncodingError};
use kiln_runtime::pipeline::png::{Described, Orientation, PngError, RgbImage};
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::{Decoded, check_room, exif, unreadable};

/// Memory of a pixel while it is decoded: its bytes, and the coefficients of three components,
/// which are kept of progressive files and of those with a scan for each component.
const PIXEL_BYTES: u64 = 3 + 3 * 2;
/// Most pixels of a side that the format has.
const MAX_SIDE: usize = 1 << 16;

type Decoder = JpegDecoder<BufReader<File>>;

/// Opens a file and reads it up to its pixels.
fn open(path: &Path) -> Result<(Decoder, (u32, u32)), PngError> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let options = DecoderOptions::default()
        .set_max_width(MAX_SIDE)
        .set_max_height(MAX_SIDE)
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(BufReader::new(file), options);
    decoder.decode_headers().map_err(|error| damaged(path, &error))?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    Ok((decoder, (width as u32, height as u32)))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> PngError {
    unreadable(path, &format!("not a whole JPEG file ({error})").replace('\n', " "))
}

/// Reads a picture.
///
/// Errors: [`PngError::Read`], also if it takes more than `room_bytes`.
pub fn read(path: &Path, room_bytes: u64) -> Result<Decoded, PngError> {
    let (mut decoder, size) = open(path)?;
    check_room(path, size, PIXEL_BYTES, room_bytes)?;
    let pixels = decoder.decode().map_err(|error| damaged(path, &error))?;
    let (width, height) = size;
    let orientation = Orientation::of(decoder.exif().map(Vec::as_slice));
    Ok(Decoded { width, height, channels: 3, pixels, orientation })
}

/// Reads a picture's size and text.
pub fn describe(path: &Path) -> Result<Described, PngError> {
    let (decoder, (width, height)) = open(path)?;
    let text = decoder.exif().map(|bytes| exif::read(bytes.clone())).unwrap_or_default();
    Ok(Described { width, height, text })
}

/// Writes a picture. `quality`: 1 to 100.
pub fn write(
    writer: &mut dyn Write,
    image: &RgbImage,
    exif: &[u8],
    quality: u8,
) -> Result<(), PngError> {
    let failed = |error| match error {
        EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    };
    let mut encoder = Encoder::new(&mut *writer, quality);
    encoder.add_exif_metadata(exif).map_err(failed)?;
    let side = |pixels: u32| u16::try_from(pixels).map_err(io::Error::other);
    let (width, height) = (side(image.width())?, side(image.height())?);
    encoder.encode(image.pixels(), width, height, ColorType::Rgb).map_err(failed)?;
    Ok(writer.flush()?)
}
