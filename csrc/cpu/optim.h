// One step of an optimiser on one parameter, in one pass over it. The arithmetic is that of engine/optim, and so
// torch's; what depends on the options alone is computed once, in double.
#pragma once

#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

TG_INLINE vfloat square_root(vfloat x) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vfloat)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)x);
#elif TG_BYTES == 32 && defined(__AVX__)
    return (vfloat)_mm256_sqrt_ps((__m256)x);
#elif TG_BYTES == 16 && defined(__SSE2__)
    return (vfloat)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < W<float>; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
}

TG_INLINE vdouble square_root(vdouble x) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vdouble)_mm512_maskz_sqrt_pd((__mmask8)-1, (__m512d)x);
#elif TG_BYTES == 32 && defined(__AVX__)
    return (vdouble)_mm256_sqrt_pd((__m256d)x);
#elif TG_BYTES == 16 && defined(__SSE2__)
    return (vdouble)_mm_sqrt_pd((__m128d)x);
#else
    for (int i = 0; i < W<double>; i++) x[i] = __builtin_sqrt(x[i]);
    return x;
#endif
}

// ±grad + weight_decay · value. Without decay the value does not come in: it may be infinite.
template <class T> struct Descent {
    bool maximize;
    T weight_decay;

    vec<T> operator()(vec<T> value, vec<T> grad) const {
        vec<T> g = maximize ? -grad : grad;
        return weight_decay != 0 ? g + value * weight_decay : g;
    }
};

// --- SGD -------------------------------------------------------------------------------------------------------------

// v ← momentum · v + (1 − dampening) · g, but the first g whole; value ← value − lr · v, or with Nesterov's momentum
// value − lr · (g + momentum · v).
template <class T> static void sgd_of(const Sgd& options, const Parameter& parameter, int64_t first, int64_t last) {
    T* value = (T*)parameter.value + first;
    const T* grad = (const T*)parameter.grad + first;
    T* velocity = (T*)parameter.first + first;
    Descent<T> descent{options.maximize, static_cast<T>(options.weight_decay)};
    T lr = static_cast<T>(options.lr), momentum = static_cast<T>(options.momentum);
    T share = static_cast<T>(1 - options.dampening);
    bool first_step = parameter.step == 1, nesterov = options.nesterov;
    int64_t count = last - first;

    if (options.momentum == 0) {
        for_vectors<T>(count, [&](int64_t i, auto part) {
            vec<T> x = load(value + i, part);
            store(value + i, x - descent(x, load(grad + i, part)) * lr, part);
        });
        return;
    }
    for_vectors<T>(count, [&](int64_t i, auto part) {
        vec<T> x = load(value + i, part);
        vec<T> g = descent(x, load(grad + i, part));
        vec<T> v = first_step ? g : load(velocity + i, part) * momentum + g * share;
        store(velocity + i, v, part);
        store(value + i, x - (nesterov ? v * momentum + g : v) * lr, part);
    });
}

static void sgd(const Sgd& options, const Parameter& parameter, int64_t first, int64_t last) {
    if (parameter.dtype == DType::float64)
        sgd_of<double>(options, parameter, first, last);
    else
        sgd_of<float>(options, parameter, first, last);
}

// --- Adam ------------------------------------------------------------------------------------------------------------

// m ← m + (1 − β₁)(g − m); v ← β₂ v + (1 − β₂) g²; value ← value − lr · m̂ / (√v̂ + ε), with m̂ = m / (1 − β₁ᵗ) and
// v̂ = v / (1 − β₂ᵗ). √(1 − β₂ᵗ) is multiplied into ε and lr, which saves a division for each element.
template <class T> static void adam_of(const Adam& options, const Parameter& parameter, int64_t first, int64_t last) {
    T* value = (T*)parameter.value + first;
    const T* grad = (const T*)parameter.grad + first;
    T* mean = (T*)parameter.first + first;
    T* square = (T*)parameter.second + first;
    T* largest = parameter.largest ? (T*)parameter.largest + first : nullptr;

    double decay = options.decoupled ? 0 : options.weight_decay;
    Descent<T> descent{options.maximize, static_cast<T>(decay)};
    T kept = static_cast<T>(options.decoupled ? 1 - options.lr * options.weight_decay : 1);
    T mean_share = static_cast<T>(1 - options.beta1);
    T beta2 = static_cast<T>(options.beta2), square_share = static_cast<T>(1 - options.beta2);
    double step = static_cast<double>(parameter.step);
    double root = __builtin_sqrt(1 - __builtin_pow(options.beta2, step));
    T eps = static_cast<T>(options.eps * root);
    T lr = static_cast<T>(options.lr * root / (1 - __builtin_pow(options.beta1, step)));

    for_vectors<T>(last - first, [&](int64_t i, auto part) {
        vec<T> x = load(value + i, part) * kept;
        vec<T> g = descent(x, load(grad + i, part));
        vec<T> m = load(mean + i, part);
        m += (g - m) * mean_share;
        vec<T> v = load(square + i, part) * beta2 + g * g * square_share;
        store(mean + i, m, part);
        store(square + i, v, part);
        if (largest) {
            vec<T> before = load(largest + i, part);
            v = before >= v || before != before ? before : v;  // NaN stays
            store(largest + i, v, part);
        }
        store(value + i, x - m / (square_root(v) + eps) * lr, part);
    });
}

static void adam(const Adam& options, const Parameter& parameter, int64_t first, int64_t last) {
    if (parameter.dtype == DType::float64)
        adam_of<double>(options, parameter, first, last);
    else
        adam_of<float>(options, parameter, first, last);
}

}  // namespace tilegrad::cpu::TG_ISA
