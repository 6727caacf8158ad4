// What is needed of cuBLASLt and of CUDA's driver library, declared here once more: where this is compiled there may be
// none of NVIDIA's headers, and where it is imported none of its libraries. tests/test_cublaslt.py holds every
// declaration against the real headers. A comment names the header, and the type in it, that is mirrored.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tilegrad::cublaslt {

// library_types.h: cudaDataType_t
enum class DataType : int32_t { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 14 };

// cublas_api.h: cublasStatus_t, cublasComputeType_t, cublasOperation_t
enum Status : int32_t { STATUS_SUCCESS = 0, STATUS_NOT_SUPPORTED = 15 };
enum class ComputeType : int32_t { float32 = 68, float64 = 70, tf32 = 77 };
enum class Operation : int32_t { none = 0, transpose = 1 };

// cublasLt.h: cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t, cublasLtReductionScheme_t,
// cublasLtEpilogue_t
enum class DescAttribute : int32_t {
    transpose_a = 3,
    transpose_b = 4,
    epilogue = 7,
    bias_pointer = 8,
    aux_pointer = 11,
    aux_ld = 12,
};
enum class PreferenceAttribute : int32_t {
    max_workspace_bytes = 1,
    reduction_scheme_mask = 3,
    min_alignment_a = 5,
    min_alignment_b = 6,
    min_alignment_c = 7,
    min_alignment_d = 8,
};
enum ReductionScheme : uint32_t { REDUCTION_COMPUTE_TYPE = 2, REDUCTION_ANY = 7 };
enum EpilogueCode : uint32_t {
    EPILOGUE_DEFAULT = 1,
    EPILOGUE_RELU = 2,
    EPILOGUE_BIAS = 4,
    EPILOGUE_RELU_BIAS = 6,
    EPILOGUE_GELU = 32,
    EPILOGUE_GELU_BIAS = 36,
    EPILOGUE_RELU_AUX = 130,
    EPILOGUE_RELU_AUX_BIAS = 134,
    EPILOGUE_DRELU = 136,
    EPILOGUE_DRELU_BGRAD = 152,
    EPILOGUE_GELU_AUX = 160,
    EPILOGUE_GELU_AUX_BIAS = 164,
    EPILOGUE_DGELU = 192,
    EPILOGUE_DGELU_BGRAD = 208,
    EPILOGUE_BGRADA = 256,
    EPILOGUE_BGRADB = 512,
};

// cublasLt.h: cublasLtMatmulAlgo_t, cublasLtMatmulHeuristicResult_t
struct Algorithm {
    uint64_t data[8];
};
struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};

// cublasLt.h: cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t
using Handle = struct HandleObject*;
using Desc = struct DescObject*;
using Layout = struct LayoutObject*;
using Preference = struct PreferenceObject*;

struct CublasLt {
    size_t (*cublasLtGetVersion)();
    size_t (*cublasLtGetCudartVersion)();
    const char* (*cublasLtGetStatusName)(Status);
    Status (*cublasLtCreate)(Handle*);
    Status (*cublasLtMatmulDescCreate)(Desc*, ComputeType, DataType scale);
    Status (*cublasLtMatmulDescDestroy)(Desc);
    Status (*cublasLtMatmulDescSetAttribute)(Desc, DescAttribute, const void* value, size_t bytes);
    Status (*cublasLtMatrixLayoutCreate)(Layout*, DataType, uint64_t rows, uint64_t columns, int64_t ld);
    Status (*cublasLtMatrixLayoutDestroy)(Layout);
    Status (*cublasLtMatmulPreferenceCreate)(Preference*);
    Status (*cublasLtMatmulPreferenceDestroy)(Preference);
    Status (*cublasLtMatmulPreferenceSetAttribute)(Preference, PreferenceAttribute, const void* value, size_t bytes);
    Status (*cublasLtMatmulAlgoGetHeuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int room,
                                             HeuristicResult* results, int* count);
    Status (*cublasLtMatmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout,
                             const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*,
                             void* workspace, size_t workspace_bytes, void* stream);
};

// cuda.h: CUresult, CUcontext, CUevent, CUdevice_attribute, CUevent_flags, CUstreamCaptureStatus
enum DriverResult : int32_t { DRIVER_SUCCESS = 0 };
using Context = struct ContextObject*;
using Event = struct EventObject*;
enum class DeviceAttribute : int32_t { compute_capability_major = 75 };
enum EventFlags : uint32_t { EVENT_DEFAULT = 0 };
enum class CaptureStatus : int32_t { none = 0 };

struct Driver {
    DriverResult (*cuInit)(unsigned flags);
    DriverResult (*cuDriverGetVersion)(int*);
    DriverResult (*cuGetErrorName)(DriverResult, const char**);
    DriverResult (*cuDeviceGet)(int* device, int ordinal);
    DriverResult (*cuDeviceGetAttribute)(int*, DeviceAttribute, int device);
    DriverResult (*cuDevicePrimaryCtxRetain)(Context*, int device);
    DriverResult (*cuCtxGetCurrent)(Context*);
    DriverResult (*cuCtxSetCurrent)(Context);
    DriverResult (*cuStreamIsCapturing)(void* stream, CaptureStatus*);
    DriverResult (*cuEventCreate)(Event*, unsigned flags);
    DriverResult (*cuEventRecord)(Event, void* stream);
    DriverResult (*cuEventSynchronize)(Event);
    DriverResult (*cuEventElapsedTime)(float* milliseconds, Event start, Event end);
    DriverResult (*cuEventDestroy_v2)(Event);
};

}  // namespace tilegrad::cublaslt
