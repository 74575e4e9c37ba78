//! Bodies of requests, and pictures in them, within the limits of `account`.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use ::png::{ColorType, Limits, Transformations};
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use kiln_bundle::plan::Size;
use kiln_runtime::pipeline::png::{self, Described, RgbImage};
use kiln_runtime::pipeline::resize::Cover;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::account::{BODY_BYTES, LARGE_BODIES, SMALL_BODIES, SMALL_BODY_BYTES};
use crate::error::Refusal;

/// Longest time in which a body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for the bodies of others.
const TURN_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest memory for the chunks and rows of a mask.
const LIMITS: Limits = Limits { bytes: 8 << 20 };
/// Most pixels of an uploaded picture.
const MAX_PIXELS: u64 = 1 << 24;

/// Places for bodies that are being read.
pub struct Uploads {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// The body of a request. Its place is free when it is dropped.
pub struct Upload {
    pub bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Uploads {
    pub fn new() -> Uploads {
        Uploads {
            small: Arc::new(Semaphore::new(SMALL_BODIES)),
            large: Arc::new(Semaphore::new(LARGE_BODIES)),
        }
    }

    /// Reads a body.
    ///
    /// Errors: 413 if it is too large, 408 if it does not arrive in time, 503 if others take too
    /// long.
    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Upload, Refusal> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = length.and_then(|text| text.parse::<usize>().ok());
        let is_small = length.is_some_and(|bytes| bytes <= SMALL_BODY_BYTES);
        let too_large = || {
            let message = format!("the body has over {BODY_BYTES} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        };
        if length.is_some_and(|bytes| bytes > BODY_BYTES) {
            return Err(too_large());
        }
        let places = if is_small { &self.small } else { &self.large };
        let place = timeout(TURN_TIMEOUT, Arc::clone(places).acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            return Err(Refusal::busy("other uploads take too long; try again later"));
        };
        match timeout(BODY_TIMEOUT, to_bytes(body, BODY_BYTES)).await {
            Ok(Ok(bytes)) => Ok(Upload { bytes, _place: place }),
            Ok(Err(_)) => Err(too_large()),
            Err(_) => {
                let message = format!("the body took over {} s", BODY_TIMEOUT.as_secs());
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }
}

impl Upload {
    /// Reads JSON, which the request must announce: a form of another page cannot.
    ///
    /// Errors: 415, 400.
    pub fn json<'a, T: serde::Deserialize<'a>>(
        &'a self,
        headers: &HeaderMap,
    ) -> Result<T, Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.and_then(|text| text.split(';').next()).unwrap_or("").trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let message = "the body must be application/json";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        serde_json::from_slice(&self.bytes).map_err(Refusal::bad)
    }
}

/// A PNG file in base64, perhaps with the head of a data URL.
fn file(text: &str) -> Result<Vec<u8>, Refusal> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text = match text.split_once(";base64,") {
        Some((head, rest)) if head.starts_with("data:") => rest,
        _ => text,
    };
    let bytes = LENIENT.decode(text.trim_end());
    bytes.map_err(|error| Refusal::bad(format!("the picture is not base64: {error}")))
}

/// Bytes as base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Bytes that are base64 in JSON.
pub struct Base64<'a>(pub &'a [u8]);

impl serde::Serialize for Base64<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&base64::display::Base64Display::new(self.0, &STANDARD))
    }
}

/// Decodes a PNG file in base64 and scales it to cover a size.
///
/// Errors: 400.
pub fn picture(text: &str, size: Size) -> Result<RgbImage, Refusal> {
    decoded(&file(text)?, size)
}

/// Decodes a PNG file and scales it to cover a size.
///
/// Errors: 400.
pub fn decoded(file: &[u8], size: Size) -> Result<RgbImage, Refusal> {
    check(file)?;
    let scaled = png::covered(file, size.width_px, size.height_px).map_err(Refusal::bad)?;
    Ok(scaled.image)
}

/// Decodes a mask whose transparent part is repainted, or, if it has no transparency, its white
/// part. The result is a mask whose white part is repainted.
///
/// Errors: 400, also for interlaced files.
pub fn alpha_mask(text: &str, size: Size) -> Result<RgbImage, Refusal> {
    let file = file(text)?;
    check(&file)?;
    let unread = |error: ::png::DecodingError| Refusal::bad(format!("the mask: {error}"));
    let mut decoder = ::png::Decoder::new_with_limits(Cursor::new(&file[..]), LIMITS);
    decoder.set_transformations(Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(unread)?;
    let samples = match reader.output_color_type().0 {
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgba => 4,
        _ => return decoded(&file, size),
    };
    if reader.info().interlaced {
        return Err(Refusal::bad("the mask is interlaced; save it without"));
    }
    let cover = Cover::new(reader.info().size(), (size.width_px, size.height_px));
    let mut cover = cover.map_err(Refusal::bad)?;
    let (mut rgb, mut y) = (Vec::new(), 0);
    while let Some(row) = reader.next_row().map_err(unread)? {
        rgb.clear();
        let alphas = row.data().chunks_exact(samples).filter_map(<[u8]>::last);
        rgb.extend(alphas.flat_map(|alpha| [255 - alpha; 3]));
        cover.add(y, (0, 1), &rgb);
        y += 1;
    }
    cover.finish().map_err(Refusal::bad)
}

/// The text of a PNG file in base64.
///
/// Errors: 400.
pub fn described(text: &str) -> Result<Described, Refusal> {
    let file = file(text)?;
    check(&file)?;
    png::described(&file).map_err(Refusal::bad)
}

/// Checks the kind and the size of a file by its first bytes: signature, then width and height.
fn check(file: &[u8]) -> Result<(), Refusal> {
    if !file.starts_with(b"\x89PNG\r\n\x1a\n") || file.len() < 24 {
        return Err(Refusal::bad("the picture is no PNG file"));
    }
    let number = |at: usize| file[at..at + 4].iter().fold(0, |n, &b| n << 8 | u64::from(b));
    if number(16) * number(20) > MAX_PIXELS {
        return Err(Refusal::bad(format!("the picture has over {MAX_PIXELS} pixels")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_in_every_form() {
        for text in ["Zm9vYg==", "Zm9vYg", "data:image/png;base64,Zm9vYg==", "Zm9vYg==\n"] {
            assert_eq!(file(text).unwrap(), b"foob", "{text}");
        }
        assert!(file("Zm9v!").unwrap_err().message.contains("not base64"));
    }

    #[test]
    fn a_picture_too_large_is_refused_by_its_head() {
        let mut head = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        head.extend([0, 0, 0x20, 0, 0, 0, 0x20, 0]);
        assert!(check(&head).unwrap_err().message.contains("16777216 pixels"));
        assert!(check(b"GIF89a").unwrap_err().message.contains("no PNG"));
    }
}
