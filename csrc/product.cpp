// Products of matrices of bfloat16, where the processor has instructions for them: blocks that fit the caches are packed,
// and multiplied tile by tile. What is added up in which order does not depend on the threads.

#include <algorithm>

#include "cpu/pool.h"
#include "memory.h"
#include "operations.h"

namespace tilegrad::cpu {
namespace {

constexpr int64_t ROWS = 1120, COLUMNS = 1024, DEPTH = 1024;  // at most, of a block: 9 MiB of workspace
constexpr int64_t TILE = 128;                                 // columns of b that stay in a core's cache
constexpr int64_t SERIAL = 1 << 20;                           // multiplications that are not worth a second thread

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Into how long pieces of a multiple of `unit` a length is cut, so that there are as few as `most` allows, and equal.
int64_t piece(int64_t length, int64_t most, int64_t unit) {
    int64_t pieces = std::max<int64_t>(1, ceil_div(length, most));
    return std::max(unit, ceil_div(ceil_div(length, pieces), unit) * unit);
}

class Workspace {
  public:
    explicit Workspace(int64_t bytes) : data_(static_cast<char*>(memory::take(static_cast<size_t>(bytes)))) {
        if (data_ == nullptr) no_memory(bytes);
    }
    ~Workspace() { memory::give_back(data_); }
    Workspace(const Workspace&) = delete;
    char* data() const { return data_; }

  private:
    char* data_;
};

Factor lines_of(const Array& x, int line) { return {x.data, x.dtype(), x.strides[line], x.strides[1 - line]}; }

Factor part(Factor x, int64_t line, int64_t depth) {
    x.data += line * x.line + depth * x.depth;
    return x;
}

}  // namespace

bool multiplies_bfloat16() { return pair_kernels() != nullptr; }

void run_product(const Array& left, const Array& right, const Array& c, bool add) {
    const PairKernels* kernels = pair_kernels();
    auto fits = [](const Array& x) {
        return x.ndim == 2 && (x.floating == DType::bfloat16 || x.floating == DType::float32);
    };
    bool narrow = c.floating == DType::bfloat16;
    if (!kernels || !fits(left) || !fits(right) || !fits(c) || (narrow && add))
        throw std::invalid_argument("product: expected matrices of bfloat16 or float32, and instructions for them");
    int64_t rows = c.shape[0], columns = c.shape[1], depth = left.shape[1];
    if (left.shape[0] != rows || right.shape[0] != depth || right.shape[1] != columns)
        throw std::invalid_argument("product: expected matrices (M, K), (K, N) and (M, N)");
    if (rows * columns == 0) return;
    int64_t size = bytes_of(c.dtype());
    if (columns > 1 && c.strides[1] != size) throw std::invalid_argument("product: expected a result of dense rows");
    if (depth == 0) {
        for (int64_t row = 0; row < rows && !add; row++) std::memset(c.data + row * c.strides[0], 0, columns * size);
        return;
    }

    std::optional<Unlocked> unlocked;
    int threads = 1;
    if (rows * columns * depth > SERIAL) {
        unlocked.emplace();
        threads = num_threads();
    }
    Factor a = lines_of(left, 0), b = lines_of(right, 1);
    int64_t lanes = kernels->lanes;
    int64_t most_rows = piece(rows, ROWS, 1), most_columns = piece(columns, COLUMNS, 2 * lanes);
    int64_t most_depth = piece(depth, DEPTH, 2);
    int64_t height = piece(most_rows, kernels->most_rows, 1);
    bool whole = most_depth >= depth, kept = narrow && !whole;
    int64_t group = most_depth / 2 * lanes * 4;  // bytes
    int64_t of_a = ceil_div(most_rows, height) * group, of_b = ceil_div(most_columns, lanes) * group;
    Workspace room(of_a + of_b + (kept ? most_rows * most_columns * 4 : 0));
    PackedProduct p{};
    p.a = room.data();
    p.b = room.data() + of_a;
    p.height = height;

    for (int64_t row = 0; row < rows; row += most_rows) {
        for (int64_t column = 0; column < columns; column += most_columns) {
            p.rows = std::min(most_rows, rows - row);
            p.columns = std::min(most_columns, columns - column);
            char* block = c.data + row * c.strides[0] + column * size;
            p.sums = narrow ? room.data() + of_a + of_b : block;
            p.sums_row = narrow ? most_columns * 4 : c.strides[0];
            p.out_row = c.strides[0];
            int64_t groups_a = ceil_div(p.rows, height), groups_b = ceil_div(p.columns, lanes);
            for (int64_t d = 0; d < depth; d += most_depth) {
                int64_t length = std::min(most_depth, depth - d), skipped = whole && column > 0 ? groups_a : 0;
                p.pairs = (length + 1) / 2;
                p.add = add || d > 0;
                p.out = narrow && d + length == depth ? block : nullptr;
                Factor part_a = part(a, row, d), part_b = part(b, column, d);
                share(groups_a + groups_b - skipped, 1, threads, [&](int64_t first, int64_t last) {
                    first += skipped - groups_a;  // groups of b are counted from 0, those of a come before
                    last += skipped - groups_a;
                    Packing of_rows{p.rows, length, height}, of_columns{p.columns, length, lanes};
                    if (first < 0)
                        kernels->pack(part_a, of_rows, first + groups_a, std::min<int64_t>(last, 0) + groups_a, room.data());
                    if (last > 0) kernels->pack(part_b, of_columns, std::max<int64_t>(first, 0), last, room.data() + of_a);
                });
                share(groups_a * ceil_div(p.columns, TILE), 1, threads, [&](int64_t first, int64_t last) {
                    for (int64_t i = first; i < last; i++) {
                        int64_t start = i / groups_a * TILE;
                        kernels->multiply(p, i % groups_a, start, std::min(start + TILE, p.columns));
                    }
                });
            }
        }
    }
}

}  // namespace tilegrad::cpu
