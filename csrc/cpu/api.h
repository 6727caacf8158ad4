// What bindings.cpp hands to the kernels, and the table in which every instruction set offers its own build of them.
//
// A kernel works on a range of rows (or elements) and knows no threads; pool.h shares the ranges out. All strides are in
// bytes, and may be 0 or negative. A null pointer means "not given" or "not wanted".
#pragma once

#include <cstdint>
#include <cstring>

namespace tilegrad::cpu {

enum class DType : int { float32, float64, bfloat16, float16 };

constexpr int MAX_DIMS = 12;  // of rows, once neighbours that allow it are merged

// The dimensions of an array that are not reduced, the innermost last.
struct Rows {
    int dims;
    int64_t sizes[MAX_DIMS];
    int64_t count;  // their product
};

// Where an array keeps its rows.
struct Lines {
    char* data;
    int64_t column;          // from one element of a row to the next
    int64_t rows[MAX_DIMS];  // along each dimension of Rows
};

// Out of line: unrolled for MAX_DIMS wherever a row is asked for, the divisions would be most of the code.
__attribute__((noinline)) static inline int64_t offset_by_divisions(const Rows& rows, const Lines& lines, int64_t row) {
    int64_t bytes = 0;
    for (int d = rows.dims - 1; d > 0; d--) {
        int64_t outer = row / rows.sizes[d];
        bytes += (row - outer * rows.sizes[d]) * lines.rows[d];
        row = outer;
    }
    return bytes + row * lines.rows[0];
}

// From `data` to the row of this number, in bytes.
__attribute__((always_inline)) static inline int64_t offset(const Rows& rows, const Lines& lines, int64_t row) {
    if (rows.dims > 1) return offset_by_divisions(rows, lines, row);
    return rows.dims ? row * lines.rows[0] : 0;
}

struct Softmax {
    Rows rows;
    int64_t columns;
    bool log;
    DType in_dtype;  // of x; backward: of grad and y
    DType out_dtype;
    Lines x;     // forward: the input; backward: the gradient of the output
    Lines y;     // backward: the output of the forward
    Lines out;
};

enum class Index : int { int8, int16, int32, int64, uint8, uint16, uint32, uint64 };

// An index as int64; one of uint64 that does not fit becomes negative, and so is out of range, too.
template <class I> static int64_t index_of(const char* p) {
    I index;
    std::memcpy(&index, p, sizeof index);
    return static_cast<int64_t>(index);
}

// f(a null pointer of the type that an index has).
template <class F> static inline auto of_index_type(Index type, F f) {
    switch (type) {
        case Index::int8: return f(static_cast<int8_t*>(nullptr));
        case Index::int16: return f(static_cast<int16_t*>(nullptr));
        case Index::int32: return f(static_cast<int32_t*>(nullptr));
        case Index::int64: return f(static_cast<int64_t*>(nullptr));
        case Index::uint8: return f(static_cast<uint8_t*>(nullptr));
        case Index::uint16: return f(static_cast<uint16_t*>(nullptr));
        case Index::uint32: return f(static_cast<uint32_t*>(nullptr));
        default: return f(static_cast<uint64_t*>(nullptr));
    }
}

template <class I> static int64_t index_of(const char* p, I*) { return index_of<I>(p); }

static inline int64_t index_at(const char* p, Index type) {
    return of_index_type(type, [p](auto* of) { return index_of(p, of); });
}

// f(index) of the rows from first to last, in a loop of its own for each type of index.
template <class F>
static inline void for_indices(const Rows& rows, const Lines& lines, Index type, int64_t first, int64_t last, F f) {
    int64_t step = rows.dims ? lines.rows[0] : 0;
    of_index_type(type, [&](auto* of) {
        for (int64_t row = first; row < last; row++)
            f(index_of(lines.data + (rows.dims > 1 ? offset(rows, lines, row) : row * step), of));
    });
}

struct CrossEntropy {
    Rows rows;
    int64_t classes;
    DType dtype;  // of logits, probabilities, weight, loss, gradients
    Lines logits;
    Lines indices;         // the targets: one class for each row …
    Index index_dtype;
    Lines probabilities;   // … or one number for each class
    const char* weight;    // (classes), contiguous
    int64_t ignore_index;
    double label_smoothing, z_loss, softcap;  // softcap 0: none

    // Σ q·log p and λ·lse² are divided by these: 1, or the denominators of a mean.
    double by_share, by_count;
    Lines upstream;        // of each row (strides 0: one for all); null: 1

    // Forward: each row's two terms, undivided, in the order of the rows; and the outputs.
    double* cross;
    double* square;
    Lines loss;            // the rows' losses, for reduction "none"
    Lines top, log_sum;    // the logsumexp in two parts, float32 (float64 for float64); backward: read if given
    Lines argmax;          // int64

