// A driver that fails, for the tests of `kiln doctor`. What it does is chosen by a macro:
// ABORT_ON_LOAD, NO_DEVICES, DEVICES_FAIL, or CRASH_ON_USE, whose device crashes when it is used.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, OUT_OF_HOST_MEMORY = -6, DEVICE_NOT_FOUND = -1, INVALID_VALUE = -30 };
enum { PLATFORM_EXTENSIONS = 0x0904, ICD_SUFFIX = 0x0920 };

// Objects begin with the table of functions, in the order of the header cl_icd.h.
static void *table[256];
static struct { void **table; } platform = {table}, device = {table};

static int text(const char *value, size_t room, char *out, size_t *len) {
    if (out && room >= strlen(value) + 1) strcpy(out, value);
    if (len) *len = strlen(value) + 1;
    return SUCCESS;
}

static int get_platform_ids(uint32_t room, void **out, uint32_t *count) {
    if (out && room) out[0] = &platform;
    if (count) *count = 1;
    return SUCCESS;
}

static int get_platform_info(void *p, uint32_t what, size_t room, void *out, size_t *len) {
    (void)p;
    if (what == PLATFORM_EXTENSIONS) return text("cl_khr_icd", room, out, len);
    if (what == ICD_SUFFIX) return text("FAULTY", room, out, len);
    return text("Faulty", room, out, len);
}

static int get_device_ids(void *p, uint64_t type, uint32_t room, void **out, uint32_t *count) {
    (void)p, (void)type;
#if defined(NO_DEVICES)
    return DEVICE_NOT_FOUND;
#elif defined(DEVICES_FAIL)
    return OUT_OF_HOST_MEMORY;
#endif
    if (out && room) out[0] = &device;
    if (count) *count = 1;
    return SUCCESS;
}

static int get_device_info(void *d, uint32_t what, size_t room, void *out, size_t *len) {
    (void)d, (void)what, (void)room, (void)out, (void)len;
    return INVALID_VALUE;
}

static void crash(void) { *(volatile int *)8 = 0; }

void *clGetExtensionFunctionAddress(const char *name) {
    return strcmp(name, "clIcdGetPlatformIDsKHR") ? NULL : (void *)get_platform_ids;
}

__attribute__((constructor)) static void load(void) {
#if defined(ABORT_ON_LOAD)
    abort();
#endif
    for (int i = 0; i < 256; i++) table[i] = (void *)crash;
    table[0] = (void *)get_platform_ids;
    table[1] = (void *)get_platform_info;
    table[2] = (void *)get_device_ids;
    table[3] = (void *)get_device_info;
}

int clGetPlatformInfo(void *p, uint32_t what, size_t room, void *out, size_t *len) {
    return get_platform_info(p, what, room, out, len);
}
