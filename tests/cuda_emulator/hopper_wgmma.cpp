#include "hopper_wgmma.h"

#include "hopper_tma.h"
#include "memory.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace cuda_emulator {

namespace {

constexpr unsigned warps_of_group = 4;
constexpr int rows_of_warp = 16, depth = 16;  // of m64nNk16

// Where threads go on together, and one of them does what is to be done once.
struct Meeting {
    unsigned arrived = 0;
    uint64_t generation = 0;
    const char* what = nullptr;
    Location where;

    template <class Once> void meet(unsigned expected, const char* now_at, const Location& here, Once once) {
        if (arrived && (std::strcmp(what, now_at) != 0 || !(where == here)))
            fail(std::string("diverged: at ") + now_at + " while others of its warp or group are at " + what + ", " +
                     text(where),
                 here);
        what = now_at;
        where = here;
        if (++arrived == expected) {
            once();
            arrived = 0;
            ++generation;
            return;
        }
        block_until([this, before = generation] { return generation != before; }, now_at, here);
    }
};

// --- matrices in shared memory ---------------------------------------------------------------------------------------

// A descriptor (9.7.15.5.1.2.2), and where it says that elements are: the canonical layouts of 9.7.15.5.1.2.1.3, which
// CUTLASS' make_gmma_desc says in the same words (include/cute/atom/mma_traits_sm90_gmma.hpp).
struct Matrix {
    uint32_t start, leading, stride;  // bytes
    uint32_t span;                    // of the swizzle; 16: none
    bool along_rows;

    Matrix(uint64_t descriptor, bool is_along_rows, const Location& where) : along_rows(is_along_rows) {
        constexpr uint32_t spans[] = {16, 128, 64, 32};
        auto field = [descriptor](int bit) { return static_cast<uint32_t>(descriptor >> bit & 0x3FFF) << 4; };
        start = field(0);
        leading = field(16);
        stride = field(32);
        span = spans[descriptor >> 62];
        if (descriptor >> 49 & 7) fail("wgmma: emulated without a base offset only", where);
    }

    // In the shared-memory window.
    uint32_t address(uint32_t row, uint32_t k) const {
        const uint32_t across = along_rows ? row : k, down = along_rows ? k : row, per_span = span / 2;
        uint32_t at = start + across % per_span * 2 + down % 8 * span;
        if (span == 16) return at + row / 8 * stride + k / 8 * leading;
        at += down / 8 * stride + (along_rows ? across / per_span * leading : 0);
        return swizzled(at, span);
    }
};

// --- what a warp has under way ---------------------------------------------------------------------------------------

// The registers of all lanes that wgmma adds to.
struct Sums {
    float* lanes[warp_size];
    int columns;
    std::vector<float> values;  // (rows of the warp, columns)
    size_t last = 0;            // operation

    // Figure "WGMMA .m64nNk16 register fragment layout for accumulator matrix D" (9.7.15.5.1.1.1).
    template <class F> void for_registers(F f) {
        for (unsigned lane = 0; lane < warp_size; ++lane)
            for (int i = 0; i < columns / 2; ++i) {
                const int row = static_cast<int>(lane) / 4 + 8 * (i / 2 % 2);
                const int column = i / 4 * 8 + static_cast<int>(lane) % 4 * 2 + i % 2;
                f(lanes[lane][i], values[static_cast<size_t>(row * columns + column)]);
            }
    }
};

struct Operation {
    Wgmma wgmma;
    Location where;
    std::shared_ptr<Sums> sums;
    Moment moment;
};

struct WarpState {
    Meeting meeting;
    float* registers[warp_size];
    Wgmma first;  // of the lane that came first
    bool fenced = false;
    std::vector<std::shared_ptr<Sums>> sums;
    std::vector<Operation> operations;
    size_t executed = 0;
    std::vector<std::pair<size_t, Ticket>> open;                // operations and what completes them
    std::deque<std::vector<std::pair<size_t, Ticket>>> groups;
    Order order;
};

struct State {
    std::map<unsigned, WarpState> warps;
    std::map<unsigned, Meeting> groups;
    std::map<unsigned, int> registers;  // of a thread, by warpgroup
};

State& state() { return extension<State>(*this_thread().block, "wgmma"); }
unsigned warp_number() { return this_thread().rank / warp_size; }
WarpState& warp_state() { return state().warps[warp_number()]; }

float element(const Block& block, uint32_t origin, const Matrix& matrix, bool bfloat, int row, int k) {
    const uint32_t window = matrix.address(static_cast<uint32_t>(row), static_cast<uint32_t>(k));
    const std::byte* at = block.dynamic + (window - origin);
    return bfloat ? __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(at))
                  : __half2float(*reinterpret_cast<const __half*>(at));
}

void execute(const Operation& operation) {
    const Wgmma& op = operation.wgmma;
    const Block& block = *this_thread().block;
    const uint32_t origin = shared_window(block.dynamic);
    const Matrix a(op.a, op.a_along_rows, operation.where), b(op.b, op.b_along_rows, operation.where);
    const int first_row = static_cast<int>(warp_number() % warps_of_group) * rows_of_warp;
    float column[depth];
    float rows[rows_of_warp][depth];
    for (int row = 0; row < rows_of_warp; ++row)
        for (int k = 0; k < depth; ++k) rows[row][k] = element(block, origin, a, op.bfloat, first_row + row, k);
    for (int n = 0; n < op.columns; ++n) {
        for (int k = 0; k < depth; ++k) column[k] = element(block, origin, b, op.bfloat, n, k);
        for (int row = 0; row < rows_of_warp; ++row) {
            float& sum = operation.sums->values[static_cast<size_t>(row * op.columns + n)];
            if (!op.adds) sum = 0;
            for (int k = 0; k < depth; ++k) sum += rows[row][k] * column[k];
        }
    }
}

