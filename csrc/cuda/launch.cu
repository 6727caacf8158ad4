#include "launch.h"

namespace tilegrad::cuda {

namespace {

// Of a row, in one block: so that three of them are resident on a multiprocessor of 228 KiB, and loads overlap
// arithmetic.
constexpr int64_t COMFORTABLE = 68 << 10;
constexpr int64_t OF_WARP = 256;  // vectors of a row that a warp takes alone: eight a lane
constexpr int TILE_THREADS = 256;
constexpr int SECTOR = 32;        // bytes: what memory hands over at the least
constexpr int64_t DENSE = 512;    // bytes of a row, up to which several rows move as one
constexpr int SCRATCH = 4 << 10;  // bytes that vectors and edges may cost beside a row, at the most
constexpr int LARGEST_SUM = 96;   // bytes of what threads hand each other about a row

int64_t power_of_two(int64_t least) {
    int64_t n = 1;
    while (n < least) n *= 2;
    return n;
}

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device), "reading a device's attributes");
    return value;
}

}  // namespace

Chip chip() {
    int device = 0;
    check(cudaGetDevice(&device), "finding a CUDA device");
    Chip found{};
    found.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                       attribute(cudaDevAttrComputeCapabilityMinor, device);
    if (found.capability < 80)
        throw std::runtime_error("the CUDA C++ kernels need compute capability 8.0 or newer, got " +
                                 std::to_string(found.capability / 10) + "." + std::to_string(found.capability % 10));
    found.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    found.shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    // 16 blocks are more than every chip with clusters promises; those that have room for 227 KiB a block take them.
    found.clusters = attribute(cudaDevAttrClusterLaunch, device) ? (found.shared > 200 << 10 ? 16 : 8) : 1;
    return found;
}

bool fits(int64_t columns, int bytes, const Chip& chip) {
    return columns * bytes <= chip.clusters * (chip.shared - SCRATCH);
}

// --- layouts ---------------------------------------------------------------------------------------------------------

void close_last(cpu::Rows& rows, std::initializer_list<cpu::Lines*> lines) {
    const cpu::Lines& first = **lines.begin();
    for (int end = rows.dims - 1; end > 0; end--) {
        for (int d = 0; d < end; d++) {
            if (std::abs(first.rows[d]) >= std::abs(first.rows[d + 1])) continue;
            std::swap(rows.sizes[d], rows.sizes[d + 1]);
            for (cpu::Lines* of : lines) std::swap(of->rows[d], of->rows[d + 1]);
        }
    }
}

int columns_of(const Array& a, int axis, const char* what) {
    int64_t columns = a.ndim > 0 ? a.shape[axis] : 1;
    if (columns >= INT32_MAX - (1 << 16))
        throw std::invalid_argument(std::string(what) + ": expected fewer than 2147418111 columns, got " +
                                    std::to_string(columns));
    return static_cast<int>(columns);
}

