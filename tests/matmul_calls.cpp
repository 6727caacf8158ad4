// The launchers of the matrix products for ctypes.
#include <cuda_emulator.h>

#include "cuda/matmul.h"
#include "tried.h"

using namespace tilegrad::cuda;

extern "C" {
const char* call_matmul_tiles(const Matmul* m) { return tried([&] { matmul_tiles(*m, nullptr); }); }
const char* call_matmul_hopper(const Matmul* m) { return tried([&] { matmul_hopper(*m, nullptr); }); }
int call_hopper_takes(const Matmul* m, int compute_capability) { return hopper_takes(*m, compute_capability); }
const char* call_dz(const DZ* d) { return tried([&] { dz(*d, nullptr); }); }
// Fewer than a chip has make blocks go through several tiles where results are small.
void set_multiprocessors(int count) { cuda_emulator::options().multiprocessors = count; }
int64_t call_workspace_bytes(const DZ* d) { return workspace_bytes(*d); }
}
