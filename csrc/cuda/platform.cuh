// What every kernel includes: CUDA's own headers, or, for g++, the emulator that stands in for them (tests/cuda_emulator).
#pragma once

#ifdef CUDA_EMULATOR
#include <cuda_emulator.h>
#define EXTERN_SHARED(T, name) T* name = cuda_emulator::dynamic_shared<T>()
#else
#include <cooperative_groups.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// The same array under the name and type of every kernel that uses it: the linker takes them for one.
#define EXTERN_SHARED(T, name) extern __shared__ __align__(1024) T name[]
#endif

#include <cstdint>

// Clusters, mbarriers and bulk copies; and what only sm_90a has of them: wgmma and setmaxnreg.
#if defined(CUDA_EMULATOR) || __CUDA_ARCH__ >= 900
#define HOPPER 1
#endif
#if defined(CUDA_EMULATOR) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_A 1
#endif