// In order: each may add to what the one before it left.
void execute_until(WarpState& warp, size_t end) {
    while (warp.executed < end) execute(warp.operations[warp.executed++]);
}

void note_operands(const Wgmma& op, const Moment& moment, const Location& where) {
    const Block& block = *this_thread().block;
    const uint32_t origin = shared_window(block.dynamic);
    auto note = [&](const Matrix& matrix, int first_row, int rows) {
        for (int row = first_row; row < first_row + rows; row += matrix.along_rows ? 8 : 1)
            for (int k = 0; k < depth; k += matrix.along_rows ? 1 : 8) {
                const uint32_t at = matrix.address(static_cast<uint32_t>(row), static_cast<uint32_t>(k));
                if (at < origin || at - origin + 16 > block.dynamic_bytes)
                    fail("wgmma: a matrix is not inside the dynamic shared memory of the block", where);
                note_read(block.dynamic + (at - origin), 16, moment, where);
                require_proxy_fence(block.dynamic + (at - origin), 16, where);
            }
    };
    note({op.a, op.a_along_rows, where}, static_cast<int>(warp_number() % warps_of_group) * rows_of_warp, rows_of_warp);
    note({op.b, op.b_along_rows, where}, 0, op.columns);
}

std::shared_ptr<Sums> sums_of(WarpState& warp, const Wgmma& op, const Location& where) {
    for (const auto& sums : warp.sums)
        if (sums->lanes[0] == warp.registers[0]) return sums;
    if (!warp.fenced) fail("wgmma: no wgmma.fence since its registers were last accessed", where);
    auto sums = std::make_shared<Sums>();
    std::copy(std::begin(warp.registers), std::end(warp.registers), sums->lanes);
    sums->columns = op.columns;
    sums->values.resize(static_cast<size_t>(rows_of_warp * op.columns));
    sums->for_registers([](float& in_register, float& value) {
        value = in_register;
        in_register = std::numeric_limits<float>::quiet_NaN();
    });
    warp.sums.push_back(sums);
    return sums;
}

// Once for the warp.
void start(WarpState& warp, const Wgmma& op, const Location& where) {
    const Moment moment = asynchronous_now(this_thread());
    note_operands(op, moment, where);
    warp.operations.push_back({op, where, sums_of(warp, op, where), moment});
    const size_t end = warp.operations.size();
    warp.operations.back().sums->last = end;
    warp.open.emplace_back(end, issue([&warp, end] { execute_until(warp, end); }));
}

// The registers of finished sums hold them again.
void give_back(WarpState& warp, size_t finished) {
    for (size_t i = 0; i < warp.sums.size();) {
        if (warp.sums[i]->last > finished) {
            ++i;
            continue;
        }
        warp.sums[i]->for_registers([](float& in_register, float& value) { in_register = value; });
        warp.sums.erase(warp.sums.begin() + static_cast<ptrdiff_t>(i));
        warp.fenced = false;
    }
}

void meet(const char* what, const Location& where, auto once) {
    const Thread& thread = this_thread();
    if (options().compute_capability != 90) fail(std::string(what) + " on a chip other than sm_90", where);
    if (thread.block->threads.size() < (thread.rank / (warps_of_group * warp_size) + 1) * warps_of_group * warp_size)
        fail(std::string(what) + ": the last warpgroup of the block is not whole", where);
    warp_state().meeting.meet(warp_size, what, where, once);
}

}  // namespace

void wgmma(float* sums, const Wgmma& operation, const Location& where) {
    WarpState& warp = warp_state();
    if (!warp.meeting.arrived) warp.first = operation;
    if (!(warp.first == operation)) fail("wgmma: lanes of a warp have different operands", where);
    warp.registers[this_thread().lane()] = sums;
    meet("wgmma.mma_async", where, [&] { start(warp, operation, where); });
}

void wgmma_fence(const Location& where) {
    meet("wgmma.fence", where, [] { warp_state().fenced = true; });
}

void wgmma_commit(const Location& where) {
    meet("wgmma.commit_group", where, [] {
        WarpState& warp = warp_state();
        warp.groups.push_back(std::move(warp.open));
        warp.open.clear();
    });
}

void wgmma_wait(size_t pending, const Location& where) {
    WarpState& warp = warp_state();
    meet("wgmma.wait_group", where, [&] {
        size_t finished = 0;
        while (warp.groups.size() > pending) {
            for (const auto& [end, ticket] : warp.groups.front()) {
                const Moment& moment = warp.operations[end - 1].moment;
                land(ticket);
                warp.order.release(moment);
                if (checked) know_asynchronous(thread_of(*this_thread().block->cluster, moment), moment);
                finished = end;
            }
            warp.groups.pop_front();
        }
        warp.order.open();
        give_back(warp, finished);
    });
    warp.order.acquire(this_thread());
}

void set_max_registers(int count, const Location& where) {
    constexpr unsigned threads = warps_of_group * warp_size;
    constexpr int all = 65536 / threads;
    if (count < 24 || count > 256 || count % 8) fail("setmaxnreg: must be a multiple of 8 from 24 to 256", where);
    State& mine = state();
    const unsigned group = this_thread().rank / threads;
    mine.groups[group].meet(threads, "setmaxnreg", where, [&] {
        mine.registers[group] = count;
        int sum = 0;
        for (const auto& [number, registers] : mine.registers) sum += registers;
        if (sum > all) fail("setmaxnreg: more registers than a multiprocessor has", where);
    });
}

}  // namespace cuda_emulator
