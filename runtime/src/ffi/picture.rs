//! Finished images for C.

use std::ffi::{CString, c_char};
use std::ptr;
use std::slice;

use super::{Failure, KilnStatus, c_text, free, given, guard};
use crate::session::Picture;

const CHANNELS: usize = 4;

/// A finished image. Several threads may use it at a time. It outlives its session.
pub struct KilnPicture {
    width: u32,
    height: u32,
    rgba: Vec<u8>,
    warnings: Vec<CString>,
}

impl KilnPicture {
    pub(super) fn new(picture: &Picture) -> KilnPicture {
        let pixels = picture.rgb.pixels().chunks_exact(3);
        let mut rgba = Vec::with_capacity(pixels.len() * CHANNELS);
        for pixel in pixels {
            rgba.extend_from_slice(pixel);
            rgba.push(u8::MAX);
        }
        let warnings = picture.warnings.iter().map(|warning| c_text(warning)).collect();
        KilnPicture { width: picture.width, height: picture.height, rgba, warnings }
    }
}

/// Width of an image in pixels; 0 if it is NULL. Any thread.
///
/// # Safety
///
/// `picture` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_picture_width(picture: *const KilnPicture) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { picture.as_ref() }.map_or(0, |picture| picture.width)
}

/// Height of an image in pixels; 0 if it is NULL. Any thread.
///
/// # Safety
///
/// `picture` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_picture_height(picture: *const KilnPicture) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { picture.as_ref() }.map_or(0, |picture| picture.height)
}

/// Copies the pixels as red, green, blue and 255, row by row from the top, without gaps.
///
/// `len_bytes` must be `width * height * 4`. Any thread. Fails with `KILN_STATUS_INPUT`.
///
/// # Safety
///
/// `picture` has not been freed; `len_bytes` bytes at `out` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_picture_rgba(
    picture: *const KilnPicture,
    out: *mut u8,
    len_bytes: usize,
) -> KilnStatus {
    guard(|| {
        // SAFETY: by this function's contract.
        let rgba = &unsafe { given(picture, "the picture")? }.rgba;
        if out.is_null() {
            return Err(Failure::null("the place for the pixels"));
        }
        if len_bytes != rgba.len() {
            let needed = rgba.len();
            return Err(Failure::input(format!("{len_bytes} bytes for {needed} of pixels")));
        }
        // SAFETY: by this function's contract, for the length that is compared above.
        unsafe { slice::from_raw_parts_mut(out, len_bytes) }.copy_from_slice(rgba);
        Ok(())
    })
}

/// Warning `index` for the user, for example that a prompt was cut. Counted from 0; NULL after the
/// last one.
///
/// The text belongs to the image and is valid until the image is freed. Any thread.
///
/// # Safety
///
/// `picture` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_picture_warning(
    picture: *const KilnPicture,
    index: u32,
) -> *const c_char {
    // SAFETY: by this function's contract.
    let warnings = unsafe { picture.as_ref() }.map(|picture| &picture.warnings);
    let warning = warnings.and_then(|warnings| warnings.get(index as usize));
    warning.map_or(ptr::null(), |warning| warning.as_ptr())
}

/// Frees an image; NULL is allowed. No thread may use it, or its texts, during or after the call.
///
/// # Safety
///
/// `picture` is NULL or has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_picture_free(picture: *mut KilnPicture) {
    // SAFETY: by this function's contract.
    unsafe { free(picture) }
}
