/* The Kiln runtime for C: makes images with a compiled model on an OpenCL device.
 *
 * Made from runtime/src/ffi by `KILN_WRITE_HEADER=1 cargo test -p kiln-runtime --test header`.
 *
 * Texts are UTF-8 and end with a NUL. `open`, `create`, `list` and `generate` make objects, which
 * the caller owns and ends with `close` or `free`. A call that fails returns a status other than
 * KILN_STATUS_OK, or NULL; kiln_last_error() has the reason. */

#ifndef KILN_H
#define KILN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Version of this interface. A program compiled with another version must not use the library.
#define KILN_ABI_VERSION 5

// Result of a call. `kiln_last_error` has the reason of a failure.
typedef enum KilnStatus {
  // Success.
  KILN_STATUS_OK = 0,
  // The bundle is damaged, or of another version.
  KILN_STATUS_BUNDLE = 1,
  // An argument or a file is invalid.
  KILN_STATUS_INPUT = 2,
  // The device, its driver or its library failed, or is too small for the bundle.
  KILN_STATUS_DEVICE = 3,
  // The bundle needs more memory than the budget.
  KILN_STATUS_BUDGET = 4,
  // Cancelled by `kiln_session_cancel` or by a progress callback.
  KILN_STATUS_CANCELLED = 5,
  // Another thread is making an image with this session.
  KILN_STATUS_BUSY = 6,
  // A fault of this library. Close the objects in use.
  KILN_STATUS_INTERNAL = 7,
} KilnStatus;

// Kind of a device.
typedef enum KilnDeviceType {
  // A graphics processor.
  KILN_DEVICE_TYPE_GPU = 0,
  // The host's own processor.
  KILN_DEVICE_TYPE_CPU = 1,
  // Anything else.
  KILN_DEVICE_TYPE_OTHER = 2,
} KilnDeviceType;

// Stage of a call.
typedef enum KilnStage {
  // Kernels are compiled: `step` of `of` programs are done. Of a session's first picture, also
  // between sampling and decoding.
  KILN_STAGE_LOAD = 0,
  // The prompt is encoded.
  KILN_STAGE_PROMPT = 1,
  // The sampler runs: `step` of `of` steps are done.
  KILN_STAGE_SAMPLE = 2,
  // The image is decoded.
  KILN_STAGE_DECODE = 3,
} KilnStage;

// An open bundle. Several threads may use it at a time.
typedef struct KilnBundle KilnBundle;

// A list of devices, as of the time of the call.
typedef struct KilnDevices KilnDevices;

// A finished image. Several threads may use it at a time. It outlives its session.
typedef struct KilnPicture KilnPicture;

// A bundle that is loaded on a device. Any thread may use it; one at a time makes an image.
typedef struct KilnSession KilnSession;

// Properties and needs of a bundle. The texts belong to the bundle, valid until it is closed.
typedef struct KilnBundleInfo {
  // Name of the model.
  const char *model;
  // Storage of the weights, for example `fp16`.
  const char *precision;
  // Width of an image in pixels.
  uint32_t width;
  // Height of an image in pixels.
  uint32_t height;
  // Number of sizes of images that the bundle was compiled for; `kiln_bundle_size` gives them.
  uint32_t size_count;
  // Number of networks; `kiln_bundle_network` gives their names.
  uint32_t network_count;
  // Number of OpenCL extensions that the device must have; `kiln_bundle_extension` gives their
  // names.
  uint32_t extension_count;
  // Planned peak of the whole process.
  uint64_t peak_bytes;
  // Budget that the bundle was compiled for.
  uint64_t budget_bytes;
  // Bytes allocated on the device, a part of the peak.
  uint64_t device_bytes;
  // Largest single allocation that the device must allow.
  uint64_t max_alloc_bytes;
  // Local memory that the device must have.
  uint64_t local_mem_bytes;
  // Largest work-group that the device must allow.
  uint64_t work_group_size;
} KilnBundleInfo;

