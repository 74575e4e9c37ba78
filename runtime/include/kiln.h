/* The Kiln runtime for C: a compiled model becomes a picture on an OpenCL device.
 *
 * Made from runtime/src/ffi by `KILN_WRITE_HEADER=1 cargo test -p kiln-runtime --test header`.
 *
 * Texts are UTF-8 and end with a NUL. Objects are made by `open`, `create`, `list` and
 * `generate`, belong to the caller and go by `close` and `free`. A call that fails returns a
 * status other than KILN_STATUS_OK, or NULL, and kiln_last_error() says why. */

#ifndef KILN_H
#define KILN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// Version of this interface. A program that was compiled with another one must not use it.
#define KILN_ABI_VERSION 1

// How a call ended. `kiln_last_error` says more.
typedef enum KilnStatus {
  // Done.
  KILN_STATUS_OK = 0,
  // The bundle is damaged, or of another version.
  KILN_STATUS_BUNDLE = 1,
  // An argument or a file is not what it should be.
  KILN_STATUS_INPUT = 2,
  // The device, its driver or its library failed, or is too small for the bundle.
  KILN_STATUS_DEVICE = 3,
  // The bundle takes more memory than the budget.
  KILN_STATUS_BUDGET = 4,
  // Cancelled, by `kiln_session_cancel` or the answer of a progress callback.
  KILN_STATUS_CANCELLED = 5,
  // Another thread is making a picture with this session.
  KILN_STATUS_BUSY = 6,
  // A fault of this library. Close what was in use.
  KILN_STATUS_INTERNAL = 7,
} KilnStatus;

// What a device is made for.
typedef enum KilnDeviceType {
  // A graphics processor.
  KILN_DEVICE_TYPE_GPU = 0,
  // The host's own processor.
  KILN_DEVICE_TYPE_CPU = 1,
  // Anything else.
  KILN_DEVICE_TYPE_OTHER = 2,
} KilnDeviceType;

// What is being done.
typedef enum KilnStage {
  // Kernels are being built: `step` of `of` are.
  KILN_STAGE_LOAD = 0,
  // The prompt is being encoded.
  KILN_STAGE_PROMPT = 1,
  // The sampler is at work: `step` of `of` steps are done.
  KILN_STAGE_SAMPLE = 2,
  // The picture is being decoded.
  KILN_STAGE_DECODE = 3,
} KilnStage;

// An open bundle. Any thread may use it, several at a time.
typedef struct KilnBundle KilnBundle;

// The devices that were there when they were listed.
typedef struct KilnDevices KilnDevices;

// A finished picture. Any thread may use it, several at a time. It needs no session.
typedef struct KilnPicture KilnPicture;

// A bundle that is loaded on a device. Any thread may use it; one at a time makes a picture.
typedef struct KilnSession KilnSession;

// What a bundle is and needs. Its texts belong to the bundle and are valid until it is closed.
typedef struct KilnBundleInfo {
  // Name of the model.
  const char *model;
  // Storage of its weights, for example `fp16`.
  const char *precision;
  // Width of a picture in pixels.
  uint32_t width;
  // Height of a picture in pixels.
  uint32_t height;
  // Networks; `kiln_bundle_network` names them.
  uint32_t network_count;
  // OpenCL extensions that the device must have; `kiln_bundle_extension` names them.
  uint32_t extension_count;
  // The most memory that the whole process takes, as planned.
  uint64_t peak_bytes;
  // The memory that the bundle was compiled for.
  uint64_t budget_bytes;
  // Of the peak, what is allocated on the device.
  uint64_t device_bytes;
  // The device must allow single allocations of this size.
  uint64_t max_alloc_bytes;
  // The device must have this much local memory.
  uint64_t local_mem_bytes;
  // The device must allow work-groups of this size.
  uint64_t work_group_size;
} KilnBundleInfo;

// A device. Its texts belong to the list and are valid until that is freed.
typedef struct KilnDevice {
  // Name of the device. A session takes it, a part of it, or its index in the list.
  const char *name;
  // Name of the platform, which is the driver.
  const char *platform;
  // Version of the driver.
  const char *driver;
  // What it is made for.
  enum KilnDeviceType device_type;
  // Compute units.
  uint32_t compute_units;
  // Memory.
  uint64_t global_mem_bytes;
  // Largest single allocation.
  uint64_t max_alloc_bytes;
  // Local memory of a work-group.
  uint64_t local_mem_bytes;
  // Largest work-group.
  uint64_t max_work_group_size;
} KilnDevice;

