// From arrays to a launch: which rows a block has, how much shared memory, and whether a cluster of blocks shares a
// row.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include "../arrays.h"
#include "cells.cuh"
#include "check.h"

namespace tilegrad::cuda {

using cpu::Array;

// --- the chip --------------------------------------------------------------------------------------------------------

struct Chip {
    int capability;  // 10 · major + minor
    int multiprocessors;
    int shared;    // bytes that a block may have
    int clusters;  // the largest that may be launched; 1: none
};

// That of the current device. Throws where there is none, or one that the kernels are not made for.
Chip chip();

// --- the launch ------------------------------------------------------------------------------------------------------

// A grid of `tiles` times `cluster` blocks. Everything that can be wrong with it is an exception that names `what`.
template <class Call>
void launch(const char* what, void (*kernel)(Call), const Call& call, int64_t tiles, int block, int shared, int cluster,
            cudaStream_t stream) {
    if (tiles * cluster > INT32_MAX)
        throw std::invalid_argument(std::string(what) + ": expected at most 2147483647 blocks, got " +
                                    std::to_string(tiles * cluster) + ": too many rows");
    if (tiles == 0) return;
    if (shared > 48 << 10)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), what);
    if (cluster > 8) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), what);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(tiles * cluster));
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
    check(cudaLaunchKernelEx(&config, kernel, call), what);
}

template <class Call>
void launch(const char* what, void (*kernel)(Call), const Call& call, const Plan& plan, int64_t rows,
            cudaStream_t stream) {
    launch(what, kernel, call, ceil_div(rows, plan.teams.rows), plan.block, plan.shared, plan.teams.cluster, stream);
}

// --- plans -----------------------------------------------------------------------------------------------------------

// An array of a call, as far as its layout decides how it is moved.
struct Moved {
    const cpu::Lines* lines;
    DType dtype;
    enum { held, read, written } how;  // held: in shared memory, from the first use to the last
};

enum class Access {
    vectors,   // VectorCells of the first array's type
    together,  // TileCells, rows of a block as one
    tiles,     // TileCells, element by element
};

struct Planned {
    Access access;
    Plan plan;
};

// How rows of `columns` are gone over. The first array decides which of them are neighbours; null pointers among the
// lines are arrays that are not there. `vector` says whether a kernel of vectors exists for the dtypes.
Planned plan_rows(const cpu::Rows& rows, int64_t columns, std::initializer_list<Moved> arrays, bool vector,
                  const Chip& chip);

// Whether rows of `columns` of so many held bytes can be kept in the shared memory of a block or a cluster.
bool fits(int64_t columns, int bytes, const Chip& chip);

// Puts the dimension of the rows along which the first of the arrays' elements are closest to the end.
void close_last(cpu::Rows& rows, std::initializer_list<cpu::Lines*> lines);

// Throws a ValueError for more columns than 31 bits count.
int columns_of(const Array& a, int axis, const char* what);

}  // namespace tilegrad::cuda
