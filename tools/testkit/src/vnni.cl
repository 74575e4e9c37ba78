/* vpdpbusd in OpenCL C. */
typedef IV WV;
#define DOT_FUNCTION
#define LOAD_WEIGHTS(p) (*(const __global IVU *)(p))
#define DOT(c, w, x) ((c) + ((w) & 255) * (((x) << 24) >> 24) + (((w) >> 8) & 255) * (((x) << 16) >> 24) \
    + (((w) >> 16) & 255) * (((x) << 8) >> 24) + (((w) >> 24) & 255) * ((x) >> 24))