namespace {

// Whether every row of every array begins the same number of elements behind a multiple of `width` of them, and its
// elements lie one behind the other.
bool are_congruent(const cpu::Rows& rows, std::initializer_list<Moved> arrays, int64_t width) {
    auto place = [width](int64_t bytes, int64_t size) {
        return bytes % size != 0 ? -1 : (bytes / size % width + width) % width;
    };
    const Moved& first = *arrays.begin();
    int64_t of_first = size_of(first.dtype);
    for (const Moved& a : arrays) {
        if (a.lines->data == nullptr) continue;
        int64_t size = size_of(a.dtype), at = place(reinterpret_cast<intptr_t>(a.lines->data), size);
        if (a.lines->column != size || at < 0 || at != place(reinterpret_cast<intptr_t>(first.lines->data), of_first))
            return false;
        for (int d = 0; d < rows.dims; d++) {
            int64_t step = place(a.lines->rows[d], size);
            if (step < 0 || step != place(first.lines->rows[d], of_first)) return false;
        }
    }
    return true;
}

// Whether the rows of each array are one piece of memory, at the same distance from 16 bytes.
bool are_together(const cpu::Rows& rows, int64_t columns, std::initializer_list<Moved> arrays) {
    int64_t size = size_of(arrays.begin()->dtype);
    for (const Moved& a : arrays)
        if (a.lines->data != nullptr &&
            (size_of(a.dtype) != size || (rows.dims > 0 && a.lines->rows[0] != columns * size)))
            return false;
    return rows.dims <= 1 && columns * size <= DENSE && are_congruent(rows, arrays, WIDE / size);
}

// Blocks that share rows of so many held bytes.
int cluster_for(int64_t bytes, const Chip& chip) {
    int64_t blocks = power_of_two(ceil_div(bytes, COMFORTABLE));
    return static_cast<int>(std::min<int64_t>(blocks, chip.clusters));
}

// Places of `place` bytes, as many as are wanted or fit beside the scratch.
int room_for(int64_t wanted, int64_t place, const Plan& plan, const Chip& chip) {
    if (place == 0) return 0;
    return static_cast<int>(std::min(wanted, (chip.shared - plan.before_cells()) / place));
}

void plan_vectors(Plan& plan, int64_t rows, int64_t columns, int size, int held, const Chip& chip) {
    int64_t vectors = ceil_div(columns * size + WIDE - size, WIDE);  // wherever the row begins
    if (vectors <= OF_WARP) {
        int64_t warps = std::min<int64_t>(8, power_of_two(ceil_div(rows, 2 * chip.multiprocessors)));
        plan.teams = {static_cast<int>(warps), 32, 1, 1};
        plan.block = static_cast<int>(32 * warps);
    } else {
        int cluster = held > 0 ? cluster_for(vectors * WIDE * held, chip) : 1;
        vectors = ceil_div(vectors, cluster);
        plan.block =
            static_cast<int>(std::min<int64_t>(MAX_THREADS, std::max<int64_t>(64, power_of_two(ceil_div(vectors, 8)))));
        plan.teams = {1, plan.block, 1, cluster};
    }
    plan.scratch = std::max(scratch_bytes(plan.block, 1, LARGEST_SUM), LARGEST_SUM);
    plan.room = room_for(vectors, static_cast<int64_t>(WIDE) * held * plan.teams.rows, plan, chip);
    plan.shared = plan.before_cells() + plan.room * WIDE * held * plan.teams.rows;
}

void plan_together(Plan& plan, int64_t columns, int size, int pieces) {
    int threads = static_cast<int>(std::min<int64_t>(32, power_of_two(ceil_div(columns, 8))));
    plan.teams = {TILE_THREADS / threads, threads, 1, 1};
    plan.block = TILE_THREADS;
    plan.scratch = scratch_bytes(plan.block, 1, LARGEST_SUM);
    plan.room = static_cast<int>(ceil_div(plan.teams.rows * columns * size + WIDE, WIDE) * WIDE);
    plan.together = true;
    plan.shared = plan.before_cells() + plan.room * pieces;
}

void plan_tiles(Plan& plan, const cpu::Rows& rows, int64_t columns, const cpu::Lines& first, int size, int held_bytes,
                const Chip& chip) {
    // Where rows are closer to each other than columns, neighbours take neighbouring rows, a sector of them.
    bool by_rows = rows.dims > 0 && columns > 1 && std::abs(first.rows[rows.dims - 1]) < std::abs(first.column);
    int64_t of_rows = by_rows ? std::min<int64_t>(SECTOR / size, power_of_two(rows.count)) : 1;
    int64_t threads = TILE_THREADS / of_rows;
    if (!by_rows && columns <= 4 * 32) threads = std::min<int64_t>(32, power_of_two(ceil_div(columns, 4)));
    int cluster = held_bytes > 0 ? cluster_for(of_rows * columns * held_bytes, chip) : 1;
    plan.block = TILE_THREADS;
    plan.teams = {static_cast<int>(TILE_THREADS / threads), static_cast<int>(threads), static_cast<int>(of_rows),
                  cluster};
    plan.scratch = scratch_bytes(plan.block, static_cast<int>(of_rows), LARGEST_SUM);
    plan.room = room_for(ceil_div(ceil_div(columns, cluster), threads), static_cast<int64_t>(held_bytes) * plan.block,
                         plan, chip);
    plan.shared = plan.before_cells() + plan.room * held_bytes * plan.block;
}

}  // namespace

Planned plan_rows(const cpu::Rows& rows, int64_t columns, std::initializer_list<Moved> arrays, bool vector,
                  const Chip& chip) {
    Planned made{Access::tiles, {}};
    const Moved& first = *arrays.begin();
    int size = size_of(first.dtype), inputs = 0, held = 0, held_bytes = 0;
    for (const Moved& a : arrays) {
        if (a.lines->data == nullptr || a.how == Moved::written) continue;
        inputs++;
        if (a.how == Moved::read) continue;
        held++;
        held_bytes += size_of(a.dtype);
    }
    if (are_together(rows, columns, arrays)) {
        made.access = Access::together;
        plan_together(made.plan, columns, size, std::max(1, inputs));
    } else if (vector && are_congruent(rows, arrays, WIDE / size)) {
        made.access = Access::vectors;
        plan_vectors(made.plan, rows.count, columns, size, held, chip);
    } else {
        plan_tiles(made.plan, rows, columns, *first.lines, size, held_bytes, chip);
    }
    return made;
}

}  // namespace tilegrad::cuda
