// Beside the kernels of avx512.cpp, on processors that have AVX512-BF16 too.
#define TG_ISA avx512bf16
#define TG_BYTES 64
#include "product_bf16.h"

namespace tilegrad::cpu {

extern const PairKernels avx512bf16_kernels;
const PairKernels avx512bf16_kernels = {
    avx512bf16::MOST_ROWS,
    avx512bf16::LANES,
    avx512bf16::pack,
    avx512bf16::multiply,
};

}  // namespace tilegrad::cpu
