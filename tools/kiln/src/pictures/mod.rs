//! Pictures as JPEG and WebP, beside PNG: read to begin with, written by name, described.
//!
//! PNG is the runtime's, which reads it row by row. The other formats are decoded whole, so their
//! memory is compared with the room before.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use kiln_bundle::plan::Size;
use kiln_runtime::cli::{PictureFormats, Png};
use kiln_runtime::pipeline::png::{
    self, Described, GenerationParameters, Orientation, PngError, RgbImage, Scaled, over_white,
};
use kiln_runtime::pipeline::resize::Cover;

mod exif;
mod jpeg;
mod webp;

/// Most bytes of prompts in a JPEG file, whose Exif data have at most 64 KiB: the prompts are there
/// in UTF-16 and in UTF-8.
const JPEG_TEXT_BYTES: usize = 12_000;

/// The formats of the command.
pub struct Formats {
    /// Quality of JPEG files, 1 to 100.
    pub quality: u8,
}

/// A format of pictures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Png,
    Jpeg,
    WebP,
}

impl Format {
    /// The format of a name; PNG without an extension.
    fn of_name(path: &Path) -> Option<Format> {
        let Some(extension) = path.extension() else { return Some(Format::Png) };
        match extension.to_str()?.to_ascii_lowercase().as_str() {
            "png" => Some(Format::Png),
            "jpg" | "jpeg" => Some(Format::Jpeg),
            "webp" => Some(Format::WebP),
            _ => None,
        }
    }

    /// The format of a file, by its first bytes.
    fn of_file(path: &Path) -> Result<Format, PngError> {
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(12).read_to_end(&mut head));
        read.map_err(|error| unreadable(path, &error))?;
        match &*head {
            [0xff, 0xd8, 0xff, ..] => Ok(Format::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P'] => Ok(Format::WebP),
            [0x89, b'P', b'N', b'G', ..] => Ok(Format::Png),
            _ => Err(unreadable(path, &"not a PNG, JPEG or WebP file")),
        }
    }
}

impl PictureFormats for Formats {
    fn extension(&self, path: &Path) -> &'static str {
        match (Format::of_name(path), path.extension().and_then(|extension| extension.to_str())) {
            (Some(Format::Png), _) => "png",
            (Some(Format::WebP), _) => "webp",
            (Some(Format::Jpeg), Some(name)) if name.len() == "jpeg".len() => "jpeg",
            (Some(Format::Jpeg), _) => "jpg",
            (None, _) => "png, .jpg or .webp",
        }
    }

    fn most_text_bytes(&self, path: &Path) -> usize {
        if Format::of_name(path) == Some(Format::Jpeg) { JPEG_TEXT_BYTES } else { usize::MAX }
    }

    fn read_cover(&self, path: &Path, size: Size, room_bytes: u64) -> Result<Scaled, PngError> {
        let decoded = match Format::of_file(path)? {
            Format::Png => return Png.read_cover(path, size, room_bytes),
            Format::Jpeg => jpeg::read(path, room_bytes)?,
            Format::WebP => webp::read(path, room_bytes)?,
        };
        decoded.cover(size)
    }

    fn reads_by_rows(&self, path: &Path) -> bool {
        Format::of_file(path).map_or(true, |format| format == Format::Png)
    }

    fn write(
        &self,
        path: &Path,
        writer: &mut dyn Write,
        image: &RgbImage,
        parameters: &GenerationParameters,
    ) -> Result<(), PngError> {
        let texts = parameters.texts(image.width(), image.height());
        match Format::of_name(path) {
            Some(Format::Jpeg) => jpeg::write(writer, image, &exif::write(&texts)?, self.quality),
            Some(Format::WebP) => webp::write(writer, image, exif::write(&texts)?),
            _ => Png.write(path, writer, image, parameters),
        }
    }
}