// A device. The texts belong to the list and are valid until the list is freed.
typedef struct KilnDevice {
  // Name of the device. A session takes this name, a part of it, or the index in the list.
  const char *name;
  // Name of the platform, which is the driver.
  const char *platform;
  // Version of the driver.
  const char *driver;
  // Kind of the device.
  enum KilnDeviceType device_type;
  // Number of compute units.
  uint32_t compute_units;
  // Device memory.
  uint64_t global_mem_bytes;
  // Largest single allocation.
  uint64_t max_alloc_bytes;
  // Local memory of a work-group.
  uint64_t local_mem_bytes;
  // Largest work-group.
  uint64_t max_work_group_size;
} KilnDevice;

// An image from which generation begins.
typedef struct KilnImage {
  // Red, green, blue and an ignored byte for each pixel, row by row from the top, without gaps:
  // `width * height * 4` bytes.
  const uint8_t *rgba;
  // Width in pixels. The image is scaled and cut to the model's size.
  uint32_t width;
  // Height in pixels.
  uint32_t height;
  // Share of the steps that run, over 0 to 1. Small values keep the initial image, 1 keeps next
  // to nothing of it.
  double strength;
} KilnImage;

// A request for an image. Fill it with `kiln_request_init` first.
typedef struct KilnRequest {
  // The prompt, UTF-8, at most 65536 bytes. NULL is the empty prompt.
  const char *prompt;
  // The negative prompt, UTF-8, at most 65536 bytes. NULL is the empty prompt.
  const char *negative_prompt;
  // Seed of the noise. On one device, equal requests give equal images.
  uint64_t seed;
  // Number of steps of the sampler; 0 is the model's default.
  uint32_t steps;
  // Scale of guidance, -1000 to 1000; 1 turns it off. NaN is the model's default.
  float guidance;
  // Name of the sampler; NULL is the model's default.
  const char *sampler;
  // Spacing of the sampler's timesteps: `leading`, `trailing`, `linspace` or `karras`; NULL is the
  // model's default.
  const char *spacing;
  // Share, 0 to 1, by which the standard deviation of the guided output is brought back to that
  // of the output for the prompt.
  float guidance_rescale;
  // Noise that each step of `ddim` or `tcd` adds, 0 to 1; NaN is the sampler's default.
  float eta;
  // Whether progress has previews: of the tiny decoder if the bundle has one, else coarse.
  bool preview;
  // Initial image, for a bundle with an image encoder; NULL is none.
  const struct KilnImage *initial_image;
  // `full` or `tiny`: the decoder. NULL is the full one if the bundle has it, else the tiny one.
  const char *decoder;
  // Whether brackets in the prompts are text. Otherwise they weigh words, as in `(word:1.3)`.
  bool plain_prompt;
  // The part of the initial image to repaint, a byte for each of its pixels: 255 is repainted, 0
  // is kept, values between mix the two. NULL repaints all. A strength of 1 suits most masks.
  const uint8_t *mask;
  // Preset of steps that cost less and change the image, 0 to 3, for a bundle compiled with
  // `--fast`; 0 has none.
  uint32_t fast;
  // Share of the steps after which guidance begins, 0 to 1; NaN is the preset's.
  float guidance_start;
  // Share of the steps after which guidance ends, from `guidance_start` to 1; NaN is the
  // preset's.
  float guidance_stop;
  // One step in so many computes the inner levels of the U-Net; 0 is the preset's.
  uint32_t cache_interval;
  // Noise of variance 1 in place of the seed's, `[channels, height, width]` of the latent; NULL
  // is none.
  const float *initial_latent;
  // Number of values at `initial_latent`.
  size_t latent_elems;
} KilnRequest;

// Progress of a call. Valid until the callback returns, with the preview.
typedef struct KilnProgress {
  // The stage.
  enum KilnStage stage;
  // Number of steps done.
  uint32_t step;
  // Number of steps in all; 0 if the stage has none.
  uint32_t of;
  // Seconds of the last step.
  double seconds;
  // Predicted seconds of the remaining steps.
  double seconds_left;
  // Timestep of the last step.
  float timestep;
  // Preview as red, green, blue, row by row; NULL if there is none.
  const uint8_t *preview_rgb;
  // Width of the preview in pixels.
  uint32_t preview_width;
  // Height of the preview in pixels.
  uint32_t preview_height;
} KilnProgress;

