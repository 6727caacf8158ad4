// Products of matrices so small that to call a BLAS would take longer than the product.
#pragma once

#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

// c = a·b, row by row of c: each is a sum of rows of b, which are made dense first.
template <class T> static void product_of(const Product& p) {
    if (p.rows == 0) return;  // and b may be of any size
    alignas(TG_BYTES) T packed[MOST_PRODUCT];
    const char* b = p.b;
    int64_t b_row = p.b_row;
    if (p.b_column != sizeof(T)) {
        for (int64_t l = 0; l < p.depth; l++)
            for (int64_t j = 0; j < p.columns; j++)
                packed[l * p.columns + j] = load_one<T>(b + l * p.b_row + j * p.b_column);
        b = (const char*)packed;
        b_row = p.columns * sizeof(T);
    }
    for (int64_t i = 0; i < p.rows; i++) {
        const char* a = p.a + i * p.a_row;
        T* c = (T*)(p.c + i * p.c_row);
        for_vectors<T>(p.columns, [&](int64_t j, auto part) {
            vec<T> sum = {};
            for (int64_t l = 0; l < p.depth; l++)
                sum += load_one<T>(a + l * p.a_column) * load((const T*)(b + l * b_row) + j, part);
            store(c + j, sum, part);
        });
    }
}

static void product(const Product& p) {
    p.dtype == DType::float64 ? product_of<double>(p) : product_of<float>(p);
}

}  // namespace tilegrad::cpu::TG_ISA
