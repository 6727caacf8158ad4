// The activations of `linear`, each above its derivative, on float or double. They are what engine/activations.py says,
// with torch's defaults for parameters.
//
// Nothing overflows on the way, and no NaN gets lost: maxima and minima, which drop them, stand only where z comes in
// again.
#pragma once

#include "platform.cuh"

namespace tilegrad::cuda {

// Numbered in the order of tilegrad.activations.ACTIVATIONS; −1: none. The gated ones are the last.
constexpr int FIRST_GATED = 12;
__host__ __device__ constexpr bool is_gated(int activation) { return activation >= FIRST_GATED; }

// --- what they are made of -------------------------------------------------------------------------------------------

// For results that keep all digits of a float or a double …
struct Accurate {
    __device__ static float exp(float x) { return expf(x); }
    __device__ static double exp(double x) { return ::exp(x); }
    template <class T> __device__ static T quotient(T a, T b) { return a / b; }
};

// … and for those that are rounded to 16 bits: the hardware's 2ˣ and 1/x, in a third of the instructions. Both err by
// some 2⁻²², and exp by 2⁻¹⁷ where its argument is −80: far less than half of the last of 11 digits.
struct Rough {
    __device__ static float exp(float x) { return __expf(x); }
    __device__ static float quotient(float a, float b) { return __fdividef(a, b); }
};

constexpr double SELU_ALPHA = 1.6732632423543772848170429916717;  // Klambauer et al. 2017, "Self-Normalizing Networks"
constexpr double SELU_SCALE = 1.0507009873554804934193349852946;
constexpr double GELU_TANH_SCALE = 0.79788456080286535588;  // √(2/π)
constexpr double GELU_TANH_CUBIC = 0.044715;  // Hendrycks & Gimpel 2016, "Gaussian Error Linear Units"
constexpr double NORMAL_DENSITY = 0.39894228040143267794;  // 1/√(2π)
constexpr double SQRT_HALF = 0.70710678118654752440;
constexpr double LEAKY_SLOPE = 0.01;
constexpr int SOFTPLUS_THRESHOLD = 20;

// a·b + c, rounded once: the compiler would make it of the two, but not when it compiles for a CPU.
__device__ inline float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double multiply_add(double a, double b, double c) { return fma(a, b, c); }

__device__ inline float magnitude(float z) { return fabsf(z); }
__device__ inline double magnitude(double z) { return fabs(z); }

// exp of a negative number only: neither side overflows, and small results keep their relative precision.
template <class Math, class T> __device__ T sigmoid(Math, T z) {
    T e = Math::exp(-magnitude(z));
    return Math::quotient(z >= 0 ? T(1) : e, 1 + e);
}
template <class Math, class T> __device__ T sigmoid_grad(Math, T z) {
    T e = Math::exp(-magnitude(z)), tail = Math::quotient(e, 1 + e);
    return multiply_add(-tail, tail, tail);  // of the tail, which is at most ½, as 1 less it cancels
}

// ½ erfc(|z|/√2): how much of a normal distribution lies beyond |z|.
//
// In float exp(−z²/2) t P(t) with t = 1/(1 + 0.3|z|), the form of Abramowitz & Stegun 1964, 7.1.26. P is of degree 7,
// fitted so that no error is above 1e-8, and none in the tail above 3e-7 of the value. It takes half as many
// instructions as erfc, shares its exponential with the density in the derivative, and cancels nowhere.
template <class Math> __device__ double normal_tail(Math, double z) { return 0.5 * erfc(magnitude(z) * SQRT_HALF); }
template <class Math> __device__ float normal_tail(Math, float z) {
    float t = Math::quotient(1.0f, 1.0f + 0.3f * magnitude(z));
    float p = 0.03598302975296974f * t - 0.1581791192293167f;
    p = p * t + 0.20747333765029907f;
    p = p * t - 0.054177287966012955f;
    p = p * t + 0.12853559851646423f;
    p = p * t + 0.10000619292259216f;
    p = p * t + 0.12072644382715225f;
    p = p * t + 0.11963183432817459f;
    return Math::exp(-0.5f * z * z) * (t * p);
}
template <class Math, class T> __device__ T normal_cdf(Math math, T z) {
    T tail = normal_tail(math, z);
    return z < 0 ? tail : 1 - tail;
}

// --- the activations -------------------------------------------------------------------------------------------------

struct Identity {
    template <class Math, class T> __device__ static T of(Math, T z) { return z; }
    template <class Math, class T> __device__ static T grad(Math, T) { return 1; }
};

struct Relu {
    template <class Math, class T> __device__ static T of(Math, T z) { return z <= 0 ? 0 : z; }  // keeps NaN
    template <class Math, class T> __device__ static T grad(Math, T z) { return z <= 0 ? 0 : 1; }  // 1 for NaN: torch's
};

struct LeakyRelu {
    template <class Math, class T> __device__ static T of(Math, T z) { return z > 0 ? z : z * T(LEAKY_SLOPE); }
    template <class Math, class T> __device__ static T grad(Math, T z) { return z > 0 ? 1 : T(LEAKY_SLOPE); }
};

struct Elu {
    __device__ static float expm1_of(float z) { return expm1f(z); }
    __device__ static double expm1_of(double z) { return expm1(z); }