// Receives progress and the caller's context. Returns whether to go on.
//
// Called on the thread that called the library. It must return: no exception, no `longjmp`.
typedef bool (*KilnProgressFn)(void *context, const struct KilnProgress *progress);

// Options of a session. Fill them with `kiln_session_options_init` first.
typedef struct KilnSessionOptions {
  // `auto`, an index in the list of devices, or a part of a name. NULL is `auto`.
  const char *device;
  // A folder of the caller for compiled kernels, so that the next session starts sooner. It may
  // be emptied at any time. One that other users can write is refused with `KILN_STATUS_INPUT`.
  // NULL keeps none.
  const char *cache_folder;
  // Largest planned peak of the bundle; 0 accepts any.
  uint64_t budget_bytes;
  // Public key, 64 hexadecimal digits. A bundle that it has not signed is refused with
  // `KILN_STATUS_BUNDLE` before a kernel is compiled. NULL accepts any bundle: only for those
  // that the caller has made.
  const char *trust_key;
  // Width of the images in pixels, for a bundle with several sizes; 0 is that of its first.
  uint32_t width;
  // Height of the images in pixels; 0 is that of the bundle's first size.
  uint32_t height;
  // Whether the system's page cache keeps weights, in memory outside the budget.
  bool page_cache;
} KilnSessionOptions;

// Memory, planned and measured.
typedef struct KilnMemory {
  // Planned peak of the whole process.
  uint64_t peak_bytes;
  // Budget: the smaller of the session's and the bundle's.
  uint64_t budget_bytes;
  // Current allocations on the device.
  uint64_t device_bytes;
  // Current memory of the process; 0 if the system does not report it.
  uint64_t process_bytes;
  // Peak memory of the process; 0 if the system does not report it.
  uint64_t process_peak_bytes;
} KilnMemory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the library's interface, to be compared with `KILN_ABI_VERSION`.
//
// Any thread, any time.
uint32_t kiln_abi_version(void);

// Reason of the last failed call on this thread: one line of UTF-8, empty if no call has failed.
//
// The text belongs to the library. It is valid on this thread until the next failure.
const char *kiln_last_error(void);

// Sets the OpenCL library to use instead of a search.
//
// `path` is a file or a name that the linker knows. Without this call, the library is that of the
// environment variable OPENCL_DYLIB_PATH, else the first one found in the usual places.
// Call it before devices are listed or sessions created, and before other threads use the
// environment: the choice is made once in a process, and is kept in this variable.
// Fails with `KILN_STATUS_INPUT` if another library is in use.
//
// # Safety
//
// `path` ends with a NUL.
enum KilnStatus kiln_use_opencl(const char *path);

// Opens a bundle and checks all of it except the weights, which are checked when they are read.
//
// On success the caller owns `*out` and closes it with `kiln_bundle_close`; else it is NULL.
// Any thread. Fails with `KILN_STATUS_BUNDLE` or `KILN_STATUS_INPUT`.
//
// # Safety
//
// `path` ends with a NUL; `out` is writable.
enum KilnStatus kiln_bundle_open(const char *path, struct KilnBundle **out);

// Like `kiln_bundle_open`, for a bundle that is a part of an open file: `len_bytes` from
// `offset_bytes` on. An Android asset that is stored without compression gives these three values.
//
// The caller keeps the descriptor and may close it at once: the library has a duplicate until
// bundle and sessions are closed. The file position is neither used nor changed.
//
// # Safety
//
// `out` is writable.
enum KilnStatus kiln_bundle_open_fd(int32_t fd,
                                    uint64_t offset_bytes,
                                    uint64_t len_bytes,
                                    struct KilnBundle **out);

// Closes a bundle; NULL is allowed. Sessions made from it remain open.
//
// No thread may use the bundle, or a text from it, during or after the call.
//
// # Safety
//
// `bundle` is NULL or open.
void kiln_bundle_close(struct KilnBundle *bundle);

