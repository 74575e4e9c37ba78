//! Generation for C: requests and progress.

use std::ffi::{c_char, c_void};
use std::ops::ControlFlow;
use std::ptr;
use std::slice;

use kiln_bundle::plan::Size;

use super::picture::KilnPicture;
use super::session::KilnSession;
use super::{Failure, KilnStatus, create, give, given, guard, text};
use crate::pipeline::fast::GuidanceInterval;
use crate::pipeline::png::RgbImage;
use crate::pipeline::preview::Projection;
use crate::pipeline::resize::Cover;
use crate::session::{Init, Progress, Request};

/// A request for an image. Fill it with `kiln_request_init` first.
#[repr(C)]
pub struct KilnRequest {
    /// The prompt, UTF-8, at most 65536 bytes. NULL is the empty prompt.
    pub prompt: *const c_char,
    /// The negative prompt, UTF-8, at most 65536 bytes. NULL is the empty prompt.
    pub negative_prompt: *const c_char,
    /// Seed of the noise. On one device, equal requests give equal images.
    pub seed: u64,
    /// Number of steps of the sampler; 0 is the model's default.
    pub steps: u32,
    /// Scale of guidance, -1000 to 1000; 1 turns it off. NaN is the model's default.
    pub guidance: f32,
    /// Name of the sampler; NULL is the model's default.
    pub sampler: *const c_char,
    /// Spacing of the sampler's timesteps: `leading`, `trailing`, `linspace` or `karras`; NULL is the
    /// model's default.
    pub spacing: *const c_char,
    /// Share, 0 to 1, by which the standard deviation of the guided output is brought back to that
    /// of the output for the prompt.
    pub guidance_rescale: f32,
    /// Noise that each step of `ddim` or `tcd` adds, 0 to 1; NaN is the sampler's default.
    pub eta: f32,
    /// Whether progress has previews: of the tiny decoder if the bundle has one, else coarse.
    pub preview: bool,
    /// Initial image, for a bundle with an image encoder; NULL is none.
    pub initial_image: *const KilnImage,
    /// `full` or `tiny`: the decoder. NULL is the full one if the bundle has it, else the tiny one.
    pub decoder: *const c_char,
    /// Whether brackets in the prompts are text. Otherwise they weigh words, as in `(word:1.3)`.
    pub plain_prompt: bool,
    /// The part of the initial image to repaint, a byte for each of its pixels: 255 is repainted, 0
    /// is kept, values between mix the two. NULL repaints all. A strength of 1 suits most masks.
    pub mask: *const u8,
    /// Preset of steps that cost less and change the image, 0 to 3, for a bundle compiled with
    /// `--fast`; 0 has none.
    pub fast: u32,
    /// Share of the steps after which guidance begins, 0 to 1; NaN is the preset's.
    pub guidance_start: f32,
    /// Share of the steps after which guidance ends, from `guidance_start` to 1; NaN is the
    /// preset's.
    pub guidance_stop: f32,
    /// One step in so many computes the inner levels of the U-Net; 0 is the preset's.
    pub cache_interval: u32,
    /// Noise of variance 1 in place of the seed's, `[channels, height, width]` of the latent; NULL
    /// is none.
    pub initial_latent: *const f32,
    /// Number of values at `initial_latent`.
    pub latent_elems: usize,
}

/// An image from which generation begins.
#[repr(C)]
pub struct KilnImage {
    /// Red, green, blue and an ignored byte for each pixel, row by row from the top, without gaps:
    /// `width * height * 4` bytes.
    pub rgba: *const u8,
    /// Width in pixels. The image is scaled and cut to the model's size.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Share of the steps that run, over 0 to 1. Small values keep the initial image, 1 keeps next
    /// to nothing of it.
    pub strength: f64,
}

/// Stage of a call.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KilnStage {
    /// Kernels are compiled: `step` of `of` programs are done. Of a session's first picture, also
    /// between sampling and decoding.
    Load = 0,
    /// The prompt is encoded.
    Prompt = 1,
    /// The sampler runs: `step` of `of` steps are done.
    Sample = 2,
    /// The image is decoded.
    Decode = 3,
}

