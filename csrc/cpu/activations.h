// The activations of `linear` on vectors, each above its derivative, as types that a loop takes for a parameter. They
// are what engine/activations.py says, with torch's defaults for parameters.
//
// Both functions take the pre-activation, in float or double. Nothing overflows on the way, and no NaN gets lost. Small
// results have their full relative precision unless they are differences by nature, or below the normal numbers.
#pragma once

#include "vec.h"
#include "exp.h"

namespace tilegrad::cpu::TG_ISA {

constexpr double SELU_ALPHA = 1.6732632423543772848170429916717;  // Klambauer et al. 2017, "Self-Normalizing Networks"
constexpr double SELU_SCALE = 1.0507009873554804934193349852946;
constexpr double GELU_TANH_SCALE = 0.79788456080286535588;  // √(2/π)
constexpr double GELU_TANH_CUBIC = 0.044715;  // Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"
constexpr double NORMAL_DENSITY = 0.39894228040143267794;  // 1/√(2π)
constexpr double LEAKY_SLOPE = 0.01;
constexpr int SOFTPLUS_THRESHOLD = 20;

// --- building blocks -------------------------------------------------------------------------------------------------

// A number, rounded to what V holds.
template <class V> TG_INLINE V rounded(double x) {
    if constexpr (sizeof(V{}[0]) == 4)
        return splat<float>(static_cast<float>(x));
    else
        return splat<double>(x);
}

// The coefficients stand with the lowest power first. Even and odd powers go apart: two short chains of dependent
// operations instead of a long one.
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

// exp(x + low) for x ≤ 80 and a low that is much smaller, in two thirds of the operations of exp. Results below the
// normal numbers may become 0.
template <class T> TG_INLINE vec<T> short_exp_by_polynomial(vec<T> x, vec<T> low) {
    auto [n, r] = reduced<T>(larger(splat<T>(sizeof(T) == 4 ? -88 : -709), x));  // there, 2ⁿ is 0
    vec<T> power = two_to<T>(n);
    return near_zero_expm1(r + low) * power + power;
}

TG_INLINE vfloat short_exp(vfloat x, vfloat low) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    // As exp, but with n counted in sixteenths.
    using E = Exponent<float>;
    constexpr float to_sixteenths = E::to_integer / 16;
    x = larger(splat(-110.0f), x);
    vfloat sum = x * 1.44269504088896341f + to_sixteenths, n = sum - to_sixteenths;
    vfloat r = x - n * E::ln2_high - n * E::ln2_low + low;
    vfloat p = (0.16666667f * r + 0.50000978f) * r * r + r;
    __m512 roots = _mm512_load_ps(SIXTEENTH_ROOTS_OF_TWO);
    vfloat root = (vfloat)_mm512_maskz_permutexvar_ps((__mmask16)-1, (__m512i)sum, roots);
    return (vfloat)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)(p * root + root), (__m512)n);
#else
    return short_exp_by_polynomial<float>(x, low);
#endif
}
TG_INLINE vdouble short_exp(vdouble x, vdouble low) { return short_exp_by_polynomial<double>(x, low); }

template <class V> TG_INLINE V short_exp(V x) { return short_exp(x, rounded<V>(-0.0)); }

// eˣ − 1 for x ≤ 0, exact to the last bits also where x is small; anything for others.
template <class T> TG_INLINE vec<T> expm1_by_parts(vec<T> x) {
    auto [n, r] = reduced<T>(larger(splat<T>(-44), x));  // below, the result is −1
    vec<T> power = two_to<T>(n);
    return near_zero_expm1(r) * power + (power - 1);
}
TG_INLINE vfloat expm1_below_zero(vfloat x) { return expm1_by_parts<float>(x); }
TG_INLINE vdouble expm1_below_zero(vdouble x) { return expm1_by_parts<double>(x); }

// log(1 + x) for x in [0, 1], to full relative precision: as log has it, for 1 + x = 1 + f or 2 (1 + f).
template <class V> TG_INLINE V log1p_of_fraction(V x) {
    auto doubled = x > 0.4140625f;
    V f = doubled ? x * 0.5f - 0.5f : x;
    V s = f / (2 + f), half_square = f * f * 0.5f;
    V rest = s * (half_square + log_rest(s * s)) - half_square;
    return rest + f + (doubled ? rounded<V>(0.69314718055994530942) : V{});
}

template <class V> TG_INLINE V sigmoid(V z) {
    // exp of a negative number only: neither side overflows, and small results keep their relative precision.
    V e = short_exp(-magnitude(z));
    return (z >= 0 ? rounded<V>(1) : e) * (1 / (1 + e));
}

template <class V> TG_INLINE V sigmoid_grad(V z) {
    V e = short_exp(-magnitude(z));
    V s = 1 / (1 + e);
    return e * s * s;  // not s (1 − s), which cancels
}

// --- the normal distribution -----------------------------------------------------------------------------------------

// x·y − product, where that is x·y rounded.
TG_INLINE vfloat product_error(vfloat x, vfloat y, vfloat product) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vfloat)_mm512_fmsub_ps((__m512)x, (__m512)y, (__m512)product);
#elif TG_BYTES == 32 && defined(__FMA__)
    return (vfloat)_mm256_fmsub_ps((__m256)x, (__m256)y, (__m256)product);