// Writes the properties and needs of a bundle to `*out`. Any thread.
//
// # Safety
//
// `bundle` is open; `out` is writable.
enum KilnStatus kiln_bundle_info(const struct KilnBundle *bundle, struct KilnBundleInfo *out);

// Writes width and height in pixels of the images of a size, with an index below `size_count`.
// The first is that of a session without a size. Any thread. Fails with `KILN_STATUS_INPUT`.
//
// # Safety
//
// `bundle` is open; `width` and `height` are writable.
enum KilnStatus kiln_bundle_size(const struct KilnBundle *bundle,
                                 uint32_t index,
                                 uint32_t *width,
                                 uint32_t *height);

// Name of the network with an index below `network_count`; NULL if there is none.
//
// The text belongs to the bundle and is valid until it is closed. Any thread.
//
// # Safety
//
// `bundle` is NULL or open.
const char *kiln_bundle_network(const struct KilnBundle *bundle, uint32_t index);

// Name of a required OpenCL extension with an index below `extension_count`; NULL if there is
// none.
//
// The text belongs to the bundle and is valid until it is closed. Any thread.
//
// # Safety
//
// `bundle` is NULL or open.
const char *kiln_bundle_extension(const struct KilnBundle *bundle, uint32_t index);

// Lists the devices of all drivers.
//
// The call opens all drivers. Each takes memory of the process that it never releases.
// On success the caller owns `*out` and frees it with `kiln_devices_free`; else it is NULL.
// Any thread. Fails with `KILN_STATUS_DEVICE`; the error names the libraries that were tried.
//
// # Safety
//
// `out` is writable.
enum KilnStatus kiln_devices_list(struct KilnDevices **out);

// Number of devices in a list; 0 if it is NULL. Any thread.
//
// # Safety
//
// `devices` is NULL or a list that has not been freed.
uint32_t kiln_devices_count(const struct KilnDevices *devices);

// Describes the device with an index. Any thread. Fails with `KILN_STATUS_INPUT` if there is none.
//
// # Safety
//
// `devices` is a list that has not been freed; `out` is writable.
enum KilnStatus kiln_devices_get(const struct KilnDevices *devices,
                                 uint32_t index,
                                 struct KilnDevice *out);

// Frees a list; NULL is allowed. No thread may use it, or its texts, during or after the call.
//
// # Safety
//
// `devices` is NULL or a list that has not been freed.
void kiln_devices_free(struct KilnDevices *devices);

// Fills a request with the defaults: no text, seed 0, and the model's sampler, steps and guidance.
//
// # Safety
//
// `request` is writable or NULL.
void kiln_request_init(struct KilnRequest *request);

// Makes an image. Returns when it is done, has failed or was cancelled.
//
// `progress` is called on this thread and may be NULL. The library keeps nothing of `request`.
// On success the caller owns `*out` and frees it with `kiln_picture_free`; else it is NULL.
// Any thread, one at a time: while another thread makes an image with this session, the call fails
// with `KILN_STATUS_BUSY`. It also fails with `KILN_STATUS_INPUT` if the request is invalid,
// `KILN_STATUS_BUNDLE` if weights are damaged or numbers leave the finite range,
// `KILN_STATUS_DEVICE`, or `KILN_STATUS_CANCELLED`.
// The session can be used after a failure, except after `KILN_STATUS_INTERNAL`.
//
// # Safety
//
// `session` is open; `request` is valid, its texts end with a NUL, its initial image and its mask
// have as many pixels as the image's size says, and its latent has `latent_elems` values; `out` is
// writable; `progress` may be called with `context`.
enum KilnStatus kiln_session_generate(const struct KilnSession *session,
                                      const struct KilnRequest *request,
                                      KilnProgressFn progress,
                                      void *context,
                                      struct KilnPicture **out);

// Width of an image in pixels; 0 if it is NULL. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
uint32_t kiln_picture_width(const struct KilnPicture *picture);

