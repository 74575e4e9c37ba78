//! NumPy's `.npy` files: latents and dumps on a device without Python.
//!
//! Owns reading and writing arrays of little-endian `f32` and `i32` in C order. Refuses everything
//! else the format allows (other types, Fortran order, pickled objects) with an error.
//!
//! Source: NumPy enhancement proposal 1, format versions 1.0 to 3.0.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// NumPy pads the preamble and header to a multiple of this.
const HEADER_ALIGN_BYTES: usize = 64;
/// Longest header read. NumPy itself refuses longer ones by default.
const MAX_HEADER_BYTES: usize = 10_000;
/// Elements read at a time: a false shape costs no more memory than the file has data.
const CHUNK_ELEMS: usize = 16 * 1024;
const ELEM_BYTES: usize = 4;

/// Why a `.npy` file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The file could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file does not start with NumPy's magic bytes.
    #[error("not a .npy file")]
    NotNpy,
    /// The format version is not 1.0, 2.0 or 3.0.
    #[error(".npy format version {major}.{minor} is not supported")]
    Version {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The header is not the dictionary NumPy writes.
    #[error("malformed .npy header: {0}")]
    Header(&'static str),
    /// The elements are of another type than asked for.
    #[error("the .npy file holds elements of type {found:?}, {expected:?} is needed")]
    ElementType {
        /// The file's `descr`.
        found: String,
        /// The `descr` of the type asked for.
        expected: &'static str,
    },
    /// The array is stored column by column.
    #[error("the .npy file is in Fortran order, C order is needed")]
    FortranOrder,
    /// The shape's size in bytes is beyond the address space.
    #[error("the .npy file claims the impossible shape {shape:?}")]
    TooLarge {
        /// The claimed shape.
        shape: Vec<usize>,
    },
    /// The file ends before the data does.
    #[error("the .npy file holds {found_elems} of {expected_elems} elements")]
    Truncated {
        /// Whole elements found.
        found_elems: usize,
        /// Elements the shape asks for.
        expected_elems: usize,
    },
    /// The values to be written do not fill the shape.
    #[error("{elems} values do not fill an array of shape {shape:?}")]
    ShapeMismatch {
        /// The shape asked for.
        shape: Vec<usize>,
        /// How many values there are.
        elems: usize,
    },
}

/// An element type of a `.npy` array: `f32` or `i32`.
pub trait NpyElement: Copy + sealed::Sealed {
    /// NumPy's name of the type, byte order included.
    const DESCR: &'static str;
    /// Reads an element.
    fn from_le_bytes(bytes: [u8; ELEM_BYTES]) -> Self;
    /// Writes an element.
    fn to_le_bytes(self) -> [u8; ELEM_BYTES];
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
}

impl NpyElement for f32 {
    const DESCR: &'static str = "<f4";
    fn from_le_bytes(bytes: [u8; ELEM_BYTES]) -> Self {
        Self::from_le_bytes(bytes)
    }
    fn to_le_bytes(self) -> [u8; ELEM_BYTES] {
        self.to_le_bytes()
    }
}

impl NpyElement for i32 {
    const DESCR: &'static str = "<i4";
    fn from_le_bytes(bytes: [u8; ELEM_BYTES]) -> Self {
        Self::from_le_bytes(bytes)
    }
    fn to_le_bytes(self) -> [u8; ELEM_BYTES] {
        self.to_le_bytes()
    }
}

/// An array in C order.
#[derive(Debug, Clone, PartialEq)]
pub struct NpyArray<T> {
    /// Length of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, as many as the product of `shape`, the last axis running fastest.
    pub values: Vec<T>,
}

/// Reads an array.
///
/// Memory: at most about twice the data that is really there, whatever the header claims. Bytes
/// after the array are left in the reader.
/// Errors: [`NpyError`] for anything but a whole C-order array of `T`.
pub fn read<T: NpyElement>(reader: impl Read) -> Result<NpyArray<T>, NpyError> {
    read_at_most(reader, usize::MAX)
}

/// [`read`] for an array of at most `max_elems` elements; no larger one is read.
pub fn read_at_most<T: NpyElement>(
    mut reader: impl Read,
    max_elems: usize,
) -> Result<NpyArray<T>, NpyError> {
    let shape = read_header(&mut reader, T::DESCR)?;
    let elems = elem_count(&shape).filter(|elems| *elems <= max_elems);
    let elems = elems.ok_or_else(|| NpyError::TooLarge { shape: shape.clone() })?;
    let mut values = Vec::with_capacity(elems.min(CHUNK_ELEMS));
    let mut chunk = vec![0; elems.min(CHUNK_ELEMS) * ELEM_BYTES];
    while values.len() < elems {
        let wanted_bytes = (elems - values.len()).min(CHUNK_ELEMS) * ELEM_BYTES;
        let found_bytes = read_up_to(&mut reader, &mut chunk[..wanted_bytes])?;
        let (found, _) = chunk[..found_bytes].as_chunks();
        values.extend(found.iter().map(|&bytes| T::from_le_bytes(bytes)));
        if found_bytes < wanted_bytes {
            return Err(NpyError::Truncated { found_elems: values.len(), expected_elems: elems });
        }
    }
    Ok(NpyArray { shape, values })
}

/// Writes an array in format version 1.0.
///
/// Errors: [`NpyError::ShapeMismatch`] if `values` does not fill `shape`, [`NpyError::Io`] if the
/// writer fails. The writer is flushed.
pub fn write<T: NpyElement>(
    mut writer: impl Write,
    shape: &[usize],
    values: &[T],
) -> Result<(), NpyError> {
    if elem_count(shape) != Some(values.len()) {
        return Err(NpyError::ShapeMismatch { shape: shape.to_vec(), elems: values.len() });
    }
    let axes: String = shape.iter().map(|length| format!("{length}, ")).collect();
    let axes = if shape.len() == 1 { axes.trim_end() } else { axes.trim_end_matches(", ") };
    let descr = T::DESCR;
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({axes}), }}");
    let preamble_bytes = MAGIC.len() + 4;
    let total_bytes = (preamble_bytes + header.len() + 1).next_multiple_of(HEADER_ALIGN_BYTES);
    header.extend(std::iter::repeat_n(' ', total_bytes - preamble_bytes - header.len() - 1));
    header.push('\n');
    let header_bytes = u16::try_from(header.len()).map_err(|_| NpyError::Header("too long"))?;
    writer.write_all(MAGIC)?;
    writer.write_all(&[1, 0])?;
    writer.write_all(&header_bytes.to_le_bytes())?;
    writer.write_all(header.as_bytes())?;
    for chunk in values.chunks(CHUNK_ELEMS) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write_all(&bytes)?;
    }
    Ok(writer.flush()?)
}

