/* An OpenCL library in front of the system's, of which one call fails, or all from one on.
 *
 * Calls are counted over all functions below, from 1. KILN_FAULT_AT=N: call N fails.
 * KILN_FAULT_FROM=N: call N and all after it fail. KILN_FAULT_LOG=FILE: gets a line for each call,
 * the function's name. Functions that are not below go to the system's library, which this one is
 * linked with. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef intptr_t word;

static unsigned long number(const char *name) {
    const char *text = getenv(name);
    return text == NULL ? 0 : strtoul(text, NULL, 10);
}

/* Counts a call. Returns whether it fails. */
static int fails(const char *name) {
    static unsigned long calls;
    unsigned long call = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    const char *log = getenv("KILN_FAULT_LOG");
    FILE *file = log == NULL ? NULL : fopen(log, "a");
    if (file != NULL) {
        fprintf(file, "%s\n", name);
        fclose(file);
    }
    unsigned long from = number("KILN_FAULT_FROM");
    return call == number("KILN_FAULT_AT") || (from > 0 && call >= from);
}

static void *real(const char *name) {
    void *library = dlopen("libOpenCL.so.1", RTLD_NOW);
    void *function = library == NULL ? NULL : dlsym(library, name);
    if (function == NULL) {
        abort();
    }
    return function;
}

/* A function of `name` with a list of parameters and of arguments, which returns an error. */
#define RETURNS(name, parameters, arguments, error)                                                \
    word name parameters;                                                                          \
    word name parameters {                                                                         \
        static word(*next) parameters;                                                             \
        if (fails(#name)) {                                                                        \
            return error;                                                                          \
        }                                                                                          \
        if (next == NULL) {                                                                        \
            *(void **)&next = real(#name);                                                         \
        }                                                                                          \
        return (int32_t)next arguments;                                                            \
    }

/* The same, which returns an object, and the error at `place`. */
#define CREATES(name, parameters, arguments, place, error)                                         \
    word name parameters;                                                                          \
    word name parameters {                                                                         \
        static word(*next) parameters;                                                             \
        if (fails(#name)) {                                                                        \
            if (place != 0) {                                                                      \
                *(int32_t *)place = error;                                                         \
            }                                                                                      \
            return 0;                                                                              \
        }                                                                                          \
        if (next == NULL) {                                                                        \
            *(void **)&next = real(#name);                                                         \
        }                                                                                          \
        return next arguments;                                                                     \
    }

#define P1 (word a)
#define A1 (a)
#define P2 (word a, word b)
#define A2 (a, b)
#define P3 (word a, word b, word c)
#define A3 (a, b, c)
#define P4 (word a, word b, word c, word d)
#define A4 (a, b, c, d)
#define P5 (word a, word b, word c, word d, word e)
#define A5 (a, b, c, d, e)
#define P6 (word a, word b, word c, word d, word e, word f)
#define A6 (a, b, c, d, e, f)
#define P7 (word a, word b, word c, word d, word e, word f, word g)
#define A7 (a, b, c, d, e, f, g)
#define P9 (word a, word b, word c, word d, word e, word f, word g, word h, word i)
#define A9 (a, b, c, d, e, f, g, h, i)
#define P10 (word a, word b, word c, word d, word e, word f, word g, word h, word i, word j)
#define A10 (a, b, c, d, e, f, g, h, i, j)

#define ALLOCATION (-4)
#define RESOURCES (-5)
#define HOST_MEMORY (-6)
#define BUILD (-11)

RETURNS(clGetPlatformIDs, P3, A3, HOST_MEMORY)
RETURNS(clGetDeviceIDs, P5, A5, HOST_MEMORY)
RETURNS(clGetDeviceInfo, P5, A5, HOST_MEMORY)
RETURNS(clGetKernelInfo, P5, A5, HOST_MEMORY)
RETURNS(clGetProgramInfo, P5, A5, HOST_MEMORY)
RETURNS(clBuildProgram, P6, A6, BUILD)
RETURNS(clSetKernelArg, P4, A4, RESOURCES)
RETURNS(clEnqueueNDRangeKernel, P9, A9, RESOURCES)
RETURNS(clEnqueueReadBuffer, P9, A9, RESOURCES)
RETURNS(clEnqueueWriteBuffer, P9, A9, RESOURCES)
RETURNS(clEnqueueCopyBuffer, P9, A9, RESOURCES)
RETURNS(clEnqueueUnmapMemObject, P6, A6, RESOURCES)
RETURNS(clEnqueueMarkerWithWaitList, P4, A4, RESOURCES)
RETURNS(clFinish, P1, A1, RESOURCES)
RETURNS(clFlush, P1, A1, RESOURCES)
RETURNS(clWaitForEvents, P2, A2, RESOURCES)

CREATES(clCreateContext, P6, A6, f, HOST_MEMORY)
CREATES(clCreateCommandQueue, P4, A4, d, HOST_MEMORY)
CREATES(clCreateCommandQueueWithProperties, P4, A4, d, HOST_MEMORY)
CREATES(clCreateBuffer, P5, A5, e, ALLOCATION)
CREATES(clCreateSubBuffer, P5, A5, e, ALLOCATION)
CREATES(clCreateProgramWithSource, P5, A5, e, HOST_MEMORY)
CREATES(clCreateProgramWithBinary, P7, A7, g, HOST_MEMORY)
CREATES(clCreateKernel, P3, A3, c, HOST_MEMORY)
CREATES(clEnqueueMapBuffer, P10, A10, j, RESOURCES)