// Height of an image in pixels; 0 if it is NULL. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
uint32_t kiln_picture_height(const struct KilnPicture *picture);

// Copies the pixels as red, green, blue and 255, row by row from the top, without gaps.
//
// `len_bytes` must be `width * height * 4`. Any thread. Fails with `KILN_STATUS_INPUT`.
//
// # Safety
//
// `picture` has not been freed; `len_bytes` bytes at `out` are writable.
enum KilnStatus kiln_picture_rgba(const struct KilnPicture *picture,
                                  uint8_t *out,
                                  size_t len_bytes);

// Warning `index` for the user, for example that a prompt was cut. Counted from 0; NULL after the
// last one.
//
// The text belongs to the image and is valid until the image is freed. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
const char *kiln_picture_warning(const struct KilnPicture *picture, uint32_t index);

// Frees an image; NULL is allowed. No thread may use it, or its texts, during or after the call.
//
// # Safety
//
// `picture` is NULL or has not been freed.
void kiln_picture_free(struct KilnPicture *picture);

// Fills options with the defaults: device `auto`, no cache folder, the bundle's budget, any bundle.
//
// # Safety
//
// `options` is writable or NULL.
void kiln_session_options_init(struct KilnSessionOptions *options);

// Loads a bundle on a device: builds its kernels and allocates all its device memory.
//
// The first time on a device, the driver compiles the kernels, which may take minutes. `progress`
// is called on this thread (`KILN_STAGE_LOAD`) and may be NULL; its result is ignored here. The
// bundle may be closed afterwards. The library keeps nothing of `options`. On success the caller
// owns `*out` and closes it with `kiln_session_close`; else it is NULL. Any thread. Fails with any
// status except `KILN_STATUS_CANCELLED` and `KILN_STATUS_BUSY`.
//
// # Safety
//
// `bundle` is open; `options` is NULL or valid, and its texts end with a NUL; `out` is writable;
// `progress` may be called with `context` and throws no exception.
enum KilnStatus kiln_session_create(const struct KilnBundle *bundle,
                                    const struct KilnSessionOptions *options,
                                    KilnProgressFn progress,
                                    void *context,
                                    struct KilnSession **out);

// Closes a session and frees its memory; NULL is allowed. Images remain.
//
// No thread may use the session during or after the call: cancel first, and wait for the thread
// that makes an image.
//
// # Safety
//
// `session` is NULL or open.
void kiln_session_close(struct KilnSession *session);

// Cancels the current image: `kiln_session_generate` soon returns `KILN_STATUS_CANCELLED` on its
// thread. Does nothing if no image is made.
//
// Any thread, also in a progress callback. Returns at once.
//
// # Safety
//
// `session` is open.
enum KilnStatus kiln_session_cancel(const struct KilnSession *session);

// Switches on a LoRA that `kiln lora` made for the session's bundle, in place of another one, for
// later images. `strength` is the factor of its change. A NULL `path` switches it off.
//
// Any thread. Fails with `KILN_STATUS_BUSY` while an image is made, and with `KILN_STATUS_INPUT` if
// the file cannot be read, or is for another bundle.
//
// # Safety
//
// `session` is open; `path` is NULL or ends with a NUL.
enum KilnStatus kiln_session_set_lora(const struct KilnSession *session,
                                      const char *path,
                                      float strength);

// Releases device memory, host buffers and free pages of the heap. Compiled kernels stay. Call it
// in Android's `onTrimMemory`.
//
// The next image allocates the same memory and reads its weights from the bundle. Its pixels do
// not change. While an image is made, the memory is released at its end; to release it sooner,
// cancel as well. Any thread. Fails with `KILN_STATUS_DEVICE`.
//
// # Safety
//
// `session` is open.
enum KilnStatus kiln_session_trim(const struct KilnSession *session);

// Writes the memory of the session and its process to `*out`. Any thread, also while an image is
// made.
//
// # Safety
//
// `session` is open; `out` is writable.
enum KilnStatus kiln_session_memory(const struct KilnSession *session, struct KilnMemory *out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KILN_H */