/// Progress of a call. Valid until the callback returns, with the preview.
#[repr(C)]
pub struct KilnProgress {
    /// The stage.
    pub stage: KilnStage,
    /// Number of steps done.
    pub step: u32,
    /// Number of steps in all; 0 if the stage has none.
    pub of: u32,
    /// Seconds of the last step.
    pub seconds: f64,
    /// Predicted seconds of the remaining steps.
    pub seconds_left: f64,
    /// Timestep of the last step.
    pub timestep: f32,
    /// Preview as red, green, blue, row by row; NULL if there is none.
    pub preview_rgb: *const u8,
    /// Width of the preview in pixels.
    pub preview_width: u32,
    /// Height of the preview in pixels.
    pub preview_height: u32,
}

impl KilnProgress {
    pub(super) fn new(stage: KilnStage, step: usize, of: usize) -> KilnProgress {
        KilnProgress {
            stage,
            step: step as u32,
            of: of as u32,
            seconds: 0.0,
            seconds_left: 0.0,
            timestep: 0.0,
            preview_rgb: ptr::null(),
            preview_width: 0,
            preview_height: 0,
        }
    }
}

/// Receives progress and the caller's context. Returns whether to go on.
///
/// Called on the thread that called the library. It must return: no exception, no `longjmp`.
pub type KilnProgressFn =
    Option<unsafe extern "C" fn(context: *mut c_void, progress: *const KilnProgress) -> bool>;

/// Fills a request with the defaults: no text, seed 0, and the model's sampler, steps and guidance.
///
/// # Safety
///
/// `request` is writable or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_request_init(request: *mut KilnRequest) {
    guard(|| {
        let own = KilnRequest {
            prompt: ptr::null(),
            negative_prompt: ptr::null(),
            seed: 0,
            steps: 0,
            guidance: f32::NAN,
            sampler: ptr::null(),
            spacing: ptr::null(),
            guidance_rescale: 0.0,
            eta: f32::NAN,
            preview: false,
            initial_image: ptr::null(),
            decoder: ptr::null(),
            plain_prompt: false,
            mask: ptr::null(),
            fast: 0,
            guidance_start: f32::NAN,
            guidance_stop: f32::NAN,
            cache_interval: 0,
            initial_latent: ptr::null(),
            latent_elems: 0,
        };
        // SAFETY: by this function's contract.
        unsafe { give(request, "the request", own) }
    });
}

