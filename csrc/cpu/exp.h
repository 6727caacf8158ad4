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

// Polynomials here are of least error on their range, fitted by Lawson's algorithm in 60 digits. The coefficients stand
// with the lowest power first.
template <class V, class T, int n> TG_INLINE V horner(V x, const T (&coefficients)[n]) {
    V sum = splat<T>(coefficients[n - 1]);
#pragma GCC unroll 16
    for (int i = n - 2; i >= 0; i--) sum = sum * x + coefficients[i];
    return sum;
}

// Even and odd powers apart: two short chains of dependent operations instead of a long one, for one operation more.
template <class V, class T, int n> TG_INLINE V polynomial(V x, const T (&coefficients)[n]) {
    V square = x * x;
    V last = splat<T>(coefficients[n - 1]), before = splat<T>(coefficients[n - 2]);
#pragma GCC unroll 16
    for (int i = n - 3; i >= 0; i -= 2) {
        last = last * square + coefficients[i];
        if (i > 0) before = before * square + coefficients[i - 1];
    }
    return n % 2 ? before * x + last : last * x + before;
}

// x = n·ln 2 + r with n an integer and |r| ≤ ln 2 / 2. `power` is 2ⁿ where that is a normal number, and 0 for the first
// n that is too small.
template <class T> struct Reduced {
    vec<T> n, r, power;
};

template <class T> TG_INLINE Reduced<T> reduced(vec<T> x) {
    using E = Exponent<T>;
    constexpr T to_biased = E::to_integer + E::bias;
    vec<T> sum = x * static_cast<T>(1.44269504088896341) + to_biased, n = sum - to_biased;
    return {n, x - n * E::ln2_high - n * E::ln2_low, from_bits(as_bits(sum) << E::shift)};
}

// exp(r) − 1 for |r| ≤ ln 2 / 2: r + r²/2 + r³·q(r).
constexpr float EXPM1_FLOAT[] = {1.66666668e-1f, 4.16664806e-2f, 8.33328222e-3f, 1.39334843e-3f, 1.9909685e-4f};
constexpr double EXPM1_DOUBLE[] = {
    1.66666666666666767e-1, 4.16666666666666865e-2, 8.33333333332147824e-3, 1.38888888888721333e-3,
    1.98412698865787384e-4, 2.48015873521509232e-5, 2.75572436961724868e-6, 2.7557248887583715e-7,
    2.51092337073444576e-8, 2.09227690932335617e-9,
};
TG_INLINE vfloat near_zero_expm1(vfloat r) { return (horner(r, EXPM1_FLOAT) * r + 0.5f) * (r * r) + r; }
TG_INLINE vdouble near_zero_expm1(vdouble r) { return (polynomial(r, EXPM1_DOUBLE) * r + 0.5) * (r * r) + r; }

// exp(x) for LEAST ≤ x ≤ 80, in two thirds of the operations of `exp`. At LEAST it is 0; before that, what is below the
// normal numbers is inexact.
template <class T> constexpr T LEAST = sizeof(T) == 4 ? -88.0296919f : -709.0895657128240529;  // −127 ln 2, −1023 ln 2

template <class T> TG_INLINE vec<T> short_exp_by_polynomial(vec<T> x) {
    auto [n, r, power] = reduced<T>(x);
    return near_zero_expm1(r) * power + power;
}

#if TG_BYTES == 64 && defined(__AVX512F__)

// The bits of 2^(i/16), rounded, less those that the shift in `sixteenths` adds to them; and the logarithm of what the
// rounding has lost.
alignas(64) static const uint32_t ROOT_BITS[16] = {
    0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
    0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d,
};
alignas(64) static const float ROOT_LOW[16] = {
    0, 4.6285e-08f, -1.1992e-08f, 4.7298e-08f, 3.1934e-08f, 3.6211e-08f,
    -3.0991e-08f, -7.4752e-09f, 1.7114e-08f, -3.0477e-08f, 5.2333e-09f, 6.1076e-09f,
    -1.472e-08f, -5.2588e-09f, -6.1283e-09f, 5.1406e-09f,
};

// 2^(k/16) = rounded·exp(low), for a sum with k in its lowest bits.
struct Root {
    vfloat rounded, low;
};
TG_INLINE Root sixteenths(vfloat sum) {
    __m512i k = (__m512i)sum;
    vuint32 root = (vuint32)_mm512_maskz_permutexvar_epi32((__mmask16)-1, k, _mm512_load_si512(ROOT_BITS));
    vfloat low = (vfloat)_mm512_maskz_permutexvar_ps((__mmask16)-1, k, _mm512_load_ps(ROOT_LOW));
    return {(vfloat)(root + ((vuint32)sum << 19)), low};
}

// A table in a register leaves |r| ≤ ln 2 / 32, so small that a cubic will do.
TG_INLINE vfloat short_exp(vfloat x) {
    using E = Exponent<float>;
    vfloat sum = x * (16 * 1.44269504088896341f) + E::to_integer, n = sum - E::to_integer;
    auto [root, low] = sixteenths(sum);
    vfloat r = x - n * (E::ln2_high / 16) - n * (E::ln2_low / 16) + low;
    vfloat p = (0.16666667f * r + 0.50000978f) * r * r + r;
    return p * root + root;
}

#else
TG_INLINE vfloat short_exp(vfloat x) { return short_exp_by_polynomial<float>(x); }
#endif
TG_INLINE vdouble short_exp(vdouble x) { return short_exp_by_polynomial<double>(x); }

