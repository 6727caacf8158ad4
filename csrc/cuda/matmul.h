// Matrix products with a fused bias and activation, and the pass of their backward that makes dZ.
//
// Everything is in device memory. All strides and sizes are in elements; a transposed matrix is one with its strides
// exchanged. A null pointer means "not given" or "not wanted". Nothing is allocated here.
#pragma once

#include <cstdint>
#include <driver_types.h>

#include "../cpu/api.h"

namespace tilegrad::cuda {

using cpu::DType;

// out (rows, columns) = activation(A (rows, depth) · B (columns, depth)ᵀ + bias (columns)).
//
// A gated activation (activation.cuh) has twice the columns in B, bias and pre: those of the gate before those of what
// it is multiplied with.
struct Matmul {
    int64_t rows, columns, depth;
    DType dtype;                  // of A, B, bias and pre
    const void* a;
    int64_t a_row, a_depth;       // from one row to the next; and along it
    const void* b;
    int64_t b_column, b_depth;    // from one column of the result to the next
    const void* bias;
    int64_t bias_stride;
    void* pre;                    // the pre-activation
    int64_t pre_row, pre_column;
    void* out;
    int64_t out_row, out_column;
    DType out_dtype;              // dtype; or float32 where that has 16 bits, then without activation and pre
    bool accumulate;              // add to what is in out: float32 or float64, likewise without activation and pre
    int activation;               // its number; −1: none
};

// Throws std::invalid_argument if the fields do not go together as said above.
void check_matmul(const Matmul&);

// Any strides and dtypes, any chip from sm_80: float64 in double, the others summed in float. The one of last resort.
void matmul_tiles(const Matmul&, cudaStream_t);

// Whether matmul_hopper can: on sm_90, operands of 16 bits, each contiguous along one dimension and 16-byte aligned
// along the other. The result, the bias and the pre-activation may lie as they like.
bool hopper_takes(const Matmul&, int compute_capability);
void matmul_hopper(const Matmul&, cudaStream_t);

// dZ = dY · act'(Z), and its sum over the rows. Of a gated activation, Z, dZ and the sums have twice the columns of dY.
struct DZ {
    int64_t rows, columns;        // of dY
    DType dtype;                  // of all but the workspace
    int activation;
    const void* grad;             // dY
    int64_t grad_row, grad_column;
    const void* saved;            // Z, or the output where its sign is enough; null without activation
    int64_t saved_row, saved_column;
    void* dz;                     // or null
    int64_t dz_row;               // contiguous along a row
    void* bias_grad;              // (columns of Z), contiguous; or null
    void* workspace;              // of workspace_bytes(); contents do not matter. Null if that is 0
};

int64_t workspace_bytes(const DZ&);
void dz(const DZ&, cudaStream_t);

}  // namespace tilegrad::cuda