// A picture that another is made from.
typedef struct KilnImage {
  // Red, green, blue and a byte that does not count, row by row from the top, without gaps:
  // `width * height * 4` bytes.
  const uint8_t *rgba;
  // Width in pixels. The picture is scaled and cut to the model's size.
  uint32_t width;
  // Height in pixels.
  uint32_t height;
  // How much is made anew: over 0, which keeps the picture, to 1, which keeps next to nothing.
  // That share of the steps runs.
  double strength;
} KilnImage;

// What is asked for. Fill it with `kiln_request_init` first.
typedef struct KilnRequest {
  // What the picture shows, UTF-8. NULL is nothing.
  const char *prompt;
  // What it does not, UTF-8. NULL is nothing.
  const char *negative_prompt;
  // Seed of the noise: on one device the same request makes the same picture.
  uint64_t seed;
  // Steps of the sampler.
  uint32_t steps;
  // Scale of classifier-free guidance; 1 turns it off.
  float guidance;
  // Name of the sampler. NULL is the first, `ddim`.
  const char *sampler;
  // Noise that each step adds, 0 to 1.
  float eta;
  // Whether progress comes with a preview.
  bool preview;
  // A picture to begin with, for a bundle that has an encoder; NULL is none.
  const struct KilnImage *initial_image;
} KilnRequest;

// How far it is. Valid, with what it points to, until the callback returns.
typedef struct KilnProgress {
  // What is being done.
  enum KilnStage stage;
  // How much of it is.
  uint32_t step;
  // Of how much; 0 where there is nothing to count.
  uint32_t of;
  // How long the step took that was done last.
  double seconds;
  // A rough picture as red, green, blue, row by row; NULL if there is none.
  const uint8_t *preview_rgb;
  // Its width in pixels.
  uint32_t preview_width;
  // Its height in pixels.
  uint32_t preview_height;
} KilnProgress;

// Hears how far it is, with the context that was given; answers whether to go on.
//
// Called on the thread that called the library. It must return: no exception, no `longjmp`.
typedef bool (*KilnProgressFn)(void *context, const struct KilnProgress *progress);

// How a session is made. Fill it with `kiln_session_options_init` first.
typedef struct KilnSessionOptions {
  // `auto`, an index in the list of devices, or a part of a name. NULL is `auto`.
  const char *device;
  // A folder of the caller's, in which compiled kernels may be kept so that the next session
  // starts sooner. It may be emptied at any time. NULL keeps none there.
  const char *cache_folder;
  // The most memory that the bundle may plan to take; 0 leaves that to the bundle.
  uint64_t budget_bytes;
} KilnSessionOptions;

// Memory, planned and measured.
typedef struct KilnMemory {
  // The most that the whole process takes, as planned.
  uint64_t peak_bytes;
  // What is allowed: the smaller of the session's budget and the bundle's.
  uint64_t budget_bytes;
  // What is allocated on the device now.
  uint64_t device_bytes;
  // What the process takes now; 0 if the system does not tell.
  uint64_t process_bytes;
  // The most that the process ever took; 0 if the system does not tell.
  uint64_t process_peak_bytes;
} KilnMemory;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Version of the interface that the library has: compare it with `KILN_ABI_VERSION`.
//
// Any thread, any time.
uint32_t kiln_abi_version(void);

// Why the last call that failed on this thread did: one line of UTF-8, empty if none has.
//
// The text belongs to the library. It is valid on this thread until the next call that fails.
const char *kiln_last_error(void);

// Names the OpenCL library to use, instead of searching for one.
//
// `path` is a file or a name that the linker knows. Without this call the library is the one in
// the environment variable OPENCL_DYLIB_PATH, else the first of the places where phones have it.
// Call it before anything else that asks for devices, and before other threads use the
// environment: the choice is made once in a process, and is kept in that variable.
// Fails with `KILN_STATUS_INPUT` if another library is in use.
//
// # Safety
//
// `path` ends with a NUL.
enum KilnStatus kiln_use_opencl(const char *path);