/// The product of a shape, if that many elements fit into the address space.
fn elem_count(shape: &[usize]) -> Option<usize> {
    let elems = shape.iter().try_fold(1usize, |elems, &length| elems.checked_mul(length))?;
    let bytes = elems.checked_mul(ELEM_BYTES)?;
    isize::try_from(bytes).ok().map(|_| elems)
}

/// Reads until the buffer is full or the reader ends; returns how many bytes were read.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads magic, version and header; checks type and order; returns the shape.
fn read_header(reader: &mut impl Read, descr: &'static str) -> Result<Vec<usize>, NpyError> {
    let mut preamble = [0; 8];
    if read_up_to(reader, &mut preamble)? < preamble.len() || !preamble.starts_with(MAGIC) {
        return Err(NpyError::NotNpy);
    }
    let ends_early = NpyError::Header("the file ends inside it");
    let mut length_bytes = [0; 4];
    let width = match preamble[6..] {
        [1, 0] => 2,
        [2 | 3, 0] => 4,
        [major, minor, ..] => return Err(NpyError::Version { major, minor }),
        _ => return Err(NpyError::NotNpy),
    };
    if read_up_to(reader, &mut length_bytes[..width])? < width {
        return Err(ends_early);
    }
    let length = usize::try_from(u32::from_le_bytes(length_bytes)).unwrap_or(usize::MAX);
    if length > MAX_HEADER_BYTES {
        return Err(NpyError::Header("longer than 10,000 bytes"));
    }
    let mut header = vec![0; length];
    if read_up_to(reader, &mut header)? < length {
        return Err(ends_early);
    }
    let header = std::str::from_utf8(&header).map_err(|_| NpyError::Header("not text"))?;
    let header = Header::parse(header)?;
    if header.descr != descr {
        return Err(NpyError::ElementType { found: header.descr.to_owned(), expected: descr });
    }
    if header.fortran_order && header.shape.iter().filter(|&&length| length != 1).count() > 1 {
        return Err(NpyError::FortranOrder);
    }
    Ok(header.shape)
}

/// The header's dictionary.
struct Header<'h> {
    descr: &'h str,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl<'h> Header<'h> {
    /// Parses a Python dictionary of exactly the three keys, in any order.
    fn parse(text: &'h str) -> Result<Self, NpyError> {
        let text = text.trim();
        let body = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let mut rest = body.ok_or(NpyError::Header("not a dictionary"))?.trim();
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = quoted(rest).ok_or(NpyError::Header("a key is not a string"))?;
            let value = after.trim_start().strip_prefix(':');
            let value = value.ok_or(NpyError::Header("a key has no value"))?.trim_start();
            let after = match key {
                "descr" => {
                    let (found, after) =
                        quoted(value).ok_or(NpyError::Header("descr is not a string"))?;
                    descr = Some(found);
                    after
                }
                "fortran_order" => {
                    let (found, after) =
                        boolean(value).ok_or(NpyError::Header("fortran_order is not a boolean"))?;
                    fortran_order = Some(found);
                    after
                }
                "shape" => {
                    let (found, after) =
                        tuple(value).ok_or(NpyError::Header("shape is not a tuple of lengths"))?;
                    shape = Some(found);
                    after
                }
                _ => return Err(NpyError::Header("an unknown key")),
            };
            let after = after.trim_start();
            rest = match after.strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if after.is_empty() => after,
                None => return Err(NpyError::Header("a value is not followed by a comma")),
            };
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => {
                Ok(Self { descr, fortran_order, shape })
            }
            _ => Err(NpyError::Header("descr, fortran_order or shape is missing")),
        }
    }
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    text[1..].split_once(quote)
}