/// Makes an image. Returns when it is done, has failed or was cancelled.
///
/// `progress` is called on this thread and may be NULL. The library keeps nothing of `request`.
/// On success the caller owns `*out` and frees it with `kiln_picture_free`; else it is NULL.
/// Any thread, one at a time: while another thread makes an image with this session, the call fails
/// with `KILN_STATUS_BUSY`. It also fails with `KILN_STATUS_INPUT` if the request is invalid,
/// `KILN_STATUS_BUNDLE` if weights are damaged or numbers leave the finite range,
/// `KILN_STATUS_DEVICE`, or `KILN_STATUS_CANCELLED`.
/// The session can be used after a failure, except after `KILN_STATUS_INTERNAL`.
///
/// # Safety
///
/// `session` is open; `request` is valid, its texts end with a NUL, its initial image and its mask
/// have as many pixels as the image's size says, and its latent has `latent_elems` values; `out` is
/// writable; `progress` may be called with `context`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kiln_session_generate(
    session: *const KilnSession,
    request: *const KilnRequest,
    progress: KilnProgressFn,
    context: *mut c_void,
    out: *mut *mut KilnPicture,
) -> KilnStatus {
    let make = || {
        // SAFETY: by this function's contract.
        let (handle, asked) =
            unsafe { (given(session, "the session")?, given(request, "the request")?) };
        let mut session = handle.try_lock()?;
        // SAFETY: by this function's contract.
        let request = unsafe { own_request(asked, session.plan().manifest.image)? };
        let projection = asked.preview.then(|| {
            let manifest = &session.plan().manifest;
            (Projection::of_model(&manifest.model), (manifest.latent, manifest.image))
        });
        let (mut steps, mut colours) = (0, None);
        let mut observe = |news: Progress<'_>| {
            let Some(progress) = progress else { return ControlFlow::Continue(()) };
            let told = tell(news, &mut steps, projection, &mut colours);
            // SAFETY: by this function's contract; `told` and `colours` outlive the call.
            match unsafe { progress(context, &told) } {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        handle.allocating();
        let picture = session.generate(&request, &mut observe);
        drop(session);
        let trimmed = handle.trim_if_asked();
        let picture = picture?;
        trimmed?;
        Ok(KilnPicture::new(&picture))
    };
    // SAFETY: by this function's contract.
    guard(|| unsafe { create(out, make) })
}

/// The request, with its initial image at the model's size.
///
/// # Safety
///
/// The texts are NULL or end with a NUL; image, mask and latent are NULL or valid.
unsafe fn own_request(asked: &KilnRequest, size: Size) -> Result<Request<'static>, Failure> {
    // SAFETY: by this function's contract.
    let init = unsafe { asked.initial_image.as_ref() };
    // SAFETY: by this function's contract.
    let init = init.map(|image| unsafe { own_image(image, asked.mask, size) }).transpose()?;
    if init.is_none() && !asked.mask.is_null() {
        return Err(Failure::input("the mask has no initial image"));
    }
    let initial_latent = (!asked.initial_latent.is_null()).then(|| {
        // SAFETY: by this function's contract.
        unsafe { slice::from_raw_parts(asked.initial_latent, asked.latent_elems) }.to_vec()
    });
    let mut request = Request {
        init,
        seed: asked.seed,
        steps: (asked.steps > 0).then_some(asked.steps as usize),
        guidance: (!asked.guidance.is_nan()).then_some(asked.guidance),
        guidance_rescale: asked.guidance_rescale,
        eta: (!asked.eta.is_nan()).then_some(asked.eta),
        preview_every: usize::from(asked.preview),
        plain_prompt: asked.plain_prompt,
        fast: asked.fast as usize,
        guidance_interval: interval(asked)?,
        cache_interval: (asked.cache_interval > 0).then_some(asked.cache_interval as usize),
        initial_latent,
        ..Request::default()
    };
    // SAFETY: by this function's contract.
    let texts = unsafe {
        request.sampler = text(asked.sampler, "the sampler")?.map(str::to_owned);
        request.spacing = text(asked.spacing, "the spacing")?.map(str::to_owned);
        [
            (&mut request.prompt, text(asked.prompt, "the prompt")?),
            (&mut request.negative_prompt, text(asked.negative_prompt, "the negative prompt")?),
        ]
    };
    for (own, given) in texts {
        if let Some(given) = given {
            given.clone_into(own);
        }
    }
    // SAFETY: by this function's contract.
    let decoder = unsafe { text(asked.decoder, "the decoder")? };
    request.decoder = decoder.map(|name| name.parse().map_err(Failure::input)).transpose()?;
    Ok(request)
}

/// The steps with guidance; none if both shares are the preset's. One alone is from the first step,
/// or to the last.
fn interval(asked: &KilnRequest) -> Result<Option<GuidanceInterval>, Failure> {
    let (start, stop) = (asked.guidance_start, asked.guidance_stop);
    if start.is_nan() && stop.is_nan() {
        return Ok(None);
    }
    let or = |share: f32, all: f32| if share.is_nan() { all } else { share };
    let interval = format!("{}:{}", or(start, 0.0), or(stop, 1.0));
    interval
        .parse()
        .map(Some)
        .map_err(|what| Failure::input(format!("guidance {interval}: {what}")))
}