#else
    // Products of halves are exact (Dekker 1971, "A floating-point technique for extending the available precision").
    vfloat x_head = from_bits(as_bits(x) & ~0xfff), x_rest = x - x_head;
    vfloat y_head = from_bits(as_bits(y) & ~0xfff), y_rest = y - y_head;
    return x_head * y_head - product + (x_head * y_rest + x_rest * y_head) + x_rest * y_rest;
#endif
}

TG_INLINE vdouble product_error(vdouble x, vdouble y, vdouble product) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vdouble)_mm512_fmsub_pd((__m512d)x, (__m512d)y, (__m512d)product);
#elif TG_BYTES == 32 && defined(__FMA__)
    return (vdouble)_mm256_fmsub_pd((__m256d)x, (__m256d)y, (__m256d)product);
#else
    vdouble x_head = from_bits(as_bits(x) & ~int64_t(0x7ffffff)), x_rest = x - x_head;
    vdouble y_head = from_bits(as_bits(y) & ~int64_t(0x7ffffff)), y_rest = y - y_head;
    return x_head * y_head - product + (x_head * y_rest + x_rest * y_head) + x_rest * y_rest;
#endif
}

// From where exp(−z²/2) is 0.
TG_INLINE vfloat normal_end(vfloat) { return splat<float>(16); }
TG_INLINE vdouble normal_end(vdouble) { return splat<double>(40); }

// exp(−z²/2), in which the rounding of z² would be amplified by z²/2.
template <class V> TG_INLINE V gaussian(V z) {
    V y = smaller(normal_end(z), magnitude(z));  // NaN stays
    V half = y * -0.5f, x = y * half;
    return short_exp(x, product_error(y, half, x));
}

// (a + 4) exp(a²/2) erfc(a/√2)/2 is smooth from 0 to where the tail is 0 as a function of u = 1/(a + 4). In float it is
// a polynomial in u, to 1e-7; in double one in 1 − 8u, which lies in [−1, 1], to 4e-17. The idea is that of Schonfelder
// 1978, "Chebyshev expansions for the error and related functions"; the coefficients were fitted for these ranges.
constexpr float TAIL_FLOAT[] = {
    0.399171337f, 1.5774918f, 6.60595923f, 8.94484086f, 201.86728f, -815.987298f, 4759.07321f, -9837.67567f, 6599.442f,
};
constexpr double TAIL_DOUBLE[] = {
    7.5528513041575148e-1, -6.0789664197189177e-1, 3.8713740074221872e-1, -1.8652185795969299e-1,
    6.0396574890706599e-2, -7.5401889656226678e-3, -3.4796923623715906e-3, 1.6308184422239424e-3,
    1.3334425522449718e-4, -2.3109482030472139e-4, -1.9078730959333091e-6, 3.5144187813104212e-5,
    7.1502765135451109e-7, -5.9189050803965809e-6, -6.2517856405123012e-7, 1.0198152807723923e-6,
    2.6374251424953201e-7, -1.5426167593457165e-7, -7.6424829783780222e-8, 1.4569488564608778e-8,
    1.3938808852558356e-8, 7.7318958086256081e-11, -9.6615755481552986e-10,
};

TG_INLINE vfloat tail_factor(vfloat u) { return polynomial(u, TAIL_FLOAT); }
TG_INLINE vdouble tail_factor(vdouble u) { return polynomial(1 - 8 * u, TAIL_DOUBLE); }

// How much of a normal distribution lies below z. The exponential is shared with the density, and nothing cancels.
template <class V> TG_INLINE V normal_cdf(V z) {
    V u = 1 / (smaller(normal_end(z), magnitude(z)) + 4);
    V tail = gaussian(z) * (u * tail_factor(u));
    return z < 0 ? tail : 1 - tail;
}

// --- the activations -------------------------------------------------------------------------------------------------

struct Activation {
    static constexpr bool linear = false;
    static constexpr bool gated = false;  // of one half of z (the gate), times the other
};

struct Identity : Activation {
    static constexpr bool linear = true;
    template <class V> TG_INLINE V of(V z) { return z; }
};

struct Relu : Activation {
    template <class V> TG_INLINE V of(V z) { return z <= 0 ? V{} : z; }  // keeps NaN
    template <class V> TG_INLINE V grad(V z) { return z <= 0 ? V{} : rounded<V>(1); }  // 1 for NaN, as in torch
};

struct LeakyRelu : Activation {
    template <class V> TG_INLINE V of(V z) { return z > 0 ? z : z * rounded<V>(LEAKY_SLOPE); }
    template <class V> TG_INLINE V grad(V z) { return z > 0 ? rounded<V>(1) : rounded<V>(LEAKY_SLOPE); }
};

struct Elu : Activation {
    template <class V> TG_INLINE V of(V z) { return z > 0 ? z : expm1_below_zero(z); }
    template <class V> TG_INLINE V grad(V z) { return z > 0 ? rounded<V>(1) : short_exp(z); }
};

