/* What ptx.cl.tera says, in OpenCL C, for devices that are no NVIDIA GPUs: the lanes of a warp
   exchange what they hold through `ptx_area`, by the tables of the PTX ISA. Slow. Names of macros'
   own variables end in an underscore, for arguments are evaluated among them. */
#define SHARED(p) 0u
#define COPIES_COMMIT()
#define COPIES_WAIT(n)
#define BYTES(at) ((__local uchar *)memory + (at))
#define LANE (get_local_id(0) % 32)
#define OF_LANE(i) ptx_area[get_local_id(0) / 32 * 32 + (i)]
#define copy_16(to, from, bytes) do { \
    __local uchar *const copy_to = BYTES(to); \
    const __global uchar *const copy_from = (const __global uchar *)(from); \
    for (uint byte_ = 0; byte_ < 16; byte_++) copy_to[byte_] = byte_ < (bytes) ? copy_from[byte_] : 0; \
} while (0)
#define copy_16_if(wanted, to, from, bytes) do { if (wanted) copy_16(to, from, bytes); } while (0)
#define copy_cached_16_if copy_16_if
#define LOAD_MATRICES(a, b, c, d, from) do { \
    barrier(CLK_LOCAL_MEM_FENCE); \
    OF_LANE(LANE)[0] = (from); \
    barrier(CLK_LOCAL_MEM_FENCE); \
    (a) = *(__local uint *)BYTES(OF_LANE(LANE / 4)[0] + LANE % 4 * 4); \
    (b) = *(__local uint *)BYTES(OF_LANE(8 + LANE / 4)[0] + LANE % 4 * 4); \
    (c) = *(__local uint *)BYTES(OF_LANE(16 + LANE / 4)[0] + LANE % 4 * 4); \
    (d) = *(__local uint *)BYTES(OF_LANE(24 + LANE / 4)[0] + LANE % 4 * 4); \
} while (0)
#define COLUMN(m) (*(__local ushort *)BYTES(OF_LANE(8 * (m) + LANE % 4 * 2)[0] + LANE / 4 * 2) \
    | (uint)*(__local ushort *)BYTES(OF_LANE(8 * (m) + LANE % 4 * 2 + 1)[0] + LANE / 4 * 2) << 16)
#define LOAD_TRANSPOSED(a, b, c, d, from) do { \
    barrier(CLK_LOCAL_MEM_FENCE); \
    OF_LANE(LANE)[0] = (from); \
    barrier(CLK_LOCAL_MEM_FENCE); \
    (a) = COLUMN(0); \
    (b) = COLUMN(1); \
    (c) = COLUMN(2); \
    (d) = COLUMN(3); \
} while (0)
#define PUBLISH(a, b0, b1) \
    barrier(CLK_LOCAL_MEM_FENCE); \
    for (uint own_ = 0; own_ < 4; own_++) OF_LANE(LANE)[own_] = (a)[own_]; \
    OF_LANE(LANE)[4] = (b0); \
    OF_LANE(LANE)[5] = (b1); \
    barrier(CLK_LOCAL_MEM_FENCE);
float half_of(const uint both, const uint which)
{
    const ushort h = both >> 16 * which;
    return vload_half(0, (const half *)&h);
}
#define MMA_HALF(c, a, b0, b1) do { \
    PUBLISH(a, b0, b1) \
    for (uint sum_ = 0; sum_ < 4; sum_++) \
        for (uint k_ = 0; k_ < 16; k_++) \
            (c)[sum_] = fma(half_of(OF_LANE(LANE / 4 * 4 + k_ % 8 / 2)[sum_ / 2 + k_ / 8 * 2], k_ % 2), \
                half_of(OF_LANE((LANE % 4 * 2 + sum_ % 2) * 4 + k_ % 8 / 2)[4 + k_ / 8], k_ % 2), (c)[sum_]); \
} while (0)
uint halves(const float low, const float high)
{
    ushort h[2];
    vstore_half_rte(low, 0, (half *)h);
    vstore_half_rte(high, 1, (half *)h);
    return h[0] | (uint)h[1] << 16;
}
float2 floats(const uint both) { return (float2)(half_of(both, 0), half_of(both, 1)); }
uint smaller(const uint both) { return halves(half_of(both, 0) * 0x1p-11f, half_of(both, 1) * 0x1p-11f); }
#define SPLIT(one, other, scale, high, low) do { \
    const float2 both_ = (float2)((one), (other)) * (scale); \
    (high) = halves(both_.x, both_.y); \
    const float2 rest_ = (both_ - floats(high)) * 0x1p11f; \
    (low) = halves(rest_.x, rest_.y); \
} while (0)
#define exchange(x, mask) ({ \
    barrier(CLK_LOCAL_MEM_FENCE); \
    OF_LANE(LANE)[0] = as_uint(x); \
    barrier(CLK_LOCAL_MEM_FENCE); \
    as_float(OF_LANE(LANE ^ (mask))[0]); \
})
float power_of_2(const float x) { return exp2(x); }