/// Reads an image's size and its text.
pub fn read_described(path: &Path) -> Result<Described, PngError> {
    match Format::of_file(path)? {
        Format::Png => png::read_described(path),
        Format::Jpeg => jpeg::describe(path),
        Format::WebP => webp::describe(path),
    }
}

/// A decoded picture.
struct Decoded {
    width: u32,
    height: u32,
    /// 3 or 4: red, green, blue, and opacity.
    channels: usize,
    pixels: Vec<u8>,
    orientation: Orientation,
}

impl Decoded {
    /// The picture, upright, scaled and cut to `size`, with white behind it.
    fn cover(self, size: Size) -> Result<Scaled, PngError> {
        let (width, height) = (size.width_px, size.height_px);
        let stored =
            if self.orientation.is_transposed() { (height, width) } else { (width, height) };
        let mut cover = Cover::new((self.width, self.height), stored)?;
        let mut rgb = Vec::new();
        let rows = self.pixels.chunks_exact((self.width as usize * self.channels).max(1));
        for (y, row) in rows.enumerate() {
            if self.channels == 3 {
                cover.add(y, (0, 1), row);
                continue;
            }
            rgb.clear();
            let pixels = row.as_chunks::<4>().0.iter();
            rgb.extend(
                pixels.flat_map(|&[r, g, b, a]| [r, g, b].map(|value| over_white(value, a))),
            );
            cover.add(y, (0, 1), &rgb);
        }
        let from = match self.orientation.is_transposed() {
            true => (self.height, self.width),
            false => (self.width, self.height),
        };
        Ok(Scaled { image: self.orientation.apply(cover.finish()?), from })
    }
}

/// An error that names the file.
fn unreadable(path: &Path, error: &dyn std::fmt::Display) -> PngError {
    PngError::Read { path: path.to_owned(), message: error.to_string() }
}

