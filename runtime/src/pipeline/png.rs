//! The image file: decoder output to RGB, and a PNG that records how the image was made.
//!
//! Owns rounding to bytes and the text chunks, and reads both back.
//!
//! Source: PNG specification, third edition (W3C 2025), sections 11.3.3 and 13.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use ::png::{BitDepth, ColorType, Encoder, EncodingError};
use kiln_bundle::whole;
use serde::Serialize;

use super::fast::Fast;

mod orientation;
mod read;

pub use orientation::Orientation;
pub use read::{Described, Scaled, covered, described, over_white, read_cover, read_described};

const CHANNELS: usize = 3;

/// Reason why an image cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PngError {
    /// The number of values does not fit the size, or is zero.
    #[error("{elems} values do not make a picture of {width} x {height} pixels")]
    Size {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Number of values.
        elems: usize,
    },
    /// A file is not a PNG, or is damaged.
    #[error("{} cannot be read: {message}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The fault.
        message: String,
    },
    /// The writer failed.
    #[error("the picture could not be written: {0}")]
    Write(#[from] io::Error),
    /// The file could not be written.
    #[error("{} could not be written: {source}", path.display())]
    File {
        /// The requested file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// An image of 8 bits a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// Makes an image of pixels.
    ///
    /// Shapes: `pixels: [height, width, 3]`.
    /// Errors: [`PngError::Size`] if the pixels do not fit the size, or the size is zero.
    pub fn from_pixels(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, PngError> {
        check_size(width, height, pixels.len())?;
        Ok(Self { width, height, pixels })
    }

    /// Converts the decoder's output.
    ///
    /// Shapes: `values: [height, width, 3]` (NHWC, one image).
    /// Units: -1 is black, 1 is full. Values outside are clamped; NaN becomes black.
    /// Numerics: `round(clamp(x / 2 + 0.5, 0, 1) * 255)`, ties to even, like the reference.
    /// Errors: [`PngError::Size`].
    pub fn from_decoder(width: u32, height: u32, values: &[f32]) -> Result<Self, PngError> {
        check_size(width, height, values.len())?;
        let byte =
            |value: &f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8;
        Ok(Self { width, height, pixels: values.iter().map(byte).collect() })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, to be changed.
    pub(super) fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }
}

fn check_size(width: u32, height: u32, elems: usize) -> Result<(), PngError> {
    let needed = u128::from(width) * u128::from(height) * CHANNELS as u128;
    if needed == 0 || needed != elems as u128 {
        return Err(PngError::Size { width, height, elems });
    }
    Ok(())
}

/// The parameters of an image, which its file records.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty if there is none.
    pub negative_prompt: String,
    /// Whether brackets in the prompts are text, not weights.
    pub plain_prompt: bool,
    /// Seed of the noise.
    pub seed: u64,
    /// Sampling steps.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance: f32,
    /// Share by which the guided output's standard deviation was brought back.
    pub guidance_rescale: f32,
    /// Name of the sampler.
    pub sampler: &'static str,
    /// Name of the sampler in other programs.
    pub sampler_title: &'static str,
    /// Spacing of the sampler's timesteps; none if it is the sampler's own.
    pub spacing: Option<&'static str>,
    /// Noise that each step added, as a fraction of DDPM's.
    pub eta: f32,
    /// Name of the model.
    pub model: String,
    /// Strength of the change to an initial image, 0 to 1; none if the image began with noise
    /// alone.
    pub strength: Option<f64>,
    /// The mask; none if the whole image was made.
    pub repaint: Option<Repaint>,
    /// Preset of steps that cost less; 0 has none.
    pub fast: usize,
    /// The evaluations that cost less.
    pub savings: Fast,
    /// Names and strengths of LoRAs.
    pub loras: Vec<(String, f32)>,
}

/// A mask, as reports and image files record it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Repaint {
    /// Share of the image that was repainted, 0 to 1.
    pub share: f64,
    /// XXH3 of the mask at the model's size, a byte a pixel, in hexadecimal digits.
    pub checksum: String,
}

impl GenerationParameters {
    /// The texts of a file, key and value: first `parameters`, in the form that other programs
    /// read, then one for each parameter.
    pub fn texts(&self, width: u32, height: u32) -> Vec<(&'static str, String)> {
        let spacing = self.spacing.map(|spacing| ("spacing", spacing.to_owned()));
        let strength = self.strength.map(|strength| ("strength", strength.to_string()));
        let always = [
            ("parameters", self.info_text(width, height)),
            ("prompt", self.prompt.clone()),
            ("negative prompt", self.negative_prompt.clone()),
            ("seed", self.seed.to_string()),
            ("steps", self.steps.to_string()),
            ("guidance", self.guidance.to_string()),
            ("guidance rescale", self.guidance_rescale.to_string()),
            ("sampler", self.sampler.to_owned()),
            ("eta", self.eta.to_string()),
            ("model", self.model.clone()),
            // The spelling that the PNG specification registers.
            ("Software", SOFTWARE.to_owned()),
        ];
        let plain = self.plain_prompt.then(|| ("plain prompt", "true".to_owned()));
        let mask = self.repaint.as_ref().map(|Repaint { share, checksum }| {
            ("mask", format!("{share:.4} of the picture, XXH3 {checksum}"))
        });
        let loras = self.loras();
        let loras = (!loras.is_empty()).then_some(("lora", loras));
        let optional = [spacing, strength, plain, mask, loras].into_iter().flatten();
        always.into_iter().chain(optional).chain(self.savings.named(self.fast)).collect()
    }

