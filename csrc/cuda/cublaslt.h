// D = epilogue(alpha·op(A)·op(B) + beta·C) by NVIDIA's cuBLASLt, which is loaded when first asked for.
//
// All matrices here are row-major, and cuBLASLt's are column-major. What is (r, c) with a leading dimension here is
// (c, r) with the same leading dimension there, and D = A·B is Dᵀ = Bᵀ·Aᵀ: our B is handed over as its A and our A as
// its B, n is its number of rows and m that of its columns, and each operand keeps its own transposition. Its bias has
// a value for each of its rows, which are our columns: one for each output feature of a linear layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "cublaslt_api.h"

namespace tilegrad::cublaslt {

// What is done to z = alpha·op(A)·op(B) + beta·C before it is stored. gelu is the tanh approximation everywhere.
//   bias:             z + bias, bias (n)
//   relu, gelu:       activation(z); with _bias, activation(z + bias)
//   …_aux:            and what the backward needs goes to aux: gelu's argument, or a bit mask that drelu reads
//   drelu, dgelu:     z times the derivative at aux
//   …_bgrad:          and the sums of that over the rows go to bias (n): the gradient of a bias
//   bgrad_a, bgrad_b: z, and the sums over k of op(A) (m) or of op(B) (n) go to bias
enum class Epilogue : uint32_t {
    none = EPILOGUE_DEFAULT,
    bias = EPILOGUE_BIAS,
    relu = EPILOGUE_RELU,
    relu_bias = EPILOGUE_RELU_BIAS,
    relu_aux = EPILOGUE_RELU_AUX,
    relu_aux_bias = EPILOGUE_RELU_AUX_BIAS,
    drelu = EPILOGUE_DRELU,
    drelu_bgrad = EPILOGUE_DRELU_BGRAD,
    gelu = EPILOGUE_GELU,
    gelu_bias = EPILOGUE_GELU_BIAS,
    gelu_aux = EPILOGUE_GELU_AUX,
    gelu_aux_bias = EPILOGUE_GELU_AUX_BIAS,
    dgelu = EPILOGUE_DGELU,
    dgelu_bgrad = EPILOGUE_DGELU_BGRAD,
    bgrad_a = EPILOGUE_BGRADB,  // our A is its B
    bgrad_b = EPILOGUE_BGRADA,
};

enum class Aux { none, mask, argument };

struct Traits {
    const char* name;
    Epilogue epilogue;
    bool bias;  // reads or writes one
    Aux aux;
    bool in_float64;
};
inline constexpr Traits EPILOGUES[] = {
    {"none", Epilogue::none, false, Aux::none, true},
    {"bias", Epilogue::bias, true, Aux::none, true},
    {"relu", Epilogue::relu, false, Aux::none, true},
    {"relu_bias", Epilogue::relu_bias, true, Aux::none, true},
    {"relu_aux", Epilogue::relu_aux, false, Aux::mask, false},
    {"relu_aux_bias", Epilogue::relu_aux_bias, true, Aux::mask, false},
    {"drelu", Epilogue::drelu, false, Aux::mask, false},
    {"drelu_bgrad", Epilogue::drelu_bgrad, true, Aux::mask, false},
    {"gelu", Epilogue::gelu, false, Aux::none, true},
    {"gelu_bias", Epilogue::gelu_bias, true, Aux::none, true},
    {"gelu_aux", Epilogue::gelu_aux, false, Aux::argument, false},
    {"gelu_aux_bias", Epilogue::gelu_aux_bias, true, Aux::argument, false},
    {"dgelu", Epilogue::dgelu, false, Aux::argument, false},
    {"dgelu_bgrad", Epilogue::dgelu_bgrad, true, Aux::argument, false},
    {"bgrad_a", Epilogue::bgrad_a, true, Aux::none, false},
    {"bgrad_b", Epilogue::bgrad_b, true, Aux::none, false},
};

struct Operand {
    const void* data;
    int64_t ld;  // elements from a row, as it is stored, to the next
    bool transposed;
};

struct Matmul {
    int64_t m, n, k;
    DataType type;      // of A and B
    DataType out_type;  // of C, D, bias and, for gelu, aux
    bool tf32;          // float32 operands may be rounded to TF32
    Operand a;          // op(A) is (m, k): A is stored (m, k), or (k, m) if transposed
    Operand b;          // op(B) is (k, n)
    const void* c;      // (m, n); not read if beta is 0; may be D
    int64_t ldc;
    void* d;  // (m, n)
    int64_t ldd;
    double alpha, beta;
    const Traits* epilogue;  // one of EPILOGUES
    void* bias;
    void* aux;       // (m, n)
    int64_t ld_aux;  // from row to row: elements for gelu and dgelu, bits for relu and drelu
    void* workspace;
    size_t workspace_bytes;
    int device;
    void* stream;
};

// Why cuBLASLt cannot take a call, by rules that need neither the library nor a GPU. Empty if it can.
std::string refusal(const Matmul& call);

// For messages: shapes, types and epilogue.
std::string description(const Matmul& call);

// The largest power of 2, up to 256, that a pointer is a multiple of.
uint32_t alignment(const void* pointer);

// The rules allow the call, and the library has no kernel for it all the same.
struct NoKernel : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Queues the product on its stream. Raises std::invalid_argument with the refusal, NoKernel or Unavailable. Which
// kernel it is, the first call of a kind decides: the library's own first candidate, or the one that tune found.
void run(const Matmul& call);

// Times the candidates on the call's stream and keeps the best for all calls of its kind: its microseconds. Waits for
// the stream. D goes to scratch, laid out and aligned as D is; what else is an output is written as by run. Another
// process may find another kernel the fastest, and its last bits differ.
float tune(const Matmul& call, void* scratch);

// How much workspace cuBLAS's documentation recommends for a device. Less, and none, are allowed.
size_t workspace_bytes(int device);

}  // namespace tilegrad::cublaslt
