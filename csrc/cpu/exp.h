// Exponential, logarithm and hyperbolic tangent of vectors.
//
// Special values are those of C's functions: exp(−inf) is exactly 0, overflow gives inf, NaN stays NaN, and results
// below the normal numbers are rounded like others, not flushed.
#pragma once

#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

// How numbers are made of bits, and ln 2 as a part with zeros at its end and a rest.
template <class T> struct Exponent;
template <> struct Exponent<float> {
    static constexpr float to_integer = 0x1.8p23f;  // a sum with it is rounded to an integer, found in its lowest bits
    static constexpr int32_t bias = 127, shift = 23, fraction = (1 << 23) - 1;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float to_zero = -104, to_infinity = 89;  // exp is 0 and inf beyond these
};
template <> struct Exponent<double> {
    static constexpr double to_integer = 0x1.8p52;
    static constexpr int64_t bias = 1023, shift = 52, fraction = (1LL << 52) - 1;
    static constexpr double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    static constexpr double to_zero = -746, to_infinity = 710;
};

// x = n·ln 2 + r with n an integer and |r| ≤ ln 2 / 2.
template <class T> struct Reduced {
    vec<T> n, r;
};

template <class T> TG_INLINE Reduced<T> reduced(vec<T> x) {
    using E = Exponent<T>;
    vec<T> n = x * static_cast<T>(1.44269504088896341) + E::to_integer - E::to_integer;
    return {n, x - n * E::ln2_high - n * E::ln2_low};
}

// exp(r) − 1 for |r| ≤ ln 2 / 2: r + r²·q(r), q from Chebyshev nodes.
TG_INLINE vfloat near_zero_expm1(vfloat r) {
    vfloat q = ((1.392625083e-3f * r + 8.363232884e-3f) * r + 4.166655421e-2f) * r + 1.666657667e-1f;
    return (q * r + 0.5f) * (r * r) + r;
}

TG_INLINE vdouble near_zero_expm1(vdouble r) {
    vdouble r2 = r * r, r4 = r2 * r2;
    vdouble low = (0x1.11111111109a6p-7 * r + 0x1.5555555553d37p-5) * r2 + (0x1.5555555555556p-3 * r + 0.5);
    vdouble high = (0x1.71de0d85293b8p-19 * r + 0x1.a019b8ca26fcfp-16) * r2 +
                   (0x1.a01a01a7cebcdp-13 * r + 0x1.6c16c1789d1d7p-10);
    vdouble top = 0x1.af390ba7e6f47p-26 * r + 0x1.2891d4ffbb0f9p-22;
    return ((top * r4 + high) * r4 + low) * r2 + r;
}

// 2ⁿ for an integer n; 0 for the first n that is too small.
template <class T> TG_INLINE vec<T> two_to(vec<T> n) {
    using E = Exponent<T>;
    return from_bits((as_bits(n + E::to_integer) + E::bias) << E::shift);
}

// x·2ⁿ, in two steps since 2ⁿ itself may be too large or too small.
template <class T> TG_INLINE vec<T> times_two_to(vec<T> x, vec<T> n) {
    using E = Exponent<T>;
    vec<T> half = n * static_cast<T>(0.5) + E::to_integer - E::to_integer;
    return x * two_to<T>(half) * two_to<T>(n - half);
}

template <class T> TG_INLINE vec<T> exp_by_polynomial(vec<T> x) {
    using E = Exponent<T>;
    auto [n, r] = reduced<T>(clamped(x, splat<T>(E::to_zero), splat<T>(E::to_infinity)));
#if TG_BYTES == 64 && defined(__AVX512F__)
    if constexpr (sizeof(T) == 8)
        return (vdouble)_mm512_maskz_scalef_pd((__mmask8)-1, (__m512d)(near_zero_expm1(r) + 1), (__m512d)n);
#endif
    return times_two_to<T>(near_zero_expm1(r) + 1, n);
}

#if TG_BYTES == 64 && defined(__AVX512F__)

// 2^(i/32) and 2^(i/16).
alignas(64) static const float ROOTS_OF_TWO[32] = {
    1.0f,        1.0218971f,  1.0442737f,  1.0671405f,  1.0905077f,  1.1143868f,  1.1387886f,  1.1637249f,
    1.1892071f,  1.2152474f,  1.2418578f,  1.269051f,   1.2968396f,  1.3252367f,  1.3542556f,  1.3839099f,
    1.4142135f,  1.4451808f,  1.4768262f,  1.5091645f,  1.5422108f,  1.5759809f,  1.6104903f,  1.6457555f,
    1.6817929f,  1.7186193f,  1.7562522f,  1.7947091f,  1.8340081f,  1.8741677f,  1.9152066f,  1.9571441f,
};
alignas(64) static const float SIXTEENTH_ROOTS_OF_TWO[16] = {
    1.0f,        1.0442737f,  1.0905077f,  1.1387886f,  1.1892071f,  1.2418578f,  1.2968396f,  1.3542556f,
    1.4142135f,  1.4768262f,  1.5422108f,  1.6104903f,  1.6817929f,  1.7562522f,  1.8340081f,  1.9152066f,
};

