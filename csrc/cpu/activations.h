// The activations of `linear` on vectors, each above its derivative, as types that a loop takes for a parameter. They
// are what engine/activations.py says, with torch's defaults for parameters.
//
// Both functions take the pre-activation, in float or double. Nothing overflows on the way, and no NaN gets lost. Small
// results have their full relative precision unless they are differences by nature, next to the smallest normal number
// or below it, or an exponential of a large argument that has been rounded: the far tails of gelu and gelu_tanh.
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

// What a vector V holds.
template <class V> using element = decltype(V{}[0] + 0);

// A number, rounded to that.
template <class V> TG_INLINE V rounded(double x) { return splat(static_cast<element<V>>(x)); }

template <class V> TG_INLINE V exp_below_zero(V z) {
    return short_exp(larger(rounded<V>(LEAST<element<V>>), z));
}

// log(1 + x) for x in [0, √2 − 1], to full relative precision, as log has it.
template <class V> TG_INLINE V log1p_of_fraction(V x) {
    V s = x / (2 + x), half_square = x * x * 0.5f;
    return s * (half_square + log_rest(s * s)) - half_square + x;
}

// Most of these functions rise from 0 to 1 symmetrically, as 1 − tail(|z|) for z ≥ 0 and tail(|z|) below; or they are z
// times such a function, and their derivative has that symmetry. The tail is at most ½: its error hardly counts in the
// difference, and it has its relative precision where it is the result.
template <class V> TG_INLINE V step_from_tail(V z, V tail) { return z >= 0 ? 1 - tail : tail; }

// z times that, as max(z, 0) − |z|·tail, which is rounded once. `size` is |z|, limited to where the tail has come to 0:
// an inf that meets it makes NaN for z < 0, as in torch, and must not for z > 0.
template <class V> TG_INLINE V ramp_from_tail(V z, V size, V tail) {
    return smaller(-size, z) * tail + larger(rounded<V>(-0.0), z);
}

// |z| up to where exp(−|z|) is 0; NaN stays.
template <class V> TG_INLINE V capped_magnitude(V z) {
    return smaller(rounded<V>(-LEAST<element<V>>), magnitude(z));
}

// sigmoid(−size)
template <class V> TG_INLINE V sigmoid_tail(V size) {
    V e = short_exp(-size);
    return e / (1 + e);
}

template <class V> TG_INLINE V sigmoid(V z) { return step_from_tail(z, sigmoid_tail(capped_magnitude(z))); }

template <class V> TG_INLINE V sigmoid_grad(V z) {
    V tail = sigmoid_tail(capped_magnitude(z));
    return tail - tail * tail;
}

// --- the normal distribution -----------------------------------------------------------------------------------------

// From where exp(−y²/2) is 0, also in the sigmoid of gelu_tanh.
TG_INLINE vfloat normal_end(vfloat) { return splat<float>(16); }
TG_INLINE vdouble normal_end(vdouble) { return splat<double>(40); }

// Ratios of polynomials on [0, normal_end], fitted by Lawson's algorithm on the linearised problem. MILLS is
// exp(y²/2)·erfc(y/√2)/2, Mills' ratio over √(2π): in float to 2e-8 up to y = 2 and to 5e-5 where exp(−y²/2) is next to
// 0, in double to 6e-17. LOG is log₂ of its double, divided by y, for a tail as exact.
constexpr float MILLS_FLOAT[] = {0.499999989f, 0.3276941f, 0.100756428f, 0.0128098485f};
constexpr float MILLS_FLOAT_BELOW[] = {1, 1.45327125f, 0.861072039f, 0.251911352f, 0.0321340814f};
constexpr float LOG_FLOAT[] = {-1.151103675f, -0.4252772785f, -0.08167832176f, -0.002446286775f};
constexpr float LOG_FLOAT_BELOW[] = {1, 0.5971637306f, 0.1614052232f, 0.01767519074f, 0.0002956525035f};
constexpr double MILLS_DOUBLE[] = {
    0.49999999999999994, 0.77497592027256923, 0.59419441912026649, 0.28943867982085297,
    0.097747039402416872, 0.023637020706417287, 0.0040924183138889847, 0.00049086692034801043,
    3.7295026014351549e-05, 1.3875219206756434e-06,
};
constexpr double MILLS_DOUBLE_BELOW[] = {
    1, 2.3478364013479935, 2.5616912541673851, 1.7148545804751372,
    0.78233858417318536, 0.2550866829996864, 0.060472689751710877, 0.010351656212817166,
    0.0012338989035010517, 9.3484766708557023e-05, 3.478001678046087e-06,
};
// The distribution function less ½, divided by z, in z² up to 0.5625, to 5e-18.
constexpr double CENTRE_DOUBLE[] = {
    0.39894228040143265, -0.066490380066904206, 0.0099735570099769352, -0.0011873282144024143,
    0.00011543467772260752, -9.4446051962035894e-06, 6.6581420072044143e-07, -4.0950704709231671e-08,
    2.0058459666591284e-09,
};
constexpr double HALF_LOG2_E = 0.72134752044448170368;