struct Selu : Activation {
    template <class V> TG_INLINE V of(V z) {
        return z > 0 ? z * rounded<V>(SELU_SCALE) : expm1_below_zero(z) * rounded<V>(SELU_SCALE * SELU_ALPHA);
    }
    template <class V> TG_INLINE V grad(V z) {
        return z > 0 ? rounded<V>(SELU_SCALE) : short_exp(z) * rounded<V>(SELU_SCALE * SELU_ALPHA);
    }
};

struct Gelu : Activation {
    template <class V> TG_INLINE V of(V z) { return z * normal_cdf(z); }
    template <class V> TG_INLINE V grad(V z) {
        return normal_cdf(z) + z * (gaussian(z) * rounded<V>(NORMAL_DENSITY));
    }
};

struct GeluTanh : Activation {
    // ½ (1 + tanh u) = sigmoid(2u), without the cancellation that 1 + tanh u has for negative u.
    template <class V> TG_INLINE V doubled(V z) {
        return z * rounded<V>(2 * GELU_TANH_SCALE) * (1 + z * z * rounded<V>(GELU_TANH_CUBIC));
    }
    template <class V> TG_INLINE V of(V z) { return z * sigmoid(doubled(z)); }
    template <class V> TG_INLINE V grad(V z) {
        V u = doubled(z);
        // Where the slope of the sigmoid has long come to 0, no inf may meet it.
        V square = smaller(rounded<V>(1e4), z * z);
        V slope = rounded<V>(2 * GELU_TANH_SCALE) + square * rounded<V>(6 * GELU_TANH_SCALE * GELU_TANH_CUBIC);
        return sigmoid(u) + z * sigmoid_grad(u) * slope;
    }
};

struct Silu : Activation {
    template <class V> TG_INLINE V of(V z) { return z * sigmoid(z); }
    template <class V> TG_INLINE V grad(V z) { return sigmoid(z) + z * sigmoid_grad(z); }
};

struct Mish : Activation {
    // z tanh(log(1 + e)), e = exp(z): the tanh is w / (w + 2) with w = (1 + e)² − 1 = e (e + 2), where nothing cancels.
    // At the threshold it has come to 1.
    template <class V> TG_INLINE V capped_exp(V z) { return short_exp(smaller(rounded<V>(SOFTPLUS_THRESHOLD), z)); }
    template <class V> TG_INLINE V of(V z) {
        V e = capped_exp(z);
        V w = e * (e + 2);
        return z * (w / (w + 2));
    }
    template <class V> TG_INLINE V grad(V z) {
        // t + z (1 − t²) sigmoid(z), where 1 − t² = 4 (1 + e)² / (w + 2)².
        V e = capped_exp(z);
        V w = e * (e + 2);
        V s = 1 / (w + 2);
        V slope = z > SOFTPLUS_THRESHOLD ? V{} : 4 * e * s * ((1 + e) * s);
        return w * s + z * slope;
    }
};

struct Sigmoid : Activation {
    template <class V> TG_INLINE V of(V z) { return sigmoid(z); }
    template <class V> TG_INLINE V grad(V z) { return sigmoid_grad(z); }
};

struct Tanh : Activation {
    TG_INLINE vfloat of(vfloat z) { return tanh_by_expm1<float>(z); }
    TG_INLINE vdouble of(vdouble z) { return tanh_by_expm1<double>(z); }
    template <class V> TG_INLINE V grad(V z) {
        V e = short_exp(-2 * magnitude(z));
        V s = 2 / (1 + e);
        return e * s * s;  // not 1 − tanh², which cancels
    }
};

struct Softplus : Activation {
    template <class V> TG_INLINE V of(V z) {
        V sum = larger(z, V{}) + log1p_of_fraction(short_exp(-magnitude(z)));
        return z > SOFTPLUS_THRESHOLD ? z : sum;
    }
    template <class V> TG_INLINE V grad(V z) { return z > SOFTPLUS_THRESHOLD ? rounded<V>(1) : sigmoid(z); }
};

struct Relu2 : Activation {
    template <class V> TG_INLINE V of(V z) { return Relu::of(z) * Relu::of(z); }
    template <class V> TG_INLINE V grad(V z) { return 2 * Relu::of(z); }
};

struct Swiglu : Silu {
    static constexpr bool gated = true;
};

struct Geglu : Gelu {
    static constexpr bool gated = true;
};

// Call f with the activation of a number.
template <class F> TG_INLINE void of_activation(int number, F f) {
    switch (number) {
        case 0: return f(Relu{});
        case 1: return f(LeakyRelu{});
        case 2: return f(Elu{});
        case 3: return f(Selu{});
        case 4: return f(Gelu{});
        case 5: return f(GeluTanh{});
        case 6: return f(Silu{});
        case 7: return f(Mish{});
        case 8: return f(Sigmoid{});
        case 9: return f(Tanh{});
        case 10: return f(Softplus{});
        case 11: return f(Relu2{});
        case 12: return f(Swiglu{});
        case 13: return f(Geglu{});
        default: return f(Identity{});
    }
}

}  // namespace tilegrad::cpu::TG_ISA
