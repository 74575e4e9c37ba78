//! The formats of the pictures that the command reads and writes, and standard output as a file.
//!
//! PNG is the command's own. A program can add others.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::Path;

use kiln_bundle::plan::Size;
use kiln_bundle::whole;

use crate::error::RuntimeError;
use crate::pipeline::png::{self, GenerationParameters, PngError, RgbImage, Scaled};

/// The name of standard output.
const STDOUT: &str = "-";

/// Formats of pictures.
pub trait PictureFormats {
    /// The extension of the format of `path`'s name, or those of all formats, in words, if it is
    /// none of them.
    fn extension(&self, path: &Path) -> &'static str;

    /// Most bytes of prompts that a file of this name has room for.
    fn most_text_bytes(&self, path: &Path) -> usize;

    /// Reads a picture, scaled and cut to `size`.
    ///
    /// `room_bytes`: memory that is free while it is read.
    /// Errors: [`PngError::Read`], with the path.
    fn read_cover(&self, path: &Path, size: Size, room_bytes: u64) -> Result<Scaled, PngError>;

    /// Whether a file is read row by row, in little memory.
    fn reads_by_rows(&self, path: &Path) -> bool;

    /// Writes a picture in the format of `path`'s name; PNG without an extension.
    ///
    /// Errors: [`PngError::Write`] if the writer fails.
    fn write(
        &self,
        path: &Path,
        writer: &mut dyn Write,
        image: &RgbImage,
        parameters: &GenerationParameters,
    ) -> Result<(), PngError>;
}

/// PNG alone.
pub struct Png;

impl PictureFormats for Png {
    fn extension(&self, _: &Path) -> &'static str {
        "png"
    }

    fn most_text_bytes(&self, _: &Path) -> usize {
        usize::MAX
    }

    fn read_cover(&self, path: &Path, size: Size, _: u64) -> Result<Scaled, PngError> {
        png::read_cover(path, size.width_px, size.height_px)
    }

    fn reads_by_rows(&self, _: &Path) -> bool {
        true
    }

    fn write(
        &self,
        _: &Path,
        writer: &mut dyn Write,
        image: &RgbImage,
        parameters: &GenerationParameters,
    ) -> Result<(), PngError> {
        png::write_png(writer, image, Some(parameters))
    }
}

/// Whether an output is standard output.
pub(super) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == STDOUT
}

/// Checks before the work that standard output takes a picture.
pub(super) fn check_stdout() -> Result<(), String> {
    match io::stdout().is_terminal() {
        true => Err("-o - writes a picture to standard output, and it is a terminal; redirect it \
                     to a file or a program"
            .into()),
        false => Ok(()),
    }
}

/// Writes a picture to a file, which has its name only when it is complete, or to standard output.
/// A reader of standard output that has seen enough is no error.
pub(super) fn save(
    formats: &dyn PictureFormats,
    path: &Path,
    image: &RgbImage,
    parameters: &GenerationParameters,
) -> Result<(), RuntimeError> {
    let (name, written) = if is_stdout(path) {
        match formats.write(Path::new(""), &mut io::stdout().lock(), image, parameters) {
            Err(PngError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => (Path::new("standard output"), written),
        }
    } else {
        (path, whole::write(path, |file| formats.write(path, file, image, parameters)))
    };
    written.map_err(|error| match error {
        PngError::Write(source) => PngError::File { path: name.to_owned(), source }.into(),
        other => other.into(),
    })
}