// exp(−y²/2)
TG_INLINE vfloat gaussian(vfloat y) { return short_exp2<float, 0>(y * y * static_cast<float>(-HALF_LOG2_E)); }
TG_INLINE vdouble gaussian(vdouble y) { return short_exp2<double, 0>(y * y * -HALF_LOG2_E); }

// How much of a normal distribution lies above y, for y in [0, normal_end]. Near 0, where that is ½, a product of
// rounded factors would be too coarse. In float it is ½ exp of a small sum, in double ½ less a small number.
TG_INLINE vfloat normal_tail(vfloat y) {
    vfloat log = polynomial(y, LOG_FLOAT) * y / polynomial(y, LOG_FLOAT_BELOW);
    return short_exp2<float, -1>(y * y * static_cast<float>(-HALF_LOG2_E) + log);
}
TG_INLINE vdouble normal_tail(vdouble y, vdouble gaussian) {
    vdouble square = y * y;
    vdouble far = gaussian * (polynomial(y, MILLS_DOUBLE) / polynomial(y, MILLS_DOUBLE_BELOW));
    return square < 0.5625 ? 0.5 - y * polynomial(square, CENTRE_DOUBLE) : far;
}
TG_INLINE vdouble normal_tail(vdouble y) { return normal_tail(y, gaussian(y)); }

// The tail less x·exp(−y²/2), with which it shares the exponential.
TG_INLINE vfloat normal_tail_less(vfloat y, vfloat x) {
    vfloat mills = polynomial(y, MILLS_FLOAT) / polynomial(y, MILLS_FLOAT_BELOW);
    return gaussian(y) * (mills - x);
}
TG_INLINE vdouble normal_tail_less(vdouble y, vdouble x) {
    vdouble g = gaussian(y);
    return normal_tail(y, g) - x * g;
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
    template <class V> TG_INLINE V grad(V z) { return z > 0 ? rounded<V>(1) : exp_below_zero(z); }
};

struct Selu : Activation {
    template <class V> TG_INLINE V of(V z) {
        return z > 0 ? z * rounded<V>(SELU_SCALE) : expm1_below_zero(z) * rounded<V>(SELU_SCALE * SELU_ALPHA);
    }
    template <class V> TG_INLINE V grad(V z) {
        return z > 0 ? rounded<V>(SELU_SCALE) : exp_below_zero(z) * rounded<V>(SELU_SCALE * SELU_ALPHA);
    }
};

struct Gelu : Activation {
    template <class V> TG_INLINE V of(V z) {
        V size = smaller(normal_end(z), magnitude(z));
        return ramp_from_tail(z, size, normal_tail(size));
    }
    template <class V> TG_INLINE V grad(V z) {
        V size = smaller(normal_end(z), magnitude(z));
        return step_from_tail(z, normal_tail_less(size, magnitude(z) * rounded<V>(NORMAL_DENSITY)));
    }
};

