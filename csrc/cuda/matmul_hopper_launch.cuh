// From a Matmul to a launch of one variant of the Hopper kernel: which operands bulk copies can reach, and their maps.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "matmul_hopper.cuh"

namespace tilegrad::cuda {

// --- tensor maps -----------------------------------------------------------------------------------------------------

constexpr int64_t ALIGNED = 16 / 2;  // elements of 16 bits in the 16 bytes by which bulk copies count

// Whether bulk copies can reach `lines` of `length` contiguous elements.
inline bool bulk_takes(const void* data, int64_t length, int64_t lines, int64_t stride) {
    constexpr int64_t MOST = int64_t(1) << 39;  // elements of a stride, of 2^40 bytes
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && length > 0 && length <= INT32_MAX && lines <= INT32_MAX &&
           (lines == 1 || (stride % ALIGNED == 0 && stride >= length && stride < MOST));
}

// An operand contiguous along its rows, A's rows being B's columns; else along depth.
inline bool along_rows(const void* data, int64_t rows, int64_t depth, int64_t stride_row, int64_t stride_depth) {
    return !(stride_depth == 1 && bulk_takes(data, depth, rows, stride_row));
}

inline bool operand_takes(const void* data, int64_t rows, int64_t depth, int64_t stride_row, int64_t stride_depth) {
    return (stride_depth == 1 && bulk_takes(data, depth, rows, stride_row)) ||
           (stride_row == 1 && bulk_takes(data, rows, depth, stride_depth));
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's: found at run time, so that nothing is linked against it.
inline Encode encode() {
    static const Encode found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult result;
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
              "cudaGetDriverEntryPointByVersion");
        if (result != cudaDriverEntryPointSuccess)
            throw std::runtime_error("matmul: expected a driver with cuTensorMapEncodeTiled, of CUDA 12.0 or later");
        return reinterpret_cast<Encode>(function);
    }();
    return found;
}

struct Box {
    int length, lines;
    CUtensorMapSwizzle swizzle;
};

inline void make_map(CUtensorMap& map, DType dtype, const void* data, int64_t length, int64_t lines, int64_t stride,
                     Box box) {
    if (lines == 1) stride = ceil_div(length, ALIGNED) * ALIGNED;  // whatever it was, it had no meaning
    cuuint64_t sizes[] = {static_cast<cuuint64_t>(length), static_cast<cuuint64_t>(lines)};
    cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};
    cuuint32_t box_sizes[] = {static_cast<cuuint32_t>(box.length), static_cast<cuuint32_t>(box.lines)};
    cuuint32_t element_strides[] = {1, 1};
    CUresult result = encode()(
        &map, dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
        const_cast<void*>(data), sizes, strides, box_sizes, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, box.swizzle,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS)
        throw std::runtime_error("matmul: cuTensorMapEncodeTiled failed with error " + std::to_string(result));
}

// Of an operand: boxes as deep as a stage, with what one copy brings of its rows.
inline void make_operand_map(CUtensorMap& map, DType dtype, const void* data, int64_t rows, int64_t depth,
                             int64_t stride_row, int64_t stride_depth, int box_rows) {
    constexpr auto SWIZZLE = CU_TENSOR_MAP_SWIZZLE_128B;
    if (along_rows(data, rows, depth, stride_row, stride_depth))
        return make_map(map, dtype, data, rows, depth, stride_depth, {64, TILE_DEPTH, SWIZZLE});
    return make_map(map, dtype, data, depth, rows, stride_row, {TILE_DEPTH, box_rows, SWIZZLE});
}

// --- the launch ------------------------------------------------------------------------------------------------------

template <class Tile> int64_t clusters_down(const Matmul& m) { return ceil_div(m.rows, TILE_ROWS * Tile::CLUSTER); }
template <class Tile> int64_t tiles_across(const Matmul& m) {
    return ceil_div(m.columns, is_gated(m.activation) ? Tile::COLUMNS / 2 : Tile::COLUMNS);
}

template <class Tile, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class T>
void launch_hopper(const Matmul& m, int multiprocessors, cudaStream_t stream) {
    bool gated = is_gated(m.activation);
    int64_t b_columns = gated ? 2 * m.columns : m.columns;
    HopperProblem<T> p{};
    p.depth = m.depth;
    p.clusters_down = clusters_down<Tile>(m);
    p.tiles_across = tiles_across<Tile>(m);
    p.to = Epilogue<T>(m);
    make_operand_map(p.a, m.dtype, m.a, m.rows, m.depth, m.a_row, m.a_depth, TILE_ROWS);
    make_operand_map(p.b, m.dtype, m.b, b_columns, m.depth, m.b_column, m.b_depth, Tile::COLUMNS / 2);
    Box panel{PANEL_COLUMNS, PANEL_ROWS, CU_TENSOR_MAP_SWIZZLE_64B};
    if (m.out_dtype == m.dtype && m.out_column == 1 && bulk_takes(m.out, m.columns, m.rows, m.out_row)) {
        p.bulk_out = true;
        make_map(p.out, m.dtype, m.out, m.columns, m.rows, m.out_row, panel);
    }
    // Each half of a gated pre-activation ends by itself, so it has its own map.
    const T* pre = static_cast<const T*>(m.pre);
    if (pre != nullptr && m.pre_column == 1 && bulk_takes(pre, m.columns, m.rows, m.pre_row) &&
        (!gated || m.columns % ALIGNED == 0)) {
        p.bulk_pre = true;
        make_map(p.pre, m.dtype, pre, m.columns, m.rows, m.pre_row, panel);
        if (gated) make_map(p.pre_up, m.dtype, pre + m.columns, m.columns, m.rows, m.pre_row, panel);
    }
    int pair = 2 * size_of(m.out_dtype);
    p.pairs = m.out_column == 1 && m.out_row % 2 == 0 && reinterpret_cast<uintptr_t>(m.out) % pair == 0;

    constexpr int SHARED = sizeof(HopperShared<T, Tile>);
    static_assert(SHARED <= 232448, "more shared memory than a block can have");
    int64_t at_a_time = std::max(multiprocessors / Tile::CLUSTER, 1);
    launch("matmul_hopper", matmul_hopper_kernel<Tile, A_ALONG_ROWS, B_ALONG_ROWS, T>, p,
           std::min(p.clusters_down * p.tiles_across, at_a_time), HOPPER_THREADS, SHARED, Tile::CLUSTER, stream);
}

}  // namespace tilegrad::cuda
