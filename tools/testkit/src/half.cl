/* What half.cl.tera says, in float, for devices without half arithmetic: HV and HW hold halves, and
   FMA_HV rounds to them as an instruction does. */
#define HV float4
#define HW float8
#define LOADV_HV(p, i) vload_half4(0, (p) + (i))
#define LOADA_HV(p, i) vload_half4(0, (p) + (i))
#define LOADA_HW(p, i) vload_half8(0, (p) + (i))
#define LOADL_HV(p, i) vload_half4(0, (const __local half *)((p) + (i)))
#define LOADL_HW(p, i) vload_half8(0, (const __local half *)((p) + (i)))
#define STOREA_HV(p, i, x) vstore_half4((x), 0, (p) + (i))
#define STOREL_HV(p, i, x) vstore_half4((x), 0, (__local half *)((p) + (i)))
#define STOREL_H2(p, i, x) vstore_half2((x), 0, (__local half *)((p) + (i)))
#define FLOATS(x) (x)
/* Several kernels of one program may hold this text. */
#ifndef KILN_EMULATED_HALVES
#define KILN_EMULATED_HALVES
/* Of a float to 11 bits, to even: below 2^-14 a multiple of 2^-24, which is how far the numbers around
   0.75 are apart; from 65520 on infinite. */
float4 to_halves(const float4 x)
{
    const uint4 u = as_uint4(x);
    const float4 normal = as_float4((u + 0xfffu + (u >> 13 & 1u)) & 0xffffe000u);
    const float4 y = fabs(x) < 0x1p-14f ? (x + 0.75f) - 0.75f : normal;
    return fabs(x) >= 65520.0f ? copysign((float4)(INFINITY), x) : y;
}
/* The product of halves is a float. What the sum loses is added up; if that is not zero, the sum's last
   bit is set as if the rest had been cut off, so that rounding it again is rounding once. */
float4 FMA_HV(const float4 a, const float4 b, const float4 c)
{
    const float4 product = a * b;
    const float4 sum = product + c;
    const float4 added = sum - product;
    const float4 lost = (product - (sum - added)) + (c - added);
    const uint4 u = as_uint4(sum);
    const int4 even = (u & 1u) == 0u;
    const int4 away = signbit(lost) == signbit(sum);
    const uint4 odd = away ? u + 1u : u - 1u;
    const float4 once = as_float4(even && lost != 0.0f && isfinite(sum) ? odd : u);
    return to_halves(once);
}
#endif
