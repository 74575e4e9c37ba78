//! WebP files.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

use image_webp::{ColorType, DecodingError, EncodingError, WebPDecoder, WebPEncoder};
use kiln_runtime::pipeline::png::{Described, Orientation, PngError, RgbImage};

use super::{Decoded, check_room, exif, unreadable};

/// Memory of a pixel while it is decoded: its bytes twice with opacity, and its planes.
const PIXEL_BYTES: u64 = 4 + 4 + 4;
/// Most bytes of Exif data that are read.
const MAX_EXIF_BYTES: usize = 8 << 20;

type Decoder = WebPDecoder<BufReader<File>>;

/// Opens a file and reads it up to its pixels.
fn open(path: &Path) -> Result<Decoder, PngError> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut decoder =
        WebPDecoder::new(BufReader::new(file)).map_err(|error| damaged(path, &error))?;
    decoder.set_memory_limit(MAX_EXIF_BYTES);
    Ok(decoder)
}

fn damaged(path: &Path, error: &DecodingError) -> PngError {
    unreadable(path, &format!("not a whole WebP file ({error})").replace('\n', " "))
}

fn exif_of(path: &Path, decoder: &mut Decoder) -> Result<Option<Vec<u8>>, PngError> {
    decoder.exif_metadata().map_err(|error| damaged(path, &error))
}

/// Reads a picture, of an animation the first one.
///
/// Errors: [`PngError::Read`], also if it takes more than `room_bytes`.
pub fn read(path: &Path, room_bytes: u64) -> Result<Decoded, PngError> {
    let mut decoder = open(path)?;
    let (width, height) = decoder.dimensions();
    check_room(path, (width, height), PIXEL_BYTES, room_bytes)?;
    let orientation = Orientation::of(exif_of(path, &mut decoder)?.as_deref());
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let mut pixels = vec![0; width as usize * height as usize * channels];
    decoder.read_image(&mut pixels).map_err(|error| damaged(path, &error))?;
    Ok(Decoded { width, height, channels, pixels, orientation })
}

/// Reads a picture's size and text.
pub fn describe(path: &Path) -> Result<Described, PngError> {
    let mut decoder = open(path)?;
    let (width, height) = decoder.dimensions();
    let text = exif_of(path, &mut decoder)?.map(exif::read).unwrap_or_default();
    Ok(Described { width, height, text })
}

/// Writes a picture, without loss.
pub fn write(writer: &mut dyn Write, image: &RgbImage, exif: Vec<u8>) -> Result<(), PngError> {
    let mut encoder = WebPEncoder::new(&mut *writer);
    encoder.set_exif_metadata(exif);
    let written = encoder.encode(image.pixels(), image.width(), image.height(), ColorType::Rgb8);
    written.map_err(|error| match error {
        EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    })?;
    Ok(writer.flush()?)
}