    Lines grad, grad_target;
    bool stream;           // the gradient is so large that it should go past the caches
};

// Activations are numbered as in activations.h, in the order of tilegrad.activations.ACTIVATIONS; −1: none.
struct Epilogue {  // of z = x Wᵀ, in place of it or not
    int64_t rows, columns;      // of the output; a gated activation has 2·columns of z, the gate first
    DType dtype;
    DType z_dtype;              // the same; or float32, where dtype has 16 bits
    int activation;
    char* z;                    // rows of z, dense within a row
    int64_t z_row;
    const char* bias;           // contiguous, as many as z has columns
    char* pre;                  // z + bias, or null; may be z itself
    int64_t pre_row;
    char* out;                  // may be z itself unless gated
    int64_t out_row;
};

struct EpilogueBackward {  // dZ = dY · act'(Z), and the sum over the rows
    int64_t rows, columns;      // as above
    DType dtype;
    int activation;
    const char* grad;           // of the output
    int64_t grad_row, grad_column;
    const char* saved;          // the pre-activation, or the output where its sign is enough
    int64_t saved_row;
    char* dz;                   // may be grad itself
    int64_t dz_row;
    double* bias_sums;          // (columns of z) of this range of rows, added to; or null
};

// c = a·b for float32 or float64, with at most MOST_PRODUCT multiplications: c is (rows, columns), dense within a row.
constexpr int64_t MOST_PRODUCT = 8192;
struct Product {
    DType dtype;
    int64_t rows, columns, depth;
    const char* a;              // (rows, depth)
    int64_t a_row, a_column;
    const char* b;              // (depth, columns)
    int64_t b_row, b_column;
    char* c;
    int64_t c_row;
};

// Products of bfloat16 in pairs along the depth, block by block. A factor as its lines: the rows of a, the columns of b.
struct Factor {
    const char* data;
    DType dtype;          // bfloat16, or float32, which is rounded to it
    int64_t line, depth;  // from one line to the next, and along a line
};

struct Packing {  // into groups of `height` lines
    int64_t lines, depth, height;
};

struct PackedProduct {
    const char* a;              // (groups of rows, pairs, lanes)
    const char* b;              // (groups of columns, pairs, lanes)
    int64_t rows, columns, pairs, height;
    bool add;                   // to `sums`
    char* sums;                 // float32; rows are dense
    int64_t sums_row;
    char* out;                  // bfloat16, instead of back into `sums`; or null
    int64_t out_row;
};

struct PairKernels {
    int64_t most_rows, lanes;   // of a group of rows; of a group of columns
    void (*pack)(const Factor&, const Packing&, int64_t first, int64_t last, char* to);  // groups
    void (*multiply)(const PackedProduct&, int64_t group, int64_t first, int64_t last);  // columns, from a group's first
};

// One parameter of an optimiser, contiguous, float32 or float64.
struct Parameter {
    DType dtype;
    int64_t count;
    char* value;
    const char* grad;
    char* first;    // SGD: the momentum buffer; Adam: the first moment
    char* second;   // Adam: the second moment
    char* largest;  // AMSGrad: the largest second moment so far
    int64_t step;   // this one's number, from 1; SGD's momentum buffer is begun at 1
};

struct Sgd {
    double lr, momentum, dampening, weight_decay;
    bool nesterov, maximize;
};

struct Adam {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled, maximize;  // decoupled: AdamW
};

struct Kernels {
    const char* name;
    void (*softmax)(const Softmax&, int64_t first, int64_t last);  // rows
    void (*softmax_backward)(const Softmax&, int64_t first, int64_t last);
    void (*cross_entropy)(const CrossEntropy&, int64_t first, int64_t last);
    void (*cross_entropy_backward)(const CrossEntropy&, int64_t first, int64_t last);
    void (*epilogue)(const Epilogue&, int64_t first, int64_t last);
    void (*epilogue_backward)(const EpilogueBackward&, int64_t first, int64_t last);
    void (*product)(const Product&);
    void (*scale)(DType, char* data, int64_t count, double factor);
    void (*convert)(const char* from, DType from_dtype, char* to, DType to_dtype, int64_t count);
    void (*sgd)(const Sgd&, const Parameter&, int64_t first, int64_t last);  // elements
    void (*adam)(const Adam&, const Parameter&, int64_t first, int64_t last);
};

extern const Kernels baseline_kernels, avx2_kernels, avx512_kernels;

// The best that this machine runs, or what TILEGRAD_ISA names.
const Kernels& kernels();

// Those of this processor, if it has the instructions and kernels() are of their instruction set; or null.
const PairKernels* pair_kernels();

// Throws a std::bad_alloc that says how many bytes there was no memory for.
[[noreturn]] void no_memory(int64_t bytes);

}  // namespace tilegrad::cpu