fn boolean(text: &str) -> Option<(bool, &str)> {
    let parsed = |word, value| text.strip_prefix(word).map(|rest| (value, rest));
    parsed("True", true).or_else(|| parsed("False", false))
}

fn tuple(text: &str) -> Option<(Vec<usize>, &str)> {
    let (inside, rest) = text.strip_prefix('(')?.split_once(')')?;
    let inside = inside.trim();
    let inside = inside.strip_suffix(',').unwrap_or(inside);
    if inside.is_empty() {
        return Some((Vec::new(), rest));
    }
    let lengths = inside.split(',').map(|length| length.trim().parse().ok());
    Some((lengths.collect::<Option<_>>()?, rest))
}

#[cfg(test)]
mod tests {
    use super::{NpyArray, NpyError, read, write};

    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        let length = (header.len() as u32).to_le_bytes();
        bytes.extend(&length[..if version == 1 { 2 } else { 4 }]);
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        for shape in [vec![], vec![3], vec![0, 5], vec![2, 3, 4]] {
            let elems = shape.iter().product::<usize>();
            let values: Vec<i32> = (0..elems as i32).collect();
            let mut bytes = Vec::new();
            write(&mut bytes, &shape, &values).unwrap();
            assert_eq!((bytes.len() - elems * 4) % 64, 0);
            assert_eq!(read(&*bytes).ok(), Some(NpyArray { shape, values }));
        }
    }

    #[test]
    fn newer_versions_and_odd_spacing_are_read() {
        let header = "{\"shape\":(1 ,2,),'fortran_order' : True, 'descr': '<f4'}\n";
        let array = read::<f32>(&*file(3, header, &[0, 0, 128, 63, 0, 0, 0, 64, 9])).unwrap();
        assert_eq!((array.shape, array.values), (vec![1, 2], vec![1.0, 2.0]));
    }

    #[test]
    fn hostile_headers_are_errors() {
        let full =
            |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
        for header in [
            "",
            "{",
            "}",
            "{}",
            "{'shape': (1,)}",
            "{'descr' '<f4'}",
            "{'descr': '<f4' 'shape': ()}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
            "{'x': 1}",
            "é{}",
            &full("(-1,)"),
            &full("(1"),
            &full("1"),
            &full("(1,,2)"),
            &full("(99999999999999999999,)"),
        ] {
            let result = read::<f32>(&*file(1, header, &[0; 64]));
            assert!(matches!(result, Err(NpyError::Header(_))), "{header}: {result:?}");
        }
        let large = full("(4294967296, 4294967296)");
        assert!(matches!(read::<f32>(&*file(1, &large, &[])), Err(NpyError::TooLarge { .. })));
        let absent = full("(1000000000000,)");
        let result = read::<f32>(&*file(1, &absent, &[0; 9]));
        assert!(matches!(result, Err(NpyError::Truncated { found_elems: 2, .. })));
        let long = " ".repeat(20_000);
        assert!(matches!(read::<f32>(&*file(2, &long, &[])), Err(NpyError::Header(_))));
        assert!(matches!(read::<f32>(&*file(7, "", &[])), Err(NpyError::Version { major: 7, .. })));
        assert!(matches!(
            read::<i32>(&*file(1, &full("()"), &[])),
            Err(NpyError::ElementType { .. })
        ));
        let fortran = full("(2, 2)").replace("False", "True");
        assert!(matches!(read::<f32>(&*file(1, &fortran, &[])), Err(NpyError::FortranOrder)));
    }

    #[test]
    fn damaged_files_never_panic() {
        let mut whole = Vec::new();
        write(&mut whole, &[2, 8], &[0.5f32; 16]).unwrap();
        arbtest::arbtest(|u| {
            let mut bytes = whole.clone();
            bytes.truncate(u.choose_index(whole.len() + 1)?);
            for _ in 0..u.int_in_range(0..=4)? {
                if !bytes.is_empty() {
                    let at = u.choose_index(bytes.len())?;
                    bytes[at] = u.arbitrary()?;
                }
            }
            let _ = read::<f32>(&*bytes);
            Ok(())
        });
    }

    #[test]
    fn values_must_fill_the_shape() {
        let result = write(Vec::new(), &[2, 2], &[1.0f32; 3]);
        assert!(matches!(result, Err(NpyError::ShapeMismatch { elems: 3, .. })));
    }
}
