// The variables that CUDA's headers declare for kernels, in storage that the scheduler can write: the headers declare
// them const, which is true as long as one thread runs. So this file must not include them.
namespace cuda_emulator {
struct Index {
    unsigned x, y, z;
};
}  // namespace cuda_emulator

extern "C" {
cuda_emulator::Index threadIdx, blockIdx;
cuda_emulator::Index blockDim, gridDim;
int warpSize = 32;
}

namespace cuda_emulator {
void set_thread(Index thread, Index block) {
    threadIdx = thread;
    blockIdx = block;
}
void set_dimensions(Index block, Index grid) {
    blockDim = block;
    gridDim = grid;
}
}  // namespace cuda_emulator
