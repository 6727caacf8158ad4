// CUDA's own headers as g++ sees them: the vector types, bf16 and fp16 with their arithmetic on the host, the
// declarations of the runtime API and of threadIdx. The keywords of device code become nothing.
#pragma once

// The header's launch template forgets the types of the kernel's parameters: runtime.h has one that does not.
#define cudaLaunchKernelEx cuda_emulator_untyped_launch
#include <cuda_runtime.h>
#undef cudaLaunchKernelEx
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <device_launch_parameters.h>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
#undef __cluster_dims__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __shared__ static thread_local  // shared_memory.h
#define __grid_constant__
#define __launch_bounds__(...)
