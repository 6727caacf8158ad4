// Vectors of one instruction set, in the compilers' own vector types: W<T> numbers of a computing type T, float or double.
// What is stored in 16 bits is computed on in float.
//
// This and whatever includes it is compiled once for each instruction set, with TG_ISA its name and TG_BYTES the size of a
// vector. Everything is in a namespace of that name, and nothing inline comes from the standard library: the linker keeps
// one copy of such a function for all, and it might be the one with AVX-512 in it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>  // for integer_sequence alone, which is no function
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "api.h"

#define TG_INLINE static inline __attribute__((always_inline))
#define TG_INLINED __attribute__((always_inline))  // of a member function or a lambda

namespace tilegrad::cpu::TG_ISA {

// --- types -----------------------------------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

typedef float vfloat __attribute__((vector_size(TG_BYTES)));
typedef double vdouble __attribute__((vector_size(TG_BYTES)));
typedef int32_t vint32 __attribute__((vector_size(TG_BYTES)));
typedef int64_t vint64 __attribute__((vector_size(TG_BYTES)));
typedef uint32_t vuint32 __attribute__((vector_size(TG_BYTES)));
typedef uint16_t vhalf __attribute__((vector_size(TG_BYTES / 2)));  // W<float> numbers of 16 bits

// The same at any address, and of memory of any type.
typedef vfloat vfloat_there __attribute__((aligned(4), may_alias));
typedef vdouble vdouble_there __attribute__((aligned(8), may_alias));
typedef vhalf vhalf_there __attribute__((aligned(2), may_alias));

template <class T> struct Of;
template <> struct Of<float> {
    using vec = vfloat;
    using mask = vint32;
    using bits = int32_t;
};
template <> struct Of<double> {
    using vec = vdouble;
    using mask = vint64;
    using bits = int64_t;
};
template <class T> using vec = typename Of<T>::vec;

template <class T> constexpr int W = TG_BYTES / sizeof(T);

// What a stored type is computed in.
template <class S> struct ComputeOf {
    using type = float;
};
template <> struct ComputeOf<double> {
    using type = double;
};
template <class S> using compute = typename ComputeOf<S>::type;

template <class T> TG_INLINE vec<T> splat(T x) { return x - vec<T>{}; }  // x, also of −0, inf and NaN

template <class T> TG_INLINE T infinity() { return static_cast<T>(__builtin_inff()); }
template <class T> TG_INLINE T nan() { return static_cast<T>(__builtin_nanf("")); }

TG_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// --- bits ------------------------------------------------------------------------------------------------------------

TG_INLINE vint32 as_bits(vfloat x) { return (vint32)x; }
TG_INLINE vint64 as_bits(vdouble x) { return (vint64)x; }
TG_INLINE vfloat from_bits(vint32 x) { return (vfloat)x; }
TG_INLINE vdouble from_bits(vint64 x) { return (vdouble)x; }
TG_INLINE vfloat magnitude(vfloat x) { return from_bits(as_bits(x) & 0x7fffffff); }
TG_INLINE vdouble magnitude(vdouble x) { return from_bits(as_bits(x) & 0x7fffffffffffffff); }

// The larger one; b where either is NaN. (GCC does not make these instructions of a comparison and a choice.)
#if TG_BYTES == 64 && defined(__AVX512F__)
TG_INLINE vfloat larger(vfloat a, vfloat b) {
    return (vfloat)_mm512_maskz_max_ps((__mmask16)-1, (__m512)a, (__m512)b);
}
TG_INLINE vfloat smaller(vfloat a, vfloat b) {
    return (vfloat)_mm512_maskz_min_ps((__mmask16)-1, (__m512)a, (__m512)b);
}
TG_INLINE vdouble larger(vdouble a, vdouble b) {
    return (vdouble)_mm512_maskz_max_pd((__mmask8)-1, (__m512d)a, (__m512d)b);
}
TG_INLINE vdouble smaller(vdouble a, vdouble b) {
    return (vdouble)_mm512_maskz_min_pd((__mmask8)-1, (__m512d)a, (__m512d)b);
}
#elif TG_BYTES == 32 && defined(__AVX__)
TG_INLINE vfloat larger(vfloat a, vfloat b) { return (vfloat)_mm256_max_ps((__m256)a, (__m256)b); }
TG_INLINE vfloat smaller(vfloat a, vfloat b) { return (vfloat)_mm256_min_ps((__m256)a, (__m256)b); }
TG_INLINE vdouble larger(vdouble a, vdouble b) { return (vdouble)_mm256_max_pd((__m256d)a, (__m256d)b); }
TG_INLINE vdouble smaller(vdouble a, vdouble b) { return (vdouble)_mm256_min_pd((__m256d)a, (__m256d)b); }
#elif TG_BYTES == 16 && defined(__SSE2__)
TG_INLINE vfloat larger(vfloat a, vfloat b) { return (vfloat)_mm_max_ps((__m128)a, (__m128)b); }
TG_INLINE vfloat smaller(vfloat a, vfloat b) { return (vfloat)_mm_min_ps((__m128)a, (__m128)b); }
TG_INLINE vdouble larger(vdouble a, vdouble b) { return (vdouble)_mm_max_pd((__m128d)a, (__m128d)b); }
TG_INLINE vdouble smaller(vdouble a, vdouble b) { return (vdouble)_mm_min_pd((__m128d)a, (__m128d)b); }
#else
TG_INLINE vfloat larger(vfloat a, vfloat b) { return a > b ? a : b; }
TG_INLINE vfloat smaller(vfloat a, vfloat b) { return a < b ? a : b; }
TG_INLINE vdouble larger(vdouble a, vdouble b) { return a > b ? a : b; }
TG_INLINE vdouble smaller(vdouble a, vdouble b) { return a < b ? a : b; }
#endif

// Whether a comparison, of whatever type its compiler makes it, holds anywhere.
template <class M> TG_INLINE bool any(const M& comparison) {
    vint32 holds = (vint32)comparison;
#if TG_BYTES == 64 && defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)holds);
#elif TG_BYTES == 32 && defined(__AVX__)
    return _mm256_movemask_ps((__m256)holds);
#elif TG_BYTES == 16 && defined(__SSE2__)
    return _mm_movemask_ps((__m128)holds);
#else
    int32_t found = 0;
    for (int i = 0; i < W<float>; i++) found |= holds[i];
    return found;
#endif
}

// Within [low, high]; NaN stays.
template <class V> TG_INLINE V clamped(V x, V low, V high) { return smaller(high, larger(low, x)); }

// The halves of a vector.
template <class T> struct Halves {
    typedef T half __attribute__((vector_size(TG_BYTES / 2)));
    half low, high;
};
template <class T> TG_INLINE Halves<T> halves_of(const vec<T>& v) {
    Halves<T> halves;
    memcpy(&halves, &v, sizeof v);
    return halves;
}

template <class T> TG_INLINE T sum_of(const vec<T>& v) {
    auto [low, high] = halves_of<T>(v);
    auto sums = low + high;
    T parts[W<T> / 2];
    memcpy(parts, &sums, sizeof sums);
    for (int n = W<T> / 4; n; n /= 2)
        for (int i = 0; i < n; i++) parts[i] += parts[i + n];
    return parts[0];
}

// The largest that is not NaN, if there is one: what it is compared with again must never exceed it.
template <class T> TG_INLINE T largest_of(const vec<T>& v) {
    auto [low, high] = halves_of<T>(v);
    auto larger_half = ((low > high) | (high != high)) ? low : high;
    T parts[W<T> / 2];
    memcpy(parts, &larger_half, sizeof larger_half);
    for (int n = W<T> / 4; n; n /= 2)
        for (int i = 0; i < n; i++) {
            T other = parts[i + n];
            parts[i] = parts[i] > other || other != other ? parts[i] : other;
        }
    return parts[0];
}

// --- lanes -----------------------------------------------------------------------------------------------------------

// a0 b0 a1 b1 …, from element FROM of the two on.
template <class T, int FROM, int... I> TG_INLINE vec<T> mixed(vec<T> a, vec<T> b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (FROM + I / 2 + I % 2 * W<T>)...);
}

