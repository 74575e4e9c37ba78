//! The orientation in which a camera stored an image, from the file's Exif data.
//!
//! Source: CIPA DC-008 (Exif 3.0), section 4.6.5, tag 0x0112; TIFF 6.0, section 2.

use super::RgbImage;

/// The tag of the orientation.
const TAG: u16 = 0x0112;
/// Bytes of an entry of a TIFF directory.
const ENTRY_BYTES: usize = 12;
const CHANNELS: usize = 3;

/// How the rows and columns of a stored image become those of the shown one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Orientation(u16);

impl Orientation {
    /// Reads it from Exif data, a TIFF structure; upright without valid data.
    pub fn of(exif: Option<&[u8]>) -> Orientation {
        Orientation(exif.and_then(value).filter(|value| (1..=8).contains(value)).unwrap_or(1))
    }

    /// Whether rows become columns.
    pub fn is_transposed(self) -> bool {
        self.0 >= 5
    }

    /// The image as it is shown.
    pub fn apply(self, image: RgbImage) -> RgbImage {
        if self.0 == 1 {
            return image;
        }
        let (from_width, from_height) = (image.width as usize, image.height as usize);
        let (width, height) = match self.is_transposed() {
            true => (from_height, from_width),
            false => (from_width, from_height),
        };
        // Mirrored after the transposition, along rows and columns.
        let mirrors_columns = matches!(self.0, 2 | 3 | 6 | 7);
        let mirrors_rows = matches!(self.0, 3 | 4 | 7 | 8);
        let mut pixels = Vec::with_capacity(image.pixels.len());
        for y in 0..height {
            let y = if mirrors_rows { height - 1 - y } else { y };
            for x in 0..width {
                let x = if mirrors_columns { width - 1 - x } else { x };
                let (row, column) = if self.is_transposed() { (x, y) } else { (y, x) };
                let at = (row * from_width + column) * CHANNELS;
                pixels.extend_from_slice(&image.pixels[at..at + CHANNELS]);
            }
        }
        RgbImage { width: width as u32, height: height as u32, pixels }
    }
}

/// The value of the tag in the first directory.
fn value(exif: &[u8]) -> Option<u16> {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let is_little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = tiff.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let (first, second) = (usize::from(short(4)?), usize::from(short(6)?));
    let directory = if is_little { first | second << 16 } else { first << 16 | second };
    let count = usize::from(short(directory)?);
    let mut entries = (0..count).map(|entry| directory + 2 + entry * ENTRY_BYTES);
    short(entries.find(|entry| short(*entry) == Some(TAG))? + 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exif(is_little: bool, orientation: u16) -> Vec<u8> {
        let short = |value: u16| match is_little {
            true => value.to_le_bytes(),
            false => value.to_be_bytes(),
        };
        let long = |value: u32| match is_little {
            true => value.to_le_bytes(),
            false => value.to_be_bytes(),
        };
        let head = if is_little { b"II*\0" } else { b"MM\0*" };
        let mut bytes = head.to_vec();
        bytes.extend(long(8));
        bytes.extend(short(2));
        for (tag, value) in [(0x0100, 7), (TAG, orientation)] {
            bytes.extend([short(tag), short(3)].concat());
            bytes.extend(long(1));
            bytes.extend([short(value), short(0)].concat());
        }
        bytes
    }

    #[test]
    fn the_tag_is_found_in_either_order_of_bytes() {
        for is_little in [true, false] {
            for orientation in 1..=8 {
                let bytes = exif(is_little, orientation);
                assert_eq!(Orientation::of(Some(&bytes)).0, orientation);
                let prefixed = [b"Exif\0\0", &bytes[..]].concat();
                assert_eq!(Orientation::of(Some(&prefixed)).0, orientation);
                for length in 0..bytes.len() - 2 {
                    assert_eq!(Orientation::of(Some(&bytes[..length])).0, 1, "{length}");
                }
            }
            assert_eq!(Orientation::of(Some(&exif(is_little, 9))).0, 1);
        }
        assert_eq!(Orientation::of(Some(b"II*\0\xff\xff\xff\xff")).0, 1);
        assert_eq!(Orientation::of(None).0, 1);
    }

    #[test]
    fn images_are_turned_as_pillow_turns_them() {
        // Pixels 0 1 2 over 3 4 5; the expected ones are of ImageOps.exif_transpose.
        let pixels = (0..6).flat_map(|value| [value; 3]).collect();
        let image = RgbImage::from_pixels(3, 2, pixels).unwrap();
        for (orientation, width, expected) in [
            (1, 3, [0, 1, 2, 3, 4, 5]),
            (2, 3, [2, 1, 0, 5, 4, 3]),
            (3, 3, [5, 4, 3, 2, 1, 0]),
            (4, 3, [3, 4, 5, 0, 1, 2]),
            (5, 2, [0, 3, 1, 4, 2, 5]),
            (6, 2, [3, 0, 4, 1, 5, 2]),
            (7, 2, [5, 2, 4, 1, 3, 0]),
            (8, 2, [2, 5, 1, 4, 0, 3]),
        ] {
            let turned = Orientation(orientation).apply(image.clone());
            let found: Vec<u8> = turned.pixels.chunks(3).map(|pixel| pixel[0]).collect();
            assert_eq!((turned.width, &found[..]), (width, &expected[..]), "{orientation}");
        }
    }
}
