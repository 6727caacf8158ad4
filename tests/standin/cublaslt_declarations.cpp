// Compiles where csrc/cuda/cublaslt_api.h says the same as NVIDIA's headers.

#include <cublasLt.h>
#include <cuda.h>

#include <type_traits>

#include "cuda/cublaslt_api.h"

namespace tilegrad::cublaslt {

// Functions of one shape: the same number of arguments, and in each place as many bytes, passed in the same way.
template <class T> constexpr int way = std::is_pointer_v<T> ? 1 : std::is_floating_point_v<T> ? 2 : 3;
template <class A, class B> constexpr bool same = sizeof(A) == sizeof(B) && way<A> == way<B>;

template <class A, class... As, class B, class... Bs> constexpr bool alike(A (*)(As...), B (*)(Bs...)) {
    if constexpr (sizeof...(As) != sizeof...(Bs))
        return false;
    else
        return same<A, B> && (same<As, Bs> && ...);
}

#define FUNCTION(table, name) static_assert(alike(decltype(table::name){}, decltype(&::name){}))
FUNCTION(CublasLt, cublasLtGetVersion);
FUNCTION(CublasLt, cublasLtGetCudartVersion);
FUNCTION(CublasLt, cublasLtGetStatusName);
FUNCTION(CublasLt, cublasLtCreate);
FUNCTION(CublasLt, cublasLtMatmulDescCreate);
FUNCTION(CublasLt, cublasLtMatmulDescDestroy);
FUNCTION(CublasLt, cublasLtMatmulDescSetAttribute);
FUNCTION(CublasLt, cublasLtMatrixLayoutCreate);
FUNCTION(CublasLt, cublasLtMatrixLayoutDestroy);
FUNCTION(CublasLt, cublasLtMatmulPreferenceCreate);
FUNCTION(CublasLt, cublasLtMatmulPreferenceDestroy);
FUNCTION(CublasLt, cublasLtMatmulPreferenceSetAttribute);
FUNCTION(CublasLt, cublasLtMatmulAlgoGetHeuristic);
FUNCTION(CublasLt, cublasLtMatmul);
FUNCTION(Driver, cuInit);
FUNCTION(Driver, cuDriverGetVersion);
FUNCTION(Driver, cuGetErrorName);
FUNCTION(Driver, cuDeviceGet);
FUNCTION(Driver, cuDeviceGetAttribute);
FUNCTION(Driver, cuDevicePrimaryCtxRetain);
FUNCTION(Driver, cuCtxGetCurrent);
FUNCTION(Driver, cuCtxSetCurrent);
FUNCTION(Driver, cuStreamIsCapturing);
FUNCTION(Driver, cuEventCreate);
FUNCTION(Driver, cuEventRecord);
FUNCTION(Driver, cuEventSynchronize);
FUNCTION(Driver, cuEventElapsedTime);
FUNCTION(Driver, cuEventDestroy_v2);

#define VALUE(ours, theirs) static_assert(static_cast<long long>(ours) == static_cast<long long>(theirs))
VALUE(DataType::float32, CUDA_R_32F);
VALUE(DataType::float64, CUDA_R_64F);
VALUE(DataType::float16, CUDA_R_16F);
VALUE(DataType::bfloat16, CUDA_R_16BF);
VALUE(STATUS_SUCCESS, CUBLAS_STATUS_SUCCESS);
VALUE(STATUS_NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
VALUE(ComputeType::float32, CUBLAS_COMPUTE_32F);
VALUE(ComputeType::float64, CUBLAS_COMPUTE_64F);
VALUE(ComputeType::tf32, CUBLAS_COMPUTE_32F_FAST_TF32);
VALUE(Operation::none, CUBLAS_OP_N);
VALUE(Operation::transpose, CUBLAS_OP_T);
VALUE(DescAttribute::transpose_a, CUBLASLT_MATMUL_DESC_TRANSA);
VALUE(DescAttribute::transpose_b, CUBLASLT_MATMUL_DESC_TRANSB);
VALUE(DescAttribute::epilogue, CUBLASLT_MATMUL_DESC_EPILOGUE);
VALUE(DescAttribute::bias_pointer, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
VALUE(DescAttribute::aux_pointer, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
VALUE(DescAttribute::aux_ld, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
VALUE(PreferenceAttribute::max_workspace_bytes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
VALUE(PreferenceAttribute::reduction_scheme_mask, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
VALUE(REDUCTION_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_NONE);
VALUE(REDUCTION_ANY, CUBLASLT_REDUCTION_SCHEME_MASK);
VALUE(PreferenceAttribute::min_alignment_a, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
VALUE(PreferenceAttribute::min_alignment_b, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
VALUE(PreferenceAttribute::min_alignment_c, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
VALUE(PreferenceAttribute::min_alignment_d, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
VALUE(EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_DEFAULT);
VALUE(EPILOGUE_RELU, CUBLASLT_EPILOGUE_RELU);
VALUE(EPILOGUE_BIAS, CUBLASLT_EPILOGUE_BIAS);
VALUE(EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_RELU_BIAS);
VALUE(EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU);
VALUE(EPILOGUE_GELU_BIAS, CUBLASLT_EPILOGUE_GELU_BIAS);
VALUE(EPILOGUE_RELU_AUX, CUBLASLT_EPILOGUE_RELU_AUX);
VALUE(EPILOGUE_RELU_AUX_BIAS, CUBLASLT_EPILOGUE_RELU_AUX_BIAS);
VALUE(EPILOGUE_DRELU, CUBLASLT_EPILOGUE_DRELU);
VALUE(EPILOGUE_DRELU_BGRAD, CUBLASLT_EPILOGUE_DRELU_BGRAD);
VALUE(EPILOGUE_GELU_AUX, CUBLASLT_EPILOGUE_GELU_AUX);
VALUE(EPILOGUE_GELU_AUX_BIAS, CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
VALUE(EPILOGUE_DGELU, CUBLASLT_EPILOGUE_DGELU);
VALUE(EPILOGUE_DGELU_BGRAD, CUBLASLT_EPILOGUE_DGELU_BGRAD);
VALUE(EPILOGUE_BGRADA, CUBLASLT_EPILOGUE_BGRADA);
VALUE(EPILOGUE_BGRADB, CUBLASLT_EPILOGUE_BGRADB);
VALUE(DRIVER_SUCCESS, CUDA_SUCCESS);
VALUE(DeviceAttribute::compute_capability_major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
VALUE(EVENT_DEFAULT, CU_EVENT_DEFAULT);
VALUE(CaptureStatus::none, CU_STREAM_CAPTURE_STATUS_NONE);

static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, algorithm) == offsetof(cublasLtMatmulHeuristicResult_t, algo));
static_assert(offsetof(HeuristicResult, workspace_bytes) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(HeuristicResult, waves) == offsetof(cublasLtMatmulHeuristicResult_t, wavesCount));

}  // namespace tilegrad::cublaslt