// Rows become columns. Mixing the first half of them with the second one turns the bits of their places by one.
template <class T> TG_INLINE void transpose(vec<T> (&rows)[W<T>]) {
    constexpr int HALF = W<T> / 2;
    using All = std::make_integer_sequence<int, W<T>>;
    for (int turned = 1; turned < W<T>; turned *= 2) {
        vec<T> mix[W<T>];
        for (int i = 0; i < HALF; i++) {
            mix[2 * i] = mixed<T, 0>(rows[i], rows[i + HALF], All());
            mix[2 * i + 1] = mixed<T, HALF>(rows[i], rows[i + HALF], All());
        }
        for (int i = 0; i < W<T>; i++) rows[i] = mix[i];
    }
}

// --- 16 bits ---------------------------------------------------------------------------------------------------------

TG_INLINE vfloat widened(vhalf x, bf16) { return from_bits((vint32)(__builtin_convertvector(x, vuint32) << 16)); }

// To the nearest, ties to even; NaN stays NaN.
TG_INLINE vhalf narrowed(vfloat x, bf16) {
    vuint32 bits = (vuint32)x;
    vuint32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vuint32 of_nan = (bits >> 16) | 0x40;
    return __builtin_convertvector(x != x ? of_nan : rounded, vhalf);
}