    /// `name:strength` of each LoRA.
    fn loras(&self) -> String {
        let one = |(name, strength): &(String, f32)| format!("{name}:{strength}");
        self.loras.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The parameters as AUTOMATIC1111's web UI writes them, which viewers understand.
    pub fn info_text(&self, width: u32, height: u32) -> String {
        let mut text = self.prompt.clone();
        if !self.negative_prompt.is_empty() {
            text.push_str("\nNegative prompt: ");
            text.push_str(&self.negative_prompt);
        }
        let Self { steps, guidance, seed, eta, .. } = self;
        let (sampler, model) = (quoted(self.sampler_title), quoted(&self.model));
        let strength = self.strength.map(|s| format!(", Denoising strength: {s}"));
        let spacing = self.spacing.map(|spacing| format!(", Schedule type: {spacing}"));
        let rescale = Some(self.guidance_rescale).filter(|share| *share > 0.0);
        let rescale = rescale.map(|share| format!(", CFG rescale: {share}"));
        let mask = self.repaint.as_ref();
        let mask = mask.map(|repaint| format!(", Mask share: {:.4}", repaint.share));
        let loras = Some(self.loras()).filter(|loras| !loras.is_empty());
        let loras = loras.map(|loras| format!(", LoRA: {}", quoted(&loras)));
        let [strength, spacing, rescale, mask, loras] =
            [strength, spacing, rescale, mask, loras].map(Option::unwrap_or_default);
        let mut savings = String::new();
        for (name, value) in self.savings.named(self.fast) {
            let (first, rest) = name.split_at(1);
            let value = quoted(&value);
            savings += &format!(", {}{rest}: {value}", first.to_uppercase());
        }
        text.push_str(&format!(
            "\nSteps: {steps}, Sampler: {sampler}{spacing}, CFG scale: {guidance}{rescale}, \
             Seed: {seed}, Size: {width}x{height}, Model: {model}, Eta: {eta}{strength}{mask}{loras}\
             {savings}, \
             Version: {SOFTWARE}"
        ));
        text
    }
}

const SOFTWARE: &str = concat!("Kiln ", env!("CARGO_PKG_VERSION"));

/// A value of the settings line. A value that would break the line is quoted.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) { format!("{value:?}") } else { value.to_owned() }
}

/// Writes an image as PNG and flushes the writer.
///
/// ASCII texts are `tEXt` chunks, which every reader knows. Other texts are `iTXt` (UTF-8).
/// Errors: [`PngError::Write`] if the writer fails.
pub fn write_png(
    writer: impl Write,
    image: &RgbImage,
    parameters: Option<&GenerationParameters>,
) -> Result<(), PngError> {
    let mut writer = BufWriter::new(writer);
    encode(&mut writer, image, parameters).map_err(|error| match error {
        EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    })?;
    Ok(writer.flush()?)
}