struct GeluTanh : Activation {
    // ½ (1 + tanh u) = sigmoid(2u), without the cancellation that 1 + tanh u has for negative u.
    template <class V> TG_INLINE V doubled(V size) {
        V cubic = size * size * rounded<V>(2 * GELU_TANH_SCALE * GELU_TANH_CUBIC);
        return capped_magnitude(size * (cubic + rounded<V>(2 * GELU_TANH_SCALE)));
    }
    template <class V> TG_INLINE V of(V z) {
        V size = smaller(normal_end(z), magnitude(z));
        return ramp_from_tail(z, size, sigmoid_tail(doubled(size)));
    }
    template <class V> TG_INLINE V grad(V z) {
        V size = smaller(normal_end(z), magnitude(z));
        V slope = size * size * rounded<V>(6 * GELU_TANH_SCALE * GELU_TANH_CUBIC) + rounded<V>(2 * GELU_TANH_SCALE);
        // What the sum loses comes back by the derivative of the tail, which is at hand. At inf, the result is NaN.
        V e = short_exp(-doubled(size));
        V sum = 1 + e, lost = e - (sum - 1) + (z - z), t = e / sum;
        return step_from_tail(z, t - t * (1 - t) * (size * slope + lost));
    }
};

struct Silu : Activation {
    template <class V> TG_INLINE V of(V z) {
        V size = capped_magnitude(z);
        return ramp_from_tail(z, size, sigmoid_tail(size));
    }
    template <class V> TG_INLINE V grad(V z) {
        V t = sigmoid_tail(capped_magnitude(z));
        return step_from_tail(z, t - t * (1 - t) * magnitude(z));
    }
};

struct Mish : Activation {
    // tanh(log(1 + exp(z))) with e = exp(−|z|), where nothing overflows or cancels: 1 − 2e²/(1 + 2e + 2e²) for z ≥ 0,
    // and (e² + 2e)/(e² + 2e + 2) below.
    template <class V> TG_INLINE V of(V z) {
        V size = capped_magnitude(z), e = short_exp(-size), square = e * e;
        V above = z >= 0 ? 2 * square : square + 2 * e;
        V below = z >= 0 ? above + (1 + 2 * e) : above + 2;
        return ramp_from_tail(z, size, above / below);
    }
    template <class V> TG_INLINE V grad(V z) {
        // t + z (1 − t²) sigmoid(z), with (1 − t²) sigmoid(z) = 4e²(1 + e)/below² for z ≥ 0, 4e(1 + e)/below² else.
        V e = short_exp(-capped_magnitude(z)), square = e * e;
        V above = z >= 0 ? 2 * square : square + 2 * e;
        V below = z >= 0 ? above + (1 + 2 * e) : above + 2;
        V by_below = 1 / below, first = 4 * (z >= 0 ? square : e) * (1 + e);
        return step_from_tail(z, (above - magnitude(z) * (first * by_below)) * by_below);
    }
};

struct Sigmoid : Activation {
    template <class V> TG_INLINE V of(V z) { return sigmoid(z); }
    template <class V> TG_INLINE V grad(V z) { return sigmoid_grad(z); }
};

struct Tanh : Activation {
    template <class V> TG_INLINE V of(V z) { return tanh(z); }
    template <class V> TG_INLINE V grad(V z) {
        return 4 * sigmoid_grad(2 * z);  // not 1 − tanh², which cancels
    }
};

// log(1 + exp(z)) is log 2 + z/2 + z²·p(z²) where |z| < 0.8828125.
constexpr float SOFTPLUS_FLOAT[] = {0.124999954f, -0.00520774866f, 3.4491234e-4f, -2.26937494e-5f};
constexpr double SOFTPLUS_DOUBLE[] = {
    0.12499999999999978398,    -5.2083333333221439373e-3, 3.4722222202251251842e-4,
    -2.6351684758265137282e-5, 2.1356835500189925929e-6,  -1.8029682733755893071e-7,
    1.561159166323138295e-8,   -1.3326894211615432414e-9, 8.8726859245023329103e-11,
};

struct Softplus : Activation {
    TG_INLINE vfloat rest(vfloat square) { return polynomial(square, SOFTPLUS_FLOAT); }
    TG_INLINE vdouble rest(vdouble square) { return polynomial(square, SOFTPLUS_DOUBLE); }

    template <class V> TG_INLINE V of(V z) {
        V square = z * z, size = capped_magnitude(z);
        V small = rest(square) * square + 0.5f * z + rounded<V>(0.69314718055994530942);
        V sum = larger(V{}, z) + log1p_of_fraction(short_exp(-size));
        sum = size < 0.8828125f ? small : sum;
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
