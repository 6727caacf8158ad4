// From one dtype to another, rounded to the nearest; float64 becomes 16 bits by way of float32, as a sum in float32 would.
#pragma once

#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

template <class From, class To> TG_INLINE void convert_all(const From* from, To* to, int64_t count) {
    using T = compute<From>;
    using U = compute<To>;
    if constexpr (sizeof(T) == sizeof(U)) {
        int64_t i = 0;
        for (; i + W<T> <= count; i += W<T>) store(to + i, load(from + i));
        if (i < count) store_part(to + i, load_part(from + i, count - i, T(0)), count - i);
    } else {
        for (int64_t i = 0; i < count; i++) {
            U x = static_cast<U>(load_one<From>((const char*)(from + i)));
            store_one<To>((char*)(to + i), x);
        }
    }
}

static void convert(const char* from, DType from_dtype, char* to, DType to_dtype, int64_t count) {
    of_dtype(from_dtype, [&](auto* f) {
        of_dtype(to_dtype, [&](auto* t) { convert_all((decltype(f))from, (decltype(t))to, count); });
    });
}

}  // namespace tilegrad::cpu::TG_ISA