    template <class Math, class T> __device__ static T of(Math, T z) { return z > 0 ? z : expm1_of(z); }
    template <class Math, class T> __device__ static T grad(Math, T z) { return z > 0 ? 1 : Math::exp(z); }
};

struct Selu {
    template <class Math, class T> __device__ static T of(Math, T z) {
        return z > 0 ? z * T(SELU_SCALE) : Elu::expm1_of(z) * T(SELU_SCALE * SELU_ALPHA);
    }
    template <class Math, class T> __device__ static T grad(Math, T z) {
        return z > 0 ? T(SELU_SCALE) : Math::exp(z) * T(SELU_SCALE * SELU_ALPHA);
    }
};

struct Gelu {
    template <class Math, class T> __device__ static T of(Math math, T z) { return z * normal_cdf(math, z); }
    template <class Math, class T> __device__ static T grad(Math math, T z) {
        return normal_cdf(math, z) + z * (Math::exp(T(-0.5) * z * z) * T(NORMAL_DENSITY));
    }
};

struct GeluTanh {
    template <class T> __device__ static T doubled(T z) {
        return 2 * (z * T(GELU_TANH_SCALE)) * (1 + z * z * T(GELU_TANH_CUBIC));
    }
    // 0.5 (1 + tanh u) = sigmoid(2u), without the cancellation that 1 + tanh u has for negative u.
    template <class Math, class T> __device__ static T of(Math math, T z) { return z * sigmoid(math, doubled(z)); }
    template <class Math, class T> __device__ static T grad(Math math, T z) {
        T square = z * z;
        square = square > T(1e4) ? T(1e4) : square;  // where the slope of the sigmoid is 0, which no inf may meet
        T slope = (2 + 6 * (square * T(GELU_TANH_CUBIC))) * T(GELU_TANH_SCALE);
        return sigmoid(math, doubled(z)) + z * sigmoid_grad(math, doubled(z)) * slope;
    }
};

struct Silu {
    template <class Math, class T> __device__ static T of(Math math, T z) { return z * sigmoid(math, z); }
    template <class Math, class T> __device__ static T grad(Math math, T z) {
        return sigmoid(math, z) + z * sigmoid_grad(math, z);
    }
};

struct Mish {
    // z tanh(log(1 + e)), e = exp(z): the tanh is w/(w + 2) with w = (1 + e)² − 1 = e (e + 2), where nothing cancels.
    // At softplus' threshold it has come to 1.
    template <class T> __device__ static T capped(T z) { return z > SOFTPLUS_THRESHOLD ? T(SOFTPLUS_THRESHOLD) : z; }

    template <class Math, class T> __device__ static T of(Math, T z) {
        T e = Math::exp(capped(z)), w = e * (e + 2);
        return z * Math::quotient(w, w + 2);
    }
    // t + z (1 − t²) sigmoid(z), where 1 − t² = 4 (1 + e)²/(w + 2)².
    template <class Math, class T> __device__ static T grad(Math, T z) {
        T e = Math::exp(capped(z)), w = e * (e + 2), s = Math::quotient(T(1), w + 2);
        T slope = z > SOFTPLUS_THRESHOLD ? 0 : (4 * e * s) * ((1 + e) * s);
        return w * s + z * slope;
    }
};

struct Sigmoid {
    template <class Math, class T> __device__ static T of(Math math, T z) { return sigmoid(math, z); }
    template <class Math, class T> __device__ static T grad(Math math, T z) { return sigmoid_grad(math, z); }
};

struct Tanh {
    __device__ static float tanh_of(float z) { return tanhf(z); }
    __device__ static double tanh_of(double z) { return tanh(z); }

    template <class Math, class T> __device__ static T of(Math, T z) { return tanh_of(z); }
    template <class Math, class T> __device__ static T grad(Math math, T z) {
        return 4 * sigmoid_grad(math, 2 * z);  // not 1 − tanh², which cancels
    }
};

struct Softplus {
    __device__ static float log1p_of(float x) { return log1pf(x); }
    __device__ static double log1p_of(double x) { return log1p(x); }

    // torch returns z itself above the threshold; below it log(1 + exp(z)).
    template <class Math, class T> __device__ static T of(Math, T z) {
        return z > SOFTPLUS_THRESHOLD ? z : (z > 0 ? z : 0) + log1p_of(Math::exp(-magnitude(z)));
    }
    template <class Math, class T> __device__ static T grad(Math math, T z) {
        return z > SOFTPLUS_THRESHOLD ? 1 : sigmoid(math, z);
    }
};

struct Relu2 {
    template <class Math, class T> __device__ static T of(Math math, T z) { T y = Relu::of(math, z); return y * y; }
    template <class Math, class T> __device__ static T grad(Math math, T z) { return 2 * Relu::of(math, z); }
};

// Call f with the activation of a number; of gated ones, with that of the gate.
template <class F> __device__ inline void of_activation(int number, F f) {
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
        case FIRST_GATED: return f(Silu{});
        case FIRST_GATED + 1: return f(Gelu{});
        default: return f(Identity{});
    }
}

}  // namespace tilegrad::cuda