// Opens a bundle and checks all of it but its weights, which are checked as they are read.
//
// On success `*out` is the caller's, to be closed with `kiln_bundle_close`; else it is NULL.
// Any thread. Fails with `KILN_STATUS_BUNDLE` or `KILN_STATUS_INPUT`.
//
// # Safety
//
// `path` ends with a NUL; `out` may be written.
enum KilnStatus kiln_bundle_open(const char *path, struct KilnBundle **out);

// As `kiln_bundle_open`, for a bundle that is a part of an open file: `len_bytes` from
// `offset_bytes` on. An Android asset gives these three if it is stored without compression.
//
// The descriptor stays the caller's and may be closed at once: the library keeps a duplicate
// until bundle and sessions are closed. Its position is neither used nor changed.
//
// # Safety
//
// `out` may be written.
enum KilnStatus kiln_bundle_open_fd(int32_t fd,
                                    uint64_t offset_bytes,
                                    uint64_t len_bytes,
                                    struct KilnBundle **out);

// Closes a bundle; NULL is allowed. Sessions that were made from it stay as they are.
//
// No thread may use the bundle, or a text from it, at that time or later.
//
// # Safety
//
// `bundle` is NULL or open.
void kiln_bundle_close(struct KilnBundle *bundle);

// Tells what a bundle is and what it needs. Any thread.
//
// # Safety
//
// `bundle` is open; `out` may be written.
enum KilnStatus kiln_bundle_info(const struct KilnBundle *bundle, struct KilnBundleInfo *out);

// Name of a network, by its index below `network_count`; NULL if there is none.
//
// The text belongs to the bundle and is valid until it is closed. Any thread.
//
// # Safety
//
// `bundle` is NULL or open.
const char *kiln_bundle_network(const struct KilnBundle *bundle, uint32_t index);

// Name of an OpenCL extension that the device must have, by its index below
// `extension_count`; NULL if there is none.
//
// The text belongs to the bundle and is valid until it is closed. Any thread.
//
// # Safety
//
// `bundle` is NULL or open.
const char *kiln_bundle_extension(const struct KilnBundle *bundle, uint32_t index);

// Lists the devices of all drivers.
//
// This opens the drivers, and each costs the process memory that it never gives back.
// On success `*out` is the caller's, to be freed with `kiln_devices_free`; else it is NULL.
// Any thread. Fails with `KILN_STATUS_DEVICE`, and an error that says which libraries were tried.
//
// # Safety
//
// `out` may be written.
enum KilnStatus kiln_devices_list(struct KilnDevices **out);

// How many devices a list has; 0 if it is NULL. Any thread.
//
// # Safety
//
// `devices` is NULL or a list that has not been freed.
uint32_t kiln_devices_count(const struct KilnDevices *devices);

// Describes a device by its index. Any thread. Fails with `KILN_STATUS_INPUT` if there is none.
//
// # Safety
//
// `devices` is a list that has not been freed; `out` may be written.
enum KilnStatus kiln_devices_get(const struct KilnDevices *devices,
                                 uint32_t index,
                                 struct KilnDevice *out);

// Frees a list; NULL is allowed. No thread may use it, or a text from it, then or later.
//
// # Safety
//
// `devices` is NULL or a list that has not been freed.
void kiln_devices_free(struct KilnDevices *devices);

// Fills a request with the defaults: no text, seed 0, 20 steps, guidance 7.5, the first sampler.
//
// # Safety
//
// `request` may be written, or is NULL.
void kiln_request_init(struct KilnRequest *request);

// Makes a picture. Returns when it is done, has failed or was cancelled.
//
// `progress` is called on this thread and may be NULL; nothing of `request` is kept.
// On success `*out` is the caller's, to be freed with `kiln_picture_free`; else it is NULL.
// Any thread, one at a time: while another one makes a picture with this session, it is
// `KILN_STATUS_BUSY`. After a failure the session can be used again, except after
// `KILN_STATUS_INTERNAL`. Fails also with `KILN_STATUS_INPUT` if the request is impossible, with
// `KILN_STATUS_CANCELLED`, `KILN_STATUS_DEVICE`, or `KILN_STATUS_BUNDLE` if weights are damaged.
//
// # Safety
//
// `session` is open; `request` is valid, with texts that end with a NUL and an initial image of
// as many pixels as it says; `out` may be written;
// `progress` may be called with `context`.
enum KilnStatus kiln_session_generate(const struct KilnSession *session,
                                      const struct KilnRequest *request,
                                      KilnProgressFn progress,
                                      void *context,
                                      struct KilnPicture **out);

