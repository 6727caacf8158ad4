// Rows of few columns, each of them in a lane: a vector holds one column of W rows, and nothing has to be put together
// across its lanes.
#pragma once

#include "rows.h"

namespace tilegrad::cpu::TG_ISA {

template <class T> constexpr int64_t FEW = 2 * W<T>;  // columns; of more, turning them costs more than it saves

template <class T> struct Turned {  // by column, then by row
    alignas(64) T columns[FEW<T>][W<T>];
    TG_INLINED vec<T> operator[](int64_t c) const { return load(columns[c]); }
    TG_INLINED void put(int64_t c, vec<T> v) { store(columns[c], v); }
};

// How many rows lie in lanes: W, or that many.
template <class T> TG_INLINE int64_t rows_of(Whole) { return W<T>; }
template <class T> TG_INLINE int64_t rows_of(int64_t count) { return count; }

// These rows, from row `first` on. Of those that are missing, numbers of no use.
template <class S, class Part>
TG_INLINE void read_turned(const Operand<S>& x, int64_t columns, int64_t first, Part part, Turned<compute<S>>& to) {
    using T = compute<S>;
    auto rows = x.from(first);
    for (int64_t begin = 0; begin < columns; begin += W<T>) {
        int64_t width = least(W<T>, columns - begin);
        vec<T> block[W<T>] = {};
        for (int64_t i = 0; i < rows_of<T>(part); i++) {
            const S* row = rows(i) + begin;
            block[i] = width == W<T> ? load(row) : load(row, width);
        }
        transpose<T>(block);
        for (int64_t c = 0; c < width; c++) to.put(begin + c, block[c]);
    }
}

template <class S, class Part>
TG_INLINE void write_turned(const Turned<compute<S>>& from, const Operand<S>& out, int64_t columns, int64_t first, Part part) {
    using T = compute<S>;
    auto rows = out.from(first);
    for (int64_t begin = 0; begin < columns; begin += W<T>) {
        int64_t width = least(W<T>, columns - begin);
        vec<T> block[W<T>] = {};
        for (int64_t c = 0; c < width; c++) block[c] = from[begin + c];
        transpose<T>(block);
        for (int64_t i = 0; i < rows_of<T>(part); i++) {
            S* row = rows(i) + begin;
            width == W<T> ? store(row, block[i]) : store(row, block[i], width);
        }
    }
}

}  // namespace tilegrad::cpu::TG_ISA