// exp(x) = 2^(n/16)·exp(r): a table in a register leaves |r| ≤ ln 2 / 32, so small that a cubic will do.
TG_INLINE vfloat exp(vfloat x) {
    using E = Exponent<float>;
    x = clamped(x, splat(-110.0f), splat(90.0f));
    vfloat sum = x * (16 * 1.44269504088896341f) + E::to_integer, n = sum - E::to_integer;
    vfloat r = x - n * (E::ln2_high / 16) - n * (E::ln2_low / 16);
    vfloat p = (0.16666667f * r + 0.50000978f) * r * r + r;
    vfloat root = (vfloat)_mm512_maskz_permutexvar_ps((__mmask16)-1, (__m512i)sum,
                                                      _mm512_load_ps(SIXTEENTH_ROOTS_OF_TWO));
    return (vfloat)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)(p * root + root), (__m512)(n * 0.0625f));
}

// For x ≤ 16 or so, within 2 ulp where |x| is not large: what a softmax needs.
TG_INLINE vfloat exp_nonpositive(vfloat x) {
    using E = Exponent<float>;
    x = larger(splat(-110.0f), x);
    vfloat sum = x * (32 * 1.44269504088896341f) + E::to_integer, n = sum - E::to_integer;
    vfloat r = x - n * (0.69314718055994531f / 32);
    vfloat p = 0.500004f * r + 1.0000147f;
    vfloat root = (vfloat)_mm512_permutex2var_ps(_mm512_load_ps(ROOTS_OF_TWO), (__m512i)sum,
                                                 _mm512_load_ps(ROOTS_OF_TWO + 16));
    return (vfloat)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)(p * r * root + root), (__m512)(n * 0.03125f));
}

#else

TG_INLINE vfloat exp(vfloat x) { return exp_by_polynomial<float>(x); }

// For x ≤ 16 or so; results below 2⁻¹²⁶ become 0.
TG_INLINE vfloat exp_nonpositive(vfloat x) {
    auto [n, r] = reduced<float>(larger(splat(-88.0f), x));  // at −88, 2ⁿ is 0
    return (near_zero_expm1(r) + 1) * two_to<float>(n);
}

#endif

TG_INLINE vdouble exp(vdouble x) { return exp_by_polynomial<double>(x); }
TG_INLINE vdouble exp_nonpositive(vdouble x) { return exp_by_polynomial<double>(x); }

TG_INLINE float exp(float x) { return __builtin_expf(x); }
TG_INLINE double exp(double x) { return __builtin_exp(x); }

// --- logarithm -------------------------------------------------------------------------------------------------------

// For z = s², s = f / (2 + f): what log(1 + f) has beyond f − f²/2, divided by s; the coefficients are fdlibm's.
TG_INLINE vfloat log_rest(vfloat z) {
    return z * (0.66666662693f + z * (0.40000972152f + z * (0.28498786688f + z * 0.24279078841f)));
}
TG_INLINE vdouble log_rest(vdouble z) {
    vdouble w = z * z;
    vdouble even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    vdouble odd = 2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01);
    return even + z * (6.666666666666735130e-01 + w * odd);
}

template <class T> TG_INLINE vec<T> log_of(vec<T> x) {
    using E = Exponent<T>;
    const T smallest = sizeof(T) == 4 ? static_cast<T>(0x1p-126) : static_cast<T>(0x1p-1022);
    const T lift = static_cast<T>(1LL << (E::shift + 1));
    auto subnormal = x < smallest;
    vec<T> normal = subnormal ? x * lift : x;
    // The exponent is counted from √½, so that 1 + f lies in [√½, √2).
    const T root_half = static_cast<T>(0.70710678118654752);
    auto bits = as_bits(normal) - (as_bits(splat<T>(root_half)) - as_bits(splat<T>(0)));
    auto exponent = bits >> E::shift;
    vec<T> f = from_bits((bits & E::fraction) + as_bits(splat<T>(root_half))) - 1;
    vec<T> n = __builtin_convertvector(exponent, vec<T>) - (subnormal ? splat<T>(E::shift + 1) : vec<T>{});
    vec<T> s = f / (2 + f), half_square = f * f * static_cast<T>(0.5);
    vec<T> result = s * (half_square + log_rest(s * s)) + n * E::ln2_low - half_square + f + n * E::ln2_high;
    result = x == infinity<T>() ? x : result;
    result = x == 0 ? splat<T>(-infinity<T>()) : result;
    return x >= 0 ? result : splat<T>(nan<T>());
}

TG_INLINE vfloat log(vfloat x) { return log_of<float>(x); }
TG_INLINE vdouble log(vdouble x) { return log_of<double>(x); }
TG_INLINE float log(float x) { return __builtin_logf(x); }
TG_INLINE double log(double x) { return __builtin_log(x); }

// --- hyperbolic tangent ----------------------------------------------------------------------------------------------

// By exp(−2|x|) − 1, which loses nothing where x is small; exactly ±1 where |x| is large.
template <class T> TG_INLINE vec<T> tanh_by_expm1(vec<T> x) {
    auto [n, r] = reduced<T>(larger(splat<T>(-44), -2 * magnitude(x)));
    vec<T> scale = two_to<T>(n);
    vec<T> minus = near_zero_expm1(r) * scale + (scale - 1);
    vec<T> size = -minus / (minus + 2);
    return from_bits(as_bits(size) | (as_bits(x) & as_bits(splat<T>(static_cast<T>(-0.0)))));
}

}  // namespace tilegrad::cpu::TG_ISA