// Width in pixels; 0 if the picture is NULL. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
uint32_t kiln_picture_width(const struct KilnPicture *picture);

// Height in pixels; 0 if the picture is NULL. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
uint32_t kiln_picture_height(const struct KilnPicture *picture);

// Copies the pixels: red, green, blue and 255, row by row from the top, without gaps.
//
// `len_bytes` must be `width * height * 4`. Any thread. Fails with `KILN_STATUS_INPUT`.
//
// # Safety
//
// `picture` has not been freed; `len_bytes` bytes at `out` may be written.
enum KilnStatus kiln_picture_rgba(const struct KilnPicture *picture,
                                  uint8_t *out,
                                  size_t len_bytes);

// What the user should know, for example that a prompt was cut: warning `index`, counted from 0;
// NULL if there are no more.
//
// The text belongs to the picture and is valid until it is freed. Any thread.
//
// # Safety
//
// `picture` is NULL or has not been freed.
const char *kiln_picture_warning(const struct KilnPicture *picture, uint32_t index);

// Frees a picture; NULL is allowed. No thread may use it, or a text from it, then or later.
//
// # Safety
//
// `picture` is NULL or has not been freed.
void kiln_picture_free(struct KilnPicture *picture);

// Fills options with what NULL and 0 mean: the first GPU, no cache folder, the bundle's budget.
//
// # Safety
//
// `options` may be written, or is NULL.
void kiln_session_options_init(struct KilnSessionOptions *options);

// Loads a bundle on a device: builds its kernels and allocates all the memory it needs there.
//
// The first time on a device this takes as long as its driver compiles. `progress` hears of it
// on this thread (`KILN_STAGE_LOAD`) and may be NULL; its answer is not asked for here.
// The bundle may be closed afterwards, and nothing of `options` is kept.
// On success `*out` is the caller's, to be closed with `kiln_session_close`; else it is NULL.
// Any thread. Fails with any status but `KILN_STATUS_CANCELLED` and `KILN_STATUS_BUSY`.
//
// # Safety
//
// `bundle` is open; `options` is NULL or valid, with texts that end with a NUL; `out` may be
// written; `progress` may be called with `context`, and does not leave by an exception.
enum KilnStatus kiln_session_create(const struct KilnBundle *bundle,
                                    const struct KilnSessionOptions *options,
                                    KilnProgressFn progress,
                                    void *context,
                                    struct KilnSession **out);

// Closes a session and frees all it has; NULL is allowed.
//
// No thread may use the session at that time or later: cancel, and wait for the thread that
// makes a picture. Pictures stay.
//
// # Safety
//
// `session` is NULL or open.
void kiln_session_close(struct KilnSession *session);

// Stops the picture that is being made: `kiln_session_generate` soon returns
// `KILN_STATUS_CANCELLED` on its thread. Does nothing if none is being made.
//
// Any thread, also a progress callback. Returns at once.
//
// # Safety
//
// `session` is open.
enum KilnStatus kiln_session_cancel(const struct KilnSession *session);

// Gives back what can be had again: the device's memory, host buffers, free pages of the heap.
// Compiled kernels stay. Android's `onTrimMemory` is the place to call it.
//
// The next picture allocates the same again and reads its weights from the bundle; it is not
// different, and hardly slower. While a picture is being made, the memory goes at its end; to
// have it sooner, cancel as well. Any thread. Fails with `KILN_STATUS_DEVICE`.
//
// # Safety
//
// `session` is open.
enum KilnStatus kiln_session_trim(const struct KilnSession *session);

// Tells what memory the session and its process take. Any thread, also while a picture is made.
//
// # Safety
//
// `session` is open; `out` may be written.
enum KilnStatus kiln_session_memory(const struct KilnSession *session, struct KilnMemory *out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KILN_H */