fn encode(
    writer: &mut impl Write,
    image: &RgbImage,
    parameters: Option<&GenerationParameters>,
) -> Result<(), EncodingError> {
    let mut encoder = Encoder::new(writer, image.width, image.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let texts = parameters.map(|parameters| parameters.texts(image.width, image.height));
    for (key, mut value) in texts.into_iter().flatten() {
        // U+0000 ends a text chunk.
        value.retain(|c| c != '\0');
        match value.is_ascii() {
            true => encoder.add_text_chunk(key.to_owned(), value)?,
            false => encoder.add_itxt_chunk(key.to_owned(), value)?,
        }
    }
    let mut body = encoder.write_header()?;
    body.write_image_data(&image.pixels)?;
    body.finish()
}

/// Writes an image to a file, which has its name only when it is complete.
///
/// A path that is not a regular file (a pipe, a device) is written directly.
/// Errors: [`PngError::File`], with the path.
pub fn save_png(
    path: &Path,
    image: &RgbImage,
    parameters: Option<&GenerationParameters>,
) -> Result<(), PngError> {
    whole::write(path, |file| write_png(file, image, parameters)).map_err(|error| match error {
        PngError::Write(source) => PngError::File { path: path.to_owned(), source },
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::pipeline::fast::PRESETS;

    fn image() -> RgbImage {
        let pixels = (0..16 * 8 * 3).map(|n| (n * 7 % 256) as u8).collect();
        RgbImage::from_pixels(16, 8, pixels).unwrap()
    }

    fn parameters() -> GenerationParameters {
        GenerationParameters {
            prompt: "a café, 東京\nat night\0".to_owned(),
            negative_prompt: "blurry".to_owned(),
            plain_prompt: false,
            seed: u64::MAX,
            steps: 20,
            guidance: 7.5,
            guidance_rescale: 0.7,
            sampler: "ddim",
            sampler_title: "DDIM",
            spacing: Some("trailing"),
            eta: 0.0,
            model: "a, b".to_owned(),
            strength: Some(0.75),
            repaint: Some(Repaint { share: 0.25, checksum: "0123456789abcdef".into() }),
            fast: 3,
            savings: PRESETS[3],
            loras: vec![("style".into(), 0.5)],
        }
    }

    #[test]
    fn decoder_output_becomes_bytes() {
        let values = [-1.0, 1.0, 0.0, -7.0, 7.0, f32::NAN];
        let image = RgbImage::from_decoder(2, 1, &values).unwrap();
        assert_eq!(image.pixels(), [0, 255, 128, 0, 255, 0]);
        for (width, height) in [(1, 1), (0, 6), (u32::MAX, u32::MAX)] {
            let result = RgbImage::from_decoder(width, height, &values);
            assert!(matches!(result, Err(PngError::Size { elems: 6, .. })));
        }
    }

    #[test]
    fn pixels_and_parameters_are_read_back() {
        let mut bytes = Vec::new();
        write_png(&mut bytes, &image(), Some(&parameters())).unwrap();
        let mut reader = ::png::Decoder::new(io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, image().pixels());
        let info = reader.info();
        let unicode: Vec<(&str, String)> = info
            .utf8_text
            .iter()
            .map(|chunk| (&*chunk.keyword, chunk.get_text().unwrap()))
            .collect();
        let settings = "Steps: 20, Sampler: DDIM, Schedule type: trailing, CFG scale: 7.5, \
                        CFG rescale: 0.7, Seed: 18446744073709551615, Size: 16x8, \
                        Model: \"a, b\", Eta: 0, Denoising strength: 0.75, \
                        Mask share: 0.2500, LoRA: \"style:0.5\", Fast: 3, \
                        Guidance interval: \"0:0.5\", Cache interval: 3, Version: ";
        let prompt = "a café, 東京\nat night".to_owned();
        assert_eq!(unicode[1], ("prompt", prompt.clone()));
        assert_eq!(unicode[0].0, "parameters");
        let expected = format!("{prompt}\nNegative prompt: blurry\n{settings}{SOFTWARE}");
        assert_eq!(unicode[0].1, expected);
        let ascii: Vec<&str> =
            info.uncompressed_latin1_text.iter().map(|chunk| &*chunk.keyword).collect();
        let keys = ["negative prompt", "seed", "steps", "guidance", "guidance rescale", "sampler"];
        let rest = ["eta", "model", "Software", "spacing", "strength", "mask", "lora"];
        let savings = ["fast", "guidance interval", "cache interval"];
        assert_eq!(ascii, [&keys[..], &rest, &savings].concat());
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.png");
        fs::write(&path, "earlier").unwrap();
        save_png(&path, &image(), Some(&parameters())).unwrap();
        assert!(fs::read(&path).unwrap().starts_with(b"\x89PNG"));
        let occupied = folder.path().join("folder");
        fs::create_dir(&occupied).unwrap();
        for impossible in [occupied, folder.path().join("no/such/folder.png"), "..".into()] {
            let error = save_png(&impossible, &image(), None).unwrap_err();
            assert!(error.to_string().contains(&*impossible.to_string_lossy()), "{error}");
        }
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["folder", "out.png"]);
    }

    #[test]
    fn a_writer_that_fails_anywhere_is_an_error() {
        struct Limited(usize);
        impl Write for Limited {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let count = bytes.len().min(self.0);
                self.0 -= count;
                if count == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(count) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut whole = Vec::new();
        write_png(&mut whole, &image(), Some(&parameters())).unwrap();
        for limit in 0..whole.len() {
            let result = write_png(Limited(limit), &image(), Some(&parameters()));
            let is_full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
            assert!(matches!(&result, Err(PngError::Write(error)) if is_full(error)), "{limit}");
        }
        assert!(write_png(Limited(whole.len()), &image(), Some(&parameters())).is_ok());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_to_be_full() {
        let error = save_png(Path::new("/dev/full"), &image(), None).unwrap_err().to_string();
        assert!(error.contains("/dev/full") && error.contains("No space left"), "{error}");
    }
}