/// The image and its mask, scaled row by row: the library has no copy of the caller's pixels.
///
/// # Safety
///
/// Pixels and mask are NULL or as many as the image's size says.
unsafe fn own_image(image: &KilnImage, mask: *const u8, size: Size) -> Result<Init, Failure> {
    let from = (image.width, image.height);
    // SAFETY: by this function's contract.
    let (rgba, mask) = unsafe { (pixels::<4>(image.rgba, from)?, pixels::<1>(mask, from)?) };
    let Some(rgba) = rgba else {
        return Err(Failure::null("the address of the initial image's pixels"));
    };
    let mask = mask.map(|mask| scaled(mask, from, size, |&[share]| [share; 3])).transpose()?;
    let image_of = scaled(rgba, from, size, |&[r, g, b, _]| [r, g, b])?;
    Ok(Init { image: image_of, strength: image.strength, mask })
}

/// The pixels of a picture of some size, `BYTES` each; `None` if the address is NULL.
///
/// # Safety
///
/// The address is NULL or has as many pixels as the size says.
unsafe fn pixels<'a, const BYTES: usize>(
    address: *const u8,
    (width, height): (u32, u32),
) -> Result<Option<&'a [[u8; BYTES]]>, Failure> {
    let len_bytes = u128::from(width) * u128::from(height) * BYTES as u128;
    let len_bytes = isize::try_from(len_bytes).ok().filter(|len_bytes| *len_bytes > 0);
    let Some(len_bytes) = len_bytes else {
        return Err(Failure::input(format!("the initial image has {width} x {height} pixels")));
    };
    if address.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract; the length is one that a slice may have.
    let bytes = unsafe { slice::from_raw_parts(address, len_bytes as usize) };
    Ok(Some(bytes.as_chunks().0))
}

/// The picture of pixels at the model's size.
fn scaled<const BYTES: usize>(
    pixels: &[[u8; BYTES]],
    (width, height): (u32, u32),
    size: Size,
    colour: impl Fn(&[u8; BYTES]) -> [u8; 3],
) -> Result<RgbImage, Failure> {
    let failed = |error| Failure::input(format!("the initial image: {error}"));
    let mut cover = Cover::new((width, height), (size.width_px, size.height_px)).map_err(failed)?;
    let mut rgb = Vec::with_capacity(width as usize * 3);
    for (y, row) in pixels.chunks_exact(width as usize).enumerate() {
        rgb.clear();
        rgb.extend(row.iter().flat_map(&colour));
        cover.add(y, (0, 1), &rgb);
    }
    cover.finish().map_err(failed)
}

/// Translates progress. `steps` keeps the number of all steps. `projection` makes previews of
/// latents and images of these sides. `colours` holds the preview to which the result points.
fn tell(
    news: Progress<'_>,
    steps: &mut usize,
    projection: Option<(&Projection, (Size, Size))>,
    colours: &mut Option<RgbImage>,
) -> KilnProgress {
    match news {
        Progress::Prompt => KilnProgress::new(KilnStage::Prompt, 0, 0),
        Progress::Kernels { done, count } => KilnProgress::new(KilnStage::Load, done, count),
        Progress::Decode => KilnProgress::new(KilnStage::Decode, *steps, *steps),
        Progress::Step {
            done,
            steps: of,
            seconds,
            seconds_left,
            timestep,
            picture,
            decoded,
            ..
        } => {
            *steps = of;
            let mut told = KilnProgress::new(KilnStage::Sample, done, of);
            (told.seconds, told.seconds_left) = (seconds, seconds_left);
            told.timestep = timestep;
            // Without a preview if it cannot be made.
            let shown = |(p, sizes): (&Projection, _)| p.preview(picture, decoded, sizes).ok();
            *colours = projection.and_then(shown);
            if let Some(image) = colours {
                told.preview_rgb = image.pixels().as_ptr();
                (told.preview_width, told.preview_height) = (image.width(), image.height());
            }
            told
        }
    }
}
