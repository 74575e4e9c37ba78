/* Reads of files that go wrong, for LD_PRELOAD.
 *
 * The reads of files whose path has KILN_FAULT_FILE in it are counted, from 1. KILN_FAULT_AT=N:
 * read N goes wrong; KILN_FAULT_FROM=N: read N and all after it. KILN_FAULT_HOW: "error" is EIO,
 * "short" gives half of the bytes, "end" none, "interrupted" is EINTR, "late" comes after 20 ms.
 * KILN_FAULT_LOG=FILE: gets a line for each counted read. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static unsigned long number(const char *name) {
    const char *text = getenv(name);
    return text == NULL ? 0 : strtoul(text, NULL, 10);
}

static int is_counted(int fd) {
    const char *part = getenv("KILN_FAULT_FILE");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (part == NULL || len < 0) {
        return 0;
    }
    path[len] = '\0';
    return strstr(path, part) != NULL;
}

/* How this read goes wrong; NULL if it does not. */
static const char *fault(int fd) {
    static unsigned long calls;
    if (!is_counted(fd)) {
        return NULL;
    }
    unsigned long call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    const char *log = getenv("KILN_FAULT_LOG");
    FILE *file = log == NULL ? NULL : fopen(log, "a");
    if (file != NULL) {
        fputs("read\n", file);
        fclose(file);
    }
    unsigned long from = number("KILN_FAULT_FROM");
    int strikes = call == number("KILN_FAULT_AT") || (from > 0 && call >= from);
    return strikes ? getenv("KILN_FAULT_HOW") : NULL;
}

/* What a read that goes wrong does with `count`, the bytes asked for: reads so many, or returns
 * -1 with errno. */
static ssize_t spoil(const char *how, size_t count) {
    if (how == NULL) {
        return (ssize_t)count;
    }
    if (strcmp(how, "error") == 0 || strcmp(how, "interrupted") == 0) {
        errno = strcmp(how, "error") == 0 ? EIO : EINTR;
        return -1;
    }
    if (strcmp(how, "late") == 0) {
        struct timespec pause = {0, 20000000};
        nanosleep(&pause, NULL);
    }
    if (strcmp(how, "short") == 0 && count > 1) {
        return (ssize_t)(count / 2);
    }
    return strcmp(how, "end") == 0 ? 0 : (ssize_t)count;
}

static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (function == NULL) {
        abort();
    }
    return function;
}

ssize_t read(int fd, void *out, size_t count) {
    static ssize_t (*next)(int, void *, size_t);
    ssize_t bytes = spoil(fault(fd), count);
    if (next == NULL) {
        *(void **)&next = real("read");
    }
    return bytes <= 0 && count > 0 ? bytes : next(fd, out, (size_t)bytes);
}

static ssize_t read_at(const char *name, int fd, void *out, size_t count, off_t at) {
    ssize_t (*next)(int, void *, size_t, off_t);
    ssize_t bytes = spoil(fault(fd), count);
    *(void **)&next = real(name);
    return bytes <= 0 && count > 0 ? bytes : next(fd, out, (size_t)bytes, at);
}

ssize_t pread(int fd, void *out, size_t count, off_t at) {
    return read_at("pread", fd, out, count, at);
}

ssize_t pread64(int fd, void *out, size_t count, off_t at) {
    return read_at("pread64", fd, out, count, at);
}
