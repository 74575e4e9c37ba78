//! Files of the command other than images: latents, dumped tensors, reports.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use kiln_bundle::plan::Manifest;
use kiln_bundle::whole;
use serde::Serialize;

use crate::error::RuntimeError;
use crate::npy::{self, NpyArray, NpyError};
use crate::tensor::{Tensor, Values};

/// Turns an error of the operating system into one that names the file.
pub(super) fn file_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> RuntimeError + 'a {
    move |source| RuntimeError::Io { action, path: path.to_owned(), source }
}

/// `out.png` with `-1` becomes `out-1.png`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
    name.push(suffix);
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The file of a picture's preview, a PNG.
pub(super) fn preview_of(picture: &Path) -> PathBuf {
    let preview = with_suffix(picture, ".preview");
    if picture.extension().is_some() { preview.with_extension("png") } else { preview }
}

/// The file of a dumped tensor.
pub(super) fn tensor_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.npy"))
}

/// Reads a latent of shape `[1, C, H, W]` or `[C, H, W]`.
pub(super) fn read_latent(path: &Path, manifest: &Manifest) -> Result<Vec<f32>, RuntimeError> {
    let file = File::open(path).map_err(file_error("open", path))?;
    let [height, width] = manifest.latent.axes();
    let expected = [1, manifest.latent_channels as usize, height, width];
    let read = npy::read_at_most::<f32>(BufReader::new(file), expected.iter().product());
    let message = match read {
        Ok(NpyArray { shape, values }) if shape == expected || shape == expected[1..] => {
            match values.iter().position(|value| !value.is_finite()) {
                None => return Ok(values),
                Some(index) => format!("value {index} is {}", values[index]),
            }
        }
        Ok(NpyArray { shape, .. }) | Err(NpyError::TooLarge { shape }) => {
            format!("has shape {shape:?}, a latent of this model has {expected:?}")
        }
        Err(error) => error.to_string(),
    };
    Err(RuntimeError::Input(format!("{}: {message}", path.display())))
}

/// Writes a file that is complete or absent.
pub(super) fn write_tensor(path: &Path, tensor: &Tensor) -> Result<(), RuntimeError> {
    let written = whole::write(path, |file| match &tensor.values {
        Values::F32(values) => npy::write(file, &tensor.shape, values),
        Values::I32(values) => npy::write(file, &tensor.shape, values),
    });
    written.map_err(|error| RuntimeError::Input(format!("{}: {error}", path.display())))
}

/// Writes a file that is complete or absent.
pub(super) fn write_report(path: &Path, report: &impl Serialize) -> Result<(), RuntimeError> {
    let written = whole::write(path, |file| {
        serde_json::to_writer_pretty(&mut *file, report)?;
        writeln!(file)
    });
    written.map_err(file_error("write", path))
}
