// What a kernel computes with, and how elements become it.
//
// Sums of the 16-bit types and of float32 are float32, those of float64 float64. A kernel that takes every dtype knows
// it by number only at run time: `load` and `store` with a DType.
#pragma once

#include "../cpu/api.h"
#include "platform.cuh"

namespace tilegrad::cuda {

using cpu::DType;
using cpu::Index;

template <class T> struct ComputeOf {
    using type = float;
};
template <> struct ComputeOf<double> {
    using type = double;
};
template <class T> using Compute = typename ComputeOf<T>::type;

__host__ __device__ inline int size_of(DType dtype) {
    return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- one element -----------------------------------------------------------------------------------------------------

__device__ inline float widened(float x) { return x; }
__device__ inline double widened(double x) { return x; }
__device__ inline float widened(__half x) { return __half2float(x); }
__device__ inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ T rounded(double x);  // to nearest even; a float64 goes to 16 bits by way of float32
template <> __device__ inline double rounded<double>(double x) { return x; }
template <> __device__ inline float rounded<float>(double x) { return static_cast<float>(x); }
template <> __device__ inline __half rounded<__half>(double x) { return __float2half_rn(static_cast<float>(x)); }
template <> __device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(double x) {
    return __float2bfloat16_rn(static_cast<float>(x));
}

template <class T> __device__ T rounded(float x) { return static_cast<T>(x); }
template <> __device__ inline __half rounded<__half>(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

template <class A> __device__ A load(const char* p, DType dtype) {
    switch (dtype) {
        case DType::float64: return static_cast<A>(*reinterpret_cast<const double*>(p));
        case DType::float32: return static_cast<A>(*reinterpret_cast<const float*>(p));
        case DType::bfloat16: return widened(*reinterpret_cast<const __nv_bfloat16*>(p));
        default: return widened(*reinterpret_cast<const __half*>(p));
    }
}

template <class A> __device__ void store(char* p, DType dtype, A x) {
    switch (dtype) {
        case DType::float64: *reinterpret_cast<double*>(p) = x; break;
        case DType::float32: *reinterpret_cast<float*>(p) = rounded<float>(x); break;
        case DType::bfloat16: *reinterpret_cast<__nv_bfloat16*>(p) = rounded<__nv_bfloat16>(x); break;
        default: *reinterpret_cast<__half*>(p) = rounded<__half>(x);
    }
}

// An index as int64; one of uint64 that does not fit becomes negative, and so is out of range, too.
__device__ inline int64_t load_index(const char* p, Index type) {
    switch (type) {
        case Index::int8: return *reinterpret_cast<const int8_t*>(p);
        case Index::int16: return *reinterpret_cast<const int16_t*>(p);
        case Index::int32: return *reinterpret_cast<const int32_t*>(p);
        case Index::int64: return *reinterpret_cast<const int64_t*>(p);
        case Index::uint8: return *reinterpret_cast<const uint8_t*>(p);
        case Index::uint16: return *reinterpret_cast<const uint16_t*>(p);
        case Index::uint32: return *reinterpret_cast<const uint32_t*>(p);
        default: return static_cast<int64_t>(*reinterpret_cast<const uint64_t*>(p));
    }
}

// --- 16 bytes of them ------------------------------------------------------------------------------------------------

constexpr int WIDE = 16;  // bytes: the widest access of a thread

template <class T> constexpr int PER_VECTOR = WIDE / static_cast<int>(sizeof(T));

// N elements of memory, moved by one access.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T x[N];
};
template <class T> using Vector = Pack<T, PER_VECTOR<T>>;

// What 16 bytes are as numbers. They are loaded as one: from a struct of elements the compiler would load each by
// itself.
template <class T> __device__ void unpack(const uint4& bits, Compute<T> (&x)[PER_VECTOR<T>]);
template <> __device__ inline void unpack<float>(const uint4& bits, float (&x)[4]) {
    x[0] = __uint_as_float(bits.x);
    x[1] = __uint_as_float(bits.y);
    x[2] = __uint_as_float(bits.z);
    x[3] = __uint_as_float(bits.w);
}
template <> __device__ inline void unpack<double>(const uint4& bits, double (&x)[2]) {
    x[0] = __hiloint2double(bits.y, bits.x);
    x[1] = __hiloint2double(bits.w, bits.z);
}
template <> __device__ inline void unpack<__nv_bfloat16>(const uint4& bits, float (&x)[8]) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {  // a bfloat16 is the upper half of a float
        x[2 * j] = __uint_as_float(words[j] << 16);
        x[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
}
template <> __device__ inline void unpack<__half>(const uint4& bits, float (&x)[8]) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        x[2 * j] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[j])));
        x[2 * j + 1] = __half2float(__ushort_as_half(static_cast<unsigned short>(words[j] >> 16)));
    }
}

__device__ inline uint4 packed(const float (&x)[4]) {
    return {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
}
__device__ inline uint4 packed(const double (&x)[2]) {
    return {static_cast<uint32_t>(__double2loint(x[0])), static_cast<uint32_t>(__double2hiint(x[0])),
            static_cast<uint32_t>(__double2loint(x[1])), static_cast<uint32_t>(__double2hiint(x[1]))};
}

// --- arithmetic ------------------------------------------------------------------------------------------------------

template <class A> __device__ A infinity();
template <> __device__ inline float infinity<float>() { return __int_as_float(0x7f800000); }
template <> __device__ inline double infinity<double>() { return __longlong_as_double(0x7ff0000000000000ll); }

__device__ inline float not_a_number() { return __int_as_float(0x7fffffff); }

// e^(x − shift) of the elements of a row, but for a factor that is the same for all of them: `corrected` takes it out
// of a sum.
//
// Of 16-bit elements it is the hardware's 2ˣ (2 units in the last place) of one multiply-add, x·log₂e − c, with c the
// rounded shift·log₂e. What c lost, the factor is made of; without it a row of logits near 10⁴ would have a loss wrong
// by 10⁻³.
template <class T> struct Exp {
    static constexpr float LOG2_E = 1.4426950408889634f;
    float c, correction;
    __device__ explicit Exp(float shift) : c(shift * LOG2_E), correction(exp2f(-fmaf(shift, LOG2_E, -c))) {}
    __device__ float operator()(float x) const { return exp2_approximately(fmaf(x, LOG2_E, -c)); }
    __device__ float corrected(float sum) const { return sum * correction; }
    __device__ static float exp2_approximately(float x) {
#ifdef CUDA_EMULATOR
        return exp2f(x);
#else
        float y;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
        return y;
#endif
    }
};
template <> struct Exp<float> {
    float shift;
    __device__ explicit Exp(float shift) : shift(shift) {}
    __device__ float operator()(float x) const { return expf(x - shift); }
    __device__ float corrected(float sum) const { return sum; }
};
template <> struct Exp<double> {
    double shift;
    __device__ explicit Exp(double shift) : shift(shift) {}
    __device__ double operator()(double x) const { return exp(x - shift); }
    __device__ double corrected(double sum) const { return sum; }
};

}  // namespace tilegrad::cuda