TG_INLINE vfloat widened(vhalf x, f16) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vfloat)_mm512_maskz_cvtph_ps((__mmask16)-1, (__m256i)x);
#elif TG_BYTES == 32 && defined(__F16C__)
    return (vfloat)_mm256_cvtph_ps((__m128i)x);
#else
    vuint32 h = __builtin_convertvector(x, vuint32);
    vuint32 shifted = (h & 0x7fff) << 13;
    // The exponent's bias is mended by a product, which also makes normal numbers of subnormal ones.
    vfloat number = (vfloat)shifted * 0x1p112f;
    vuint32 bits = (h & 0x7c00) == 0x7c00 ? shifted | 0x7f800000 : (vuint32)number;
    return (vfloat)(bits | (h & 0x8000) << 16);
#endif
}

TG_INLINE vhalf narrowed(vfloat x, f16) {
#if TG_BYTES == 64 && defined(__AVX512F__)
    return (vhalf)_mm512_maskz_cvtps_ph((__mmask16)-1, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif TG_BYTES == 32 && defined(__F16C__)
    return (vhalf)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#else
    vuint32 all = (vuint32)x, sign = all & 0x80000000, bits = all ^ sign;
    // Below 2⁻¹⁴: the sum with ½ has its last bit where the subnormal number's is, and rounds there.
    vuint32 small = (vuint32)((vfloat)bits + 0.5f) - 0x3f000000;
    vuint32 normal = (bits + 0xc8000fff + ((bits >> 13) & 1)) >> 13;
    vuint32 special = bits > 0x7f800000 ? (bits >> 13 & 0x3ff) | 0x7e00 : bits * 0 + 0x7c00;
    vuint32 found = bits >= 0x47800000 ? special : bits < 0x38800000 ? small : normal;
    return __builtin_convertvector(found | sign >> 16, vhalf);
#endif
}

// --- memory ----------------------------------------------------------------------------------------------------------

TG_INLINE vfloat load(const float* p) { return *(const vfloat_there*)p; }
TG_INLINE vdouble load(const double* p) { return *(const vdouble_there*)p; }
TG_INLINE vfloat load(const bf16* p) { return widened(*(const vhalf_there*)p, bf16{}); }
TG_INLINE vfloat load(const f16* p) { return widened(*(const vhalf_there*)p, f16{}); }

TG_INLINE void store(float* p, vfloat v) { *(vfloat_there*)p = v; }
TG_INLINE void store(double* p, vdouble v) { *(vdouble_there*)p = v; }
TG_INLINE void store(bf16* p, vfloat v) { *(vhalf_there*)p = narrowed(v, bf16{}); }
TG_INLINE void store(f16* p, vfloat v) { *(vhalf_there*)p = narrowed(v, f16{}); }

// The numbers of the lanes; where that is below n, and where it is n.
template <class T> TG_INLINE typename Of<T>::mask lane_numbers() {
    typename Of<T>::mask lanes = {};
    for (int i = 0; i < W<T>; i++) lanes[i] = i;
    return lanes;
}
template <class T> TG_INLINE typename Of<T>::mask lanes_below(int64_t n) {
    return lane_numbers<T>() < static_cast<typename Of<T>::bits>(n);
}
template <class T> TG_INLINE typename Of<T>::mask lane_is(int64_t n) {
    return lane_numbers<T>() == static_cast<typename Of<T>::bits>(n);
}

// The first n of a vector, fewer than W; the rest of it is `rest`.
template <class S> TG_INLINE vec<compute<S>> load_part(const S* p, int64_t n, compute<S> rest) {
    using T = compute<S>;
#if TG_BYTES == 64 && defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 wanted = static_cast<__mmask16>((1u << n) - 1);
    if constexpr (sizeof(S) == 4)
        return (vfloat)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), wanted, p);
    else if constexpr (sizeof(S) == 8)
        return (vdouble)_mm512_mask_loadu_pd(_mm512_set1_pd(rest), static_cast<__mmask8>(wanted), p);
    else
        return lanes_below<T>(n) ? widened((vhalf)_mm256_maskz_loadu_epi16(wanted, p), S{}) : splat<T>(rest);
