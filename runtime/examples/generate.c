/* Makes a picture through the C interface and writes its pixels:
 *
 *   generate FILE.kiln OUT.rgba "a red heart" [STEPS [SEED [DEVICE [FROM.rgba WIDTH HEIGHT STRENGTH
 *            [MASK.bytes]]]]]
 *
 * Build: cc -I runtime/include generate.c -o generate -L target/release -lkiln_runtime -lpthread */

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kiln.h"

static int fail(const char *what, KilnStatus status) {
    fprintf(stderr, "%s: status %d: %s\n", what, (int)status, kiln_last_error());
    return status == KILN_STATUS_DEVICE ? 3 : 2;
}

/* Counts the calls in its context and says how far it is. */
static bool progress(void *context, const KilnProgress *progress) {
    unsigned *calls = context;
    *calls += 1;
    if (progress->stage == KILN_STAGE_SAMPLE) {
        printf("step %" PRIu32 " of %" PRIu32 ", %.2f s, preview %" PRIu32 " x %" PRIu32 "\n",
               progress->step, progress->of, progress->seconds, progress->preview_width,
               progress->preview_height);
    }
    return true;
}

/* Opens a bundle from a descriptor, as an application opens an asset. */
static KilnStatus open_bundle(const char *path, KilnBundle **bundle) {
    int fd = open(path, O_RDONLY);
    struct stat file;
    if (fd < 0 || fstat(fd, &file) != 0) {
        return kiln_bundle_open(path, bundle); /* which says what is wrong */
    }
    KilnStatus status = kiln_bundle_open_fd(fd, 0, (uint64_t)file.st_size, bundle);
    close(fd);
    return status;
}

static int write_pixels(const KilnPicture *picture, const char *path) {
    size_t len_bytes =
        (size_t)kiln_picture_width(picture) * kiln_picture_height(picture) * 4;
    uint8_t *rgba = malloc(len_bytes);
    if (rgba == NULL) {
        return 1;
    }
    KilnStatus status = kiln_picture_rgba(picture, rgba, len_bytes);
    FILE *out = status == KILN_STATUS_OK ? fopen(path, "wb") : NULL;
    int failed = out == NULL || fwrite(rgba, 1, len_bytes, out) != len_bytes;
    if (out != NULL) {
        failed |= fclose(out) != 0;
    }
    free(rgba);
    return failed;
}

/* Reads the pixels of a picture to begin with, or of its mask, to be freed; NULL if they are not all
   there. */
static uint8_t *read_pixels(const char *path, size_t len_bytes) {
    uint8_t *pixels = malloc(len_bytes);
    FILE *in = pixels == NULL ? NULL : fopen(path, "rb");
    bool whole = in != NULL && fread(pixels, 1, len_bytes, in) == len_bytes;
    if (in != NULL) {
        fclose(in);
    }
    if (!whole) {
        free(pixels);
        return NULL;
    }
    return pixels;
}

static void describe(const KilnBundle *bundle) {
    KilnBundleInfo info;
    if (kiln_bundle_info(bundle, &info) != KILN_STATUS_OK) {
        return;
    }
    printf("%s (%s), %" PRIu32 " x %" PRIu32 ", at most %" PRIu64 " bytes, networks:", info.model,
           info.precision, info.width, info.height, info.peak_bytes);
    for (uint32_t index = 0; index < info.network_count; index++) {
        printf(" %s", kiln_bundle_network(bundle, index));
    }
    printf("\n");
}

static int make(KilnSession *session, const KilnRequest *request, const char *path) {
    unsigned calls = 0;
    KilnPicture *picture = NULL;
    KilnStatus status = kiln_session_generate(session, request, progress, &calls, &picture);
    if (status != KILN_STATUS_OK) {
        return fail("cannot make the picture", status);
    }
    for (uint32_t index = 0; kiln_picture_warning(picture, index) != NULL; index++) {
        printf("warning: %s\n", kiln_picture_warning(picture, index));
    }
    int failed = write_pixels(picture, path);
    kiln_picture_free(picture);
    KilnMemory memory;
    if (kiln_session_memory(session, &memory) == KILN_STATUS_OK) {
        printf("progress was told %u times; device %" PRIu64 ", process %" PRIu64 " of %" PRIu64
               " bytes\n",
               calls, memory.device_bytes, memory.process_peak_bytes, memory.budget_bytes);
    }
    return failed;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr,
                "usage: %s FILE.kiln OUT.rgba PROMPT [STEPS [SEED [DEVICE [FROM.rgba WIDTH HEIGHT "
                "STRENGTH [MASK.bytes]]]]]\n",
                argv[0]);
        return 2;
    }
    if (kiln_abi_version() != KILN_ABI_VERSION) {
        fprintf(stderr, "the library has another interface\n");
        return 2;
    }
    KilnBundle *bundle = NULL;
    KilnStatus status = open_bundle(argv[1], &bundle);
    if (status != KILN_STATUS_OK) {
        return fail("cannot open the bundle", status);
    }
    describe(bundle);
    KilnSessionOptions options;
    kiln_session_options_init(&options);
    if (argc > 6) {
        options.device = argv[6];
    }
    unsigned kernels = 0;
    KilnSession *session = NULL;
    status = kiln_session_create(bundle, &options, progress, &kernels, &session);
    kiln_bundle_close(bundle);
    if (status != KILN_STATUS_OK) {
        return fail("cannot load the bundle", status);
    }
    KilnRequest request;
    kiln_request_init(&request);
    request.prompt = argv[3];
    request.preview = true;
    if (argc > 4) {
        request.steps = (uint32_t)strtoul(argv[4], NULL, 10);
    }
    if (argc > 5) {
        request.seed = strtoull(argv[5], NULL, 10);
    }
    KilnImage image = {NULL, 0, 0, 0.0};
    uint8_t *pixels = NULL;
    uint8_t *mask = NULL;
    if (argc > 10) {
        image.width = (uint32_t)strtoul(argv[8], NULL, 10);
        image.height = (uint32_t)strtoul(argv[9], NULL, 10);
        image.strength = strtod(argv[10], NULL);
        size_t count = (size_t)image.width * image.height;
        pixels = read_pixels(argv[7], count * 4);
        mask = argc > 11 ? read_pixels(argv[11], count) : NULL;
        image.rgba = pixels;
        request.initial_image = &image;
        request.mask = mask;
    }
    int failed = make(session, &request, argv[2]);
    free(pixels);
    free(mask);
    kiln_session_close(session);
    return failed;
}
