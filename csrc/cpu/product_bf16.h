// Products of matrices of bfloat16 by AVX512-BF16, whose instruction adds two products to each of 16 float32 sums:
// c += a₀·b₀ + a₁·b₁ for a pair of neighbours along the depth. It takes subnormal numbers for zeros, as torch's does.
//
// Both operands are packed into groups of up to 16 lines (rows of a, columns of b), in which the pairs at one depth lie
// side by side: (groups, pairs, 16). A tile of the result stays in registers for all of a block's depth.
#pragma once

#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

// --- packing ---------------------------------------------------------------------------------------------------------

constexpr int LANES = W<float>;
constexpr int AHEAD = 512;  // bytes of each line, since the processor does not foresee 16 of them
constexpr int STREAMS = 8;  // groups that are packed at a time where lines are neighbours: whole cache lines are read

TG_INLINE uint32_t first_bits(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1; }

// The first n of 16 numbers that lie side by side, and of 32; the rest are 0.
TG_INLINE vhalf words(const bf16* p, int64_t n) {
    return (vhalf)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), p);
}
TG_INLINE vhalf words(const float* p, int64_t n) {
    return (vhalf)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(static_cast<__mmask16>(first_bits(n)), p));
}
TG_INLINE vuint32 pairs_at(const bf16* p, int64_t n) { return (vuint32)_mm512_maskz_loadu_epi16(first_bits(n), p); }
TG_INLINE vuint32 pairs_at(const float* p, int64_t n) {
    uint32_t wanted = first_bits(n);
    __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted), p);
    __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(wanted >> 16), p + LANES);
    return (vuint32)_mm512_cvtne2ps_pbh(high, low);
}

// The first n of 16 numbers that lie `step` bytes apart.
template <class S> TG_INLINE vhalf words_apart(const char* p, int64_t step, int64_t n) {
    if (step == sizeof(S)) return words((const S*)p, n);
    bf16 found[LANES] = {};
    for (int64_t i = 0; i < n; i++) store_one<bf16>((char*)(found + i), load_one<S>(p + i * step));
    return *(const vhalf_there*)found;
}

// A group of lines each of which is dense. (The loops are unrolled so that the block stays in registers.)
template <class S> static void pack_lines(const char* data, int64_t line, int64_t lines, int64_t depth, vuint32* to) {
    for (int64_t d = 0; d < depth; d += 2 * LANES) {
        const char* from = data + d * sizeof(S);
        vfloat block[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++, from += line) {
            block[i] = (vfloat)pairs_at((const S*)from, i < lines ? depth - d : 0);
            __builtin_prefetch(from + AHEAD);
        }
        transpose<float>(block);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (d + 2 * i < depth) to[d / 2 + i] = (vuint32)block[i];
    }
}

template <class S> static void pack_of(const Factor& x, const Packing& p, int64_t first, int64_t last, vuint32* to) {
    int64_t pairs = (p.depth + 1) / 2;
    if (x.depth == sizeof(S)) {
        for (int64_t g = first; g < last; g++) {
            int64_t start = g * p.height;
            pack_lines<S>(x.data + start * x.line, x.line, least(p.height, p.lines - start), p.depth, to + g * pairs);
        }
        return;
    }
    for (int64_t some = first; some < last; some += STREAMS) {
        for (int64_t i = 0; i < pairs; i++) {
            const char* even = x.data + 2 * i * x.depth;
            for (int64_t g = some; g < least(some + STREAMS, last); g++) {
                int64_t start = g * p.height * x.line, lines = least(p.height, p.lines - g * p.height);
                vuint32 low = __builtin_convertvector(words_apart<S>(even + start, x.line, lines), vuint32), high = {};
                if (2 * i + 1 < p.depth)
                    high = __builtin_convertvector(words_apart<S>(even + x.depth + start, x.line, lines), vuint32);
                to[g * pairs + i] = low | high << 16;
            }
        }
    }
}

static void pack(const Factor& x, const Packing& p, int64_t first, int64_t last, char* to) {
    auto pack_type = x.dtype == DType::float32 ? pack_of<float> : pack_of<bf16>;
    pack_type(x, p, first, last, (vuint32*)to);
}