/// Checks that a file can be decoded in the room.
///
/// `pixel_bytes`: memory of a pixel while it is decoded.
fn check_room(
    path: &Path,
    (width, height): (u32, u32),
    pixel_bytes: u64,
    room_bytes: u64,
) -> Result<(), PngError> {
    let file_bytes = path.metadata().map_or(0, |found| found.len());
    let needed_bytes = u64::from(width) * u64::from(height) * pixel_bytes + file_bytes;
    if needed_bytes <= room_bytes {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let message = format!(
        "{width} x {height} pixels take {} MiB to decode, and the budget has room for {}; make it \
         smaller, or a PNG file, which is read row by row",
        mib(needed_bytes),
        room_bytes >> 20
    );
    Err(unreadable(path, &message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_runtime::pipeline::fast::PRESETS;

    const ROOM_BYTES: u64 = 1 << 20;

    fn data(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)
    }

    /// Reads a picture at its own size.
    fn read(path: &Path, width_px: u32, height_px: u32) -> RgbImage {
        let formats = Formats { quality: 90 };
        let read = formats.read_cover(path, Size { width_px, height_px }, ROOM_BYTES).unwrap();
        assert_eq!(read.from, (width_px, height_px));
        read.image
    }

    /// The largest difference of two pictures.
    fn difference(one: &RgbImage, other: &RgbImage) -> u8 {
        assert_eq!((one.width(), one.height()), (other.width(), other.height()));
        let pairs = one.pixels().iter().zip(other.pixels());
        pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn pictures_are_read_as_pillow_reads_them() {
        for (name, most) in [
            ("baseline.jpg", 2),
            ("subsampled.jpg", 4),
            ("progressive.jpg", 4),
            ("grey.jpg", 2),
            ("cmyk.jpg", 4),
            ("turned-3.jpg", 2),
            ("turned-6.jpg", 2),
            ("lossy.webp", 2),
            ("lossy-alpha.webp", 2),
            ("lossless.webp", 0),
            ("lossless-alpha.webp", 1),
            ("turned-8.webp", 0),
            ("animated.webp", 0),
        ] {
            let expected = data(&format!("{name}.png"));
            let size = png::read_described(&expected).unwrap();
            let [found, expected] =
                [data(name), expected].map(|path| read(&path, size.width, size.height));
            let found = difference(&found, &expected);
            assert!(found <= most, "{name} differs by {found}");
        }
    }

    #[test]
    fn pictures_of_a_run_are_read_again_with_their_text() {
        let folder = tempfile::tempdir().unwrap();
        let image = read(&data("lossless.webp"), 40, 24);
        let parameters = GenerationParameters {
            prompt: "caf\u{e9}".into(),
            negative_prompt: "n".into(),
            plain_prompt: false,
            seed: 7,
            steps: 5,
            guidance: 7.5,
            guidance_rescale: 0.0,
            sampler: "euler",
            sampler_title: "Euler",
            spacing: None,
            eta: 0.0,
            model: "m".into(),
            strength: None,
            repaint: None,
            fast: 0,
            savings: PRESETS[0],
            loras: Vec::new(),
        };
        for (name, most) in [("x.JPG", 16), ("x.jpeg", 16), ("x.webp", 0), ("x.png", 0), ("x", 0)] {
            let path = folder.path().join(name);
            let mut bytes = Vec::new();
            Formats { quality: 95 }.write(&path, &mut bytes, &image, &parameters).unwrap();
            std::fs::write(&path, &bytes).unwrap();
            let found = difference(&read(&path, 40, 24), &image);
            assert!(found <= most, "{name} differs by {found}");
            let described = read_described(&path).unwrap();
            assert_eq!((described.width, described.height), (40, 24));
            let (mut text, mut expected) = (described.text, parameters.texts(40, 24));
            text.sort();
            expected.sort();
            let expected: Vec<_> =
                expected.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            assert_eq!(text, expected, "{name}");
        }
    }

    #[test]
    fn text_of_other_programs_is_found() {
        let text = read_described(&data("commented.jpg")).unwrap().text;
        let expected = "a fox\nSteps: 5, Sampler: Euler, Seed: 7";
        assert_eq!(text, [("parameters".to_owned(), expected.to_owned())]);
    }

    #[test]
    fn what_cannot_be_read_is_told_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let size = Size { width_px: 8, height_px: 8 };
        let error = |path: &Path, room_bytes: u64| {
            let read = Formats { quality: 90 }.read_cover(path, size, room_bytes);
            let text = read.unwrap_err().to_string();
            assert!(text.contains(&*path.to_string_lossy()) && !text.contains('\n'), "{text}");
            text
        };
        for name in ["baseline.jpg", "progressive.jpg", "lossy.webp", "lossless.webp"] {
            let text = error(&data(name), 5000);
            assert!(text.contains("40 x 24 pixels take 1 MiB to decode"), "{text}");
            let whole = std::fs::read(data(name)).unwrap();
            let path = folder.path().join(name);
            for len in (12..whole.len() / 2).step_by(7) {
                std::fs::write(&path, &whole[..len]).unwrap();
                let text = error(&path, ROOM_BYTES);
                assert!(text.contains("not a whole"), "{name} of {len} bytes: {text}");
            }
        }
        let path = folder.path().join("x.gif");
        assert!(error(&path, 0).contains("No such file"));
        std::fs::write(&path, "GIF89a").unwrap();
        assert!(error(&path, 0).contains("not a PNG, JPEG or WebP file"));
    }

    #[test]
    fn names_say_the_format() {
        let formats = Formats { quality: 90 };
        for (name, extension) in [
            ("x", "png"),
            ("x.PNG", "png"),
            ("x.jpg", "jpg"),
            ("x.JPEG", "jpeg"),
            ("x.webp", "webp"),
            ("x.gif", "png, .jpg or .webp"),
        ] {
            assert_eq!(formats.extension(Path::new(name)), extension);
        }
    }
}
