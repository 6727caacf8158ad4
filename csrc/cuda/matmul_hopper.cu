// The matrix product on Hopper: which calls it takes, and which variant of the kernel is for which.
#include "matmul_hopper_launch.cuh"

namespace tilegrad::cuda {
namespace {

// Columns, stages, blocks of a cluster.
//
// Wide: the sums of a tile fill the registers, so a byte of shared memory serves as many products as it can: wgmma of
// 64 × 256 reads 80 bytes a cycle of the 128 that there are. Sharing B in pairs takes a third off what comes out of L2.
// Narrow: for results that have too few wide tiles to occupy the chip.
using Wide = TileShape<256, 4, 2>;
using Narrow = TileShape<128, 6, 1>;
constexpr double NARROW_SLOWDOWN = 1.15;  // of a product: wgmma of 64 × 128 reads 96 bytes a cycle, and L2 gives more

// How long it takes, in units of 128 columns: whole rounds of all multiprocessors.
template <class Tile> double rounds(const Matmul& m, int multiprocessors) {
    int64_t clusters = clusters_down<Tile>(m) * tiles_across<Tile>(m);
    int64_t at_a_time = std::max(multiprocessors / Tile::CLUSTER, 1);
    return static_cast<double>(ceil_div(clusters, at_a_time)) * (Tile::COLUMNS / 128);
}

template <class Tile, class T> void launch_layout(const Matmul& m, int multiprocessors, cudaStream_t stream) {
    bool a = along_rows(m.a, m.rows, m.depth, m.a_row, m.a_depth);
    bool b = along_rows(m.b, is_gated(m.activation) ? 2 * m.columns : m.columns, m.depth, m.b_column, m.b_depth);
    if (a) {
        return b ? launch_hopper<Tile, true, true, T>(m, multiprocessors, stream)
                 : launch_hopper<Tile, true, false, T>(m, multiprocessors, stream);
    }
    return b ? launch_hopper<Tile, false, true, T>(m, multiprocessors, stream)
             : launch_hopper<Tile, false, false, T>(m, multiprocessors, stream);
}

template <class T> void launch_variant(const Matmul& m, cudaStream_t stream) {
    int multiprocessors = chip().multiprocessors;
    bool narrow = rounds<Narrow>(m, multiprocessors) * NARROW_SLOWDOWN < rounds<Wide>(m, multiprocessors);
    return narrow ? launch_layout<Narrow, T>(m, multiprocessors, stream)
                  : launch_layout<Wide, T>(m, multiprocessors, stream);
}

}  // namespace

bool hopper_takes(const Matmul& m, int compute_capability) {
    int64_t b_columns = is_gated(m.activation) ? 2 * m.columns : m.columns;
    constexpr int64_t MOST = INT32_MAX - 1024;  // coordinates of a tile beyond the edge are ints, too
    return compute_capability == 90 && size_of(m.dtype) == 2 && m.rows > 0 && m.rows <= MOST && b_columns > 0 &&
           b_columns <= MOST && m.depth > 0 && m.depth <= MOST &&
           operand_takes(m.a, m.rows, m.depth, m.a_row, m.a_depth) &&
           operand_takes(m.b, b_columns, m.depth, m.b_column, m.b_depth);
}

void matmul_hopper(const Matmul& m, cudaStream_t stream) {
    check_matmul(m);
    if (!hopper_takes(m, 90)) throw std::invalid_argument("matmul_hopper: expected what hopper_takes() accepts");
    if (m.dtype == DType::bfloat16) return launch_variant<__nv_bfloat16>(m, stream);
    return launch_variant<__half>(m, stream);
}

}  // namespace tilegrad::cuda