// --- tiles -----------------------------------------------------------------------------------------------------------

constexpr int MOST_ROWS = 14;  // of a tile of 32 columns: 28 registers of sums, two of b, one of a

// Where a row's numbers from this column on are added to, and where they are written.
TG_INLINE float* sums_at(const PackedProduct& p, int64_t row, int64_t column) {
    return (float*)(p.sums + row * p.sums_row) + column;
}
TG_INLINE bf16* out_at(const PackedProduct& p, int64_t row, int64_t column) {
    return p.out ? (bf16*)(p.out + row * p.out_row) + column : nullptr;
}

// What a tile has summed up, to where it belongs. Out of line: there are 28 tiles.
__attribute__((noinline)) static void finish(
    const vfloat* made, int64_t rows, int64_t vectors, const PackedProduct& p, int64_t row, int64_t column) {
    int64_t columns = least(vectors * LANES, p.columns - column);
    for (int64_t r = 0; r < rows; r++, made += vectors) {
        float* sums = sums_at(p, row + r, column);
        bf16* out = out_at(p, row + r, column);
        for_vectors<float>(columns, [&](int64_t i, auto part) {
            vfloat sum = made[i / LANES];
            if (p.add) sum += load(sums + i, part);
            out ? store(out + i, sum, part) : store(sums + i, sum, part);
        });
    }
}

template <int ROWS, int VECTORS>
static void tile(const char* a, const char* b, const PackedProduct& p, int64_t row, int64_t column) {
    for (int r = 0; r < ROWS; r++) {  // needed only at the end, and there by then
        bf16* out = out_at(p, row + r, column);
        const char* end = out ? (const char*)out : (const char*)sums_at(p, row + r, column);
        for (int v = 0; v < VECTORS; v++) __builtin_prefetch(end + v * TG_BYTES, 1);
    }
    vfloat sums[ROWS][VECTORS] = {};  // in registers: all loops over them are unrolled
    for (int64_t i = 0; i < p.pairs; i++) {
        const float* of_a = (const float*)a + i * LANES;
        __m512bh of_b[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) of_b[v] = (__m512bh)load((const float*)b + (v * p.pairs + i) * LANES);
#pragma GCC unroll 14
        for (int r = 0; r < ROWS; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_ps(of_a[r]);
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) sums[r][v] = (vfloat)_mm512_dpbf16_ps((__m512)sums[r][v], pair, of_b[v]);
        }
    }
    vfloat made[ROWS * VECTORS];
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) made[r * VECTORS + v] = sums[r][v];
    finish(made, ROWS, VECTORS, p, row, column);
}

using Tile = void (*)(const char* a, const char* b, const PackedProduct&, int64_t row, int64_t column);

template <int VECTORS> static Tile tile_of(int64_t rows) {
    static constexpr Tile tiles[MOST_ROWS] = {
        tile<1, VECTORS>,  tile<2, VECTORS>,  tile<3, VECTORS>,  tile<4, VECTORS>,  tile<5, VECTORS>,
        tile<6, VECTORS>,  tile<7, VECTORS>,  tile<8, VECTORS>,  tile<9, VECTORS>,  tile<10, VECTORS>,
        tile<11, VECTORS>, tile<12, VECTORS>, tile<13, VECTORS>, tile<14, VECTORS>,
    };
    return tiles[rows - 1];
}

// The rows of one group of a by the columns [first, last), of which `first` begins a group.
static void multiply(const PackedProduct& p, int64_t group, int64_t first, int64_t last) {
    int64_t row = group * p.height, rows = least(p.height, p.rows - row), size = p.pairs * TG_BYTES;
    const char* a = p.a + group * size;
    Tile wide = tile_of<2>(rows), narrow = tile_of<1>(rows);
    for (int64_t column = first; column < last; column += 2 * LANES) {
        const char* b = p.b + column / LANES * size;
        (last - column > LANES ? wide : narrow)(a, b, p, row, column);
    }
}

}  // namespace tilegrad::cpu::TG_ISA