// exp(x) − 1 for x ≤ 0, to full relative precision; anything for others.
template <class T> TG_INLINE vec<T> expm1_by_polynomial(vec<T> x) {
    auto [n, r, power] = reduced<T>(larger(splat<T>(-44), x));  // below, the result is −1
    return near_zero_expm1(r) * power + (power - 1);
}
TG_INLINE vfloat expm1_below_zero(vfloat x) { return expm1_by_polynomial<float>(x); }
TG_INLINE vdouble expm1_below_zero(vdouble x) { return expm1_by_polynomial<double>(x); }

// (2ʳ − 1)/r for |r| ≤ ½.
constexpr float EXP2M1_FLOAT[] = {
    6.93147207e-1f, 2.40226513e-1f, 5.55032731e-2f, 9.61800804e-3f, 1.34004431e-3f, 1.54752029e-4f,
};
constexpr double EXP2M1_DOUBLE[] = {
    6.93147180559945308e-1, 2.40226506959100712e-1, 5.55041086648216998e-2, 9.61812910762849367e-3,
    1.33335581463901129e-3, 1.54035303933434539e-4, 1.52527338565548448e-5, 1.32154868313908963e-6,
    1.01780510726860255e-7, 7.05488880144898576e-9, 4.45669503422693282e-10, 2.5741118556169195e-11,
};
TG_INLINE vfloat near_zero_exp2m1(vfloat r) { return horner(r, EXP2M1_FLOAT) * r; }
TG_INLINE vdouble near_zero_exp2m1(vdouble r) { return polynomial(r, EXP2M1_DOUBLE) * r; }

// 2ˣ⁺ˢ for a constant s and x ≤ 100, and 0 from where it is below the normal numbers. The fewest operations of all, for
// what is of no account where |x| is large: there, the rounding of x weighs more than all else.
template <class T, int s> TG_INLINE vec<T> short_exp2(vec<T> x) {
    using E = Exponent<T>;
    x = larger(splat<T>(-E::bias - s), x);
#if TG_BYTES == 64 && defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
        constexpr T to_sixteenths = E::to_integer / 16 + s;
        vfloat sum = x + to_sixteenths;
        auto [root, low] = sixteenths(sum);
        vfloat r = x - (sum - to_sixteenths);
        return ((0.055505125f * r + 0.24022652f) * r + 0.69314718f) * r * root + root;
    }
#endif
    constexpr T to_biased = E::to_integer + E::bias + s;
    vec<T> sum = x + to_biased, r = x - (sum - to_biased), power = from_bits(as_bits(sum) << E::shift);
    return near_zero_exp2m1(r) * power + power;
}

// 2ⁿ for an integer n in the range of exponents.
template <class T> TG_INLINE vec<T> two_to(vec<T> n) {
    using E = Exponent<T>;
    return from_bits(as_bits(n + (E::to_integer + E::bias)) << E::shift);
}

// x·2ⁿ, in two steps since 2ⁿ itself may be too large or too small.
template <class T> TG_INLINE vec<T> times_two_to(vec<T> x, vec<T> n) {
    using E = Exponent<T>;
    vec<T> half = n * static_cast<T>(0.5) + E::to_integer - E::to_integer;
    return x * two_to<T>(half) * two_to<T>(n - half);
}

template <class T> TG_INLINE vec<T> exp_by_polynomial(vec<T> x) {
    using E = Exponent<T>;
    auto [n, r, power] = reduced<T>(clamped(x, splat<T>(E::to_zero), splat<T>(E::to_infinity)));
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
    return short_exp(larger(splat(LEAST<float>), x));
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

// tanh(x)/x = 1 + x²·p(x²) for |x| ≤ 1.
constexpr float TANH_FLOAT[] = {
    -0.333332989f, 0.133324112f, -0.0538840928f, 0.0214993711f, -0.00796517079f, 0.00231543572f, -3.62514676e-4f,
};
constexpr double TANH_DOUBLE[] = {
    -3.3333333333333298e-1, 1.3333333333329384e-1,  -5.3968253966596429e-2, 2.1869488500775178e-2,
    -8.8632350777644118e-3, 3.5921242460681129e-3,  -1.4558123130156342e-3, 5.8993471457983299e-4,
    -2.388409659259819e-4,  9.6241964529184714e-5,  -3.8082828669866869e-5, 1.4298402708100751e-5,
    -4.7708511981366685e-6, 1.2772953105905325e-6,  -2.3468153356164508e-7, 2.1516537088953542e-8,
};
TG_INLINE vfloat tanh_rest(vfloat square) { return horner(square, TANH_FLOAT); }
TG_INLINE vdouble tanh_rest(vdouble square) { return polynomial(square, TANH_DOUBLE); }

// Beyond, it is 1 − 2e/(1 + e) with e = exp(−2|x|): exactly ±1 where |x| is large.
template <class T> TG_INLINE vec<T> tanh_of(vec<T> x) {
    vec<T> size = magnitude(x), square = x * x;
    vec<T> e = short_exp(larger(splat(LEAST<T>), -2 * size));
    vec<T> large = 1 - 2 * (e / (1 + e));
    vec<T> small = size * square * tanh_rest(square) + size;
    vec<T> result = size < 1 ? small : large;
    return from_bits(as_bits(result) | (as_bits(x) & as_bits(splat<T>(static_cast<T>(-0.0)))));
}
TG_INLINE vfloat tanh(vfloat x) { return tanh_of<float>(x); }
TG_INLINE vdouble tanh(vdouble x) { return tanh_of<double>(x); }

}  // namespace tilegrad::cpu::TG_ISA