#else
    auto wanted = lanes_below<T>(n);
#if TG_BYTES == 32 && defined(__AVX2__)
    if constexpr (sizeof(S) == 4)
        return wanted ? (vfloat)_mm256_maskload_ps(p, (__m256i)wanted) : splat<T>(rest);
    else if constexpr (sizeof(S) == 8)
        return wanted ? (vdouble)_mm256_maskload_pd(p, (__m256i)wanted) : splat<T>(rest);
#endif
    S there[W<T>] = {};
    memcpy(there, p, n * sizeof(S));
    return wanted ? load(there) : splat<T>(rest);
#endif
}

template <class S> TG_INLINE void store_part(S* p, vec<compute<S>> v, int64_t n) {
#if TG_BYTES == 64 && defined(__AVX512BW__) && defined(__AVX512VL__)
    __mmask16 wanted = static_cast<__mmask16>((1u << n) - 1);
    if constexpr (sizeof(S) == 4)
        _mm512_mask_storeu_ps(p, wanted, (__m512)v);
    else if constexpr (sizeof(S) == 8)
        _mm512_mask_storeu_pd(p, static_cast<__mmask8>(wanted), (__m512d)v);
    else
        _mm256_mask_storeu_epi16(p, wanted, (__m256i)narrowed(v, S{}));
#else
    S there[W<compute<S>>];
    store(there, v);
    memcpy(p, there, n * sizeof(S));
#endif
}

// So that a loop can be written once for its whole vectors and for its tail: all of a vector, or the first n.
struct Whole {};
template <class S> TG_INLINE vec<compute<S>> load(const S* p, Whole) { return load(p); }
template <class S> TG_INLINE vec<compute<S>> load(const S* p, int64_t n) { return load_part<S>(p, n, 0); }
template <class S> TG_INLINE void store(S* p, vec<compute<S>> v, Whole) { store(p, v); }
template <class S> TG_INLINE void store(S* p, vec<compute<S>> v, int64_t n) { store_part(p, v, n); }

// Call f(i, part) for the vectors of T that cover [0, count).
template <class T, class F> TG_INLINE void for_vectors(int64_t count, F f) {
    int64_t i = 0;
    for (; i + W<T> <= count; i += W<T>) f(i, Whole{});
    if (i < count) f(i, count - i);
}

// Past the caches; p is aligned to what a vector takes in memory. Ends with `streamed()`.
template <class S> TG_INLINE void stream(S* p, vec<compute<S>> v) {
#if defined(__x86_64__)
    alignas(TG_BYTES) S there[W<compute<S>>];
    store(there, v);
    if constexpr (sizeof there == 64) {
#if TG_BYTES == 64
        _mm512_stream_si512((__m512i*)p, *(const __m512i*)there);
#endif
    } else if constexpr (sizeof there == 32) {
#if TG_BYTES >= 32
        _mm256_stream_si256((__m256i*)p, *(const __m256i*)there);
#endif
    } else if constexpr (sizeof there == 16) {
        _mm_stream_si128((__m128i*)p, *(const __m128i*)there);
    } else {
        store(p, v);
    }
#else
    store(p, v);
#endif
}

TG_INLINE void streamed() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

// One element, at any address.
template <class S> TG_INLINE compute<S> load_one(const char* p) {
    S there[W<compute<S>>] = {};
    memcpy(there, p, sizeof(S));
    return load(there)[0];
}

template <class S> TG_INLINE void store_one(char* p, compute<S> x) {
    S there[W<compute<S>>];
    store(there, splat<compute<S>>(x));
    memcpy(p, there, sizeof(S));
}
template <> inline __attribute__((always_inline)) float load_one<float>(const char* p) { float x; memcpy(&x, p, 4); return x; }
template <> inline __attribute__((always_inline)) double load_one<double>(const char* p) { double x; memcpy(&x, p, 8); return x; }
template <> inline __attribute__((always_inline)) void store_one<float>(char* p, float x) { memcpy(p, &x, 4); }
template <> inline __attribute__((always_inline)) void store_one<double>(char* p, double x) { memcpy(p, &x, 8); }

// Call f with a null pointer of the stored type that a dtype names.
template <class F> TG_INLINE void of_dtype(DType dtype, F f) {
    switch (dtype) {
        case DType::float32: return f((float*)nullptr);
        case DType::float64: return f((double*)nullptr);
        case DType::bfloat16: return f((bf16*)nullptr);
        case DType::float16: return f((f16*)nullptr);
    }
}

}  // namespace tilegrad::cpu::TG_ISA
