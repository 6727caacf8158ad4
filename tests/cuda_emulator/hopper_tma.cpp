#include "hopper_tma.h"

#include "memory.h"

#include <algorithm>
#include <cstring>

namespace cuda_emulator {

namespace {

constexpr uint64_t magic = 0x70616d726f736e74;

// What a CUtensorMap holds here.
struct Map {
    uint64_t mark;
    std::byte* base;
    uint64_t sizes[2];  // of the tensor, in elements; [0] is contiguous
    uint64_t stride;    // bytes
    uint32_t box[2];
    uint32_t element;   // bytes
    uint32_t span;      // of the swizzle, in bytes; 16: none
    uint32_t rank;
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

uint32_t element_bytes(CUtensorMapDataType type) {
    switch (type) {
        case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
        case CU_TENSOR_MAP_DATA_TYPE_UINT16:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
        case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
        case CU_TENSOR_MAP_DATA_TYPE_UINT64:
        case CU_TENSOR_MAP_DATA_TYPE_INT64:
        case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
        default: return 4;
    }
}

// 0 for one that is not emulated.
uint32_t swizzle_span(CUtensorMapSwizzle swizzle) {
    switch (swizzle) {
        case CU_TENSOR_MAP_SWIZZLE_NONE: return 16;
        case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
        case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
        case CU_TENSOR_MAP_SWIZZLE_128B: return 128;
        default: return 0;
    }
}

const Map& decode(const CUtensorMap* map, const Location& where) {
    if (reinterpret_cast<uintptr_t>(map) % 64) fail("tensor map: its address must be a multiple of 64", where);
    const Map& decoded = *reinterpret_cast<const Map*>(map);
    if (decoded.mark != magic) fail("tensor map: not made by cuTensorMapEncodeTiled", where);
    if (decoded.rank != 2) fail("tensor map: not of two dimensions", where);
    return decoded;
}

void check_shared_box(const Map& map, const void* shared, const Location& where) {
    const Block& block = *this_thread().block;
    if (options().compute_capability < 90) fail("a bulk tensor copy on a chip without it", where);
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(shared) - block.dynamic);
    if (shared < block.dynamic || offset + size_t{map.box[0]} * map.box[1] * map.element > block.dynamic_bytes)
        fail("bulk tensor copy: the box is not inside the dynamic shared memory of the block", where);
    if (shared_window(shared) % 128)
        fail("bulk tensor copy: the address in shared memory must be a multiple of 128", where);
    if (map.span > 16 && map.box[0] * map.element != map.span)
        fail("bulk tensor copy: emulated with a swizzle only where a row of the box is as wide as that", where);
}

// One row of a box: the part of it that is inside the tensor.
struct Row {
    std::byte* global;  // null if no part is
    uint32_t first, bytes;
};

Row row_of(const Map& map, int x, int64_t y) {
    const int64_t width = map.box[0], length = static_cast<int64_t>(map.sizes[0]);
    const int64_t from = std::max<int64_t>(x, 0), to = std::min(x + width, length);
    if (y < 0 || y >= static_cast<int64_t>(map.sizes[1]) || from >= to) return {};
    return {map.base + y * static_cast<int64_t>(map.stride) + from * map.element,
            static_cast<uint32_t>(from - x) * map.element, static_cast<uint32_t>(to - from) * map.element};
}

// f(where in shared memory, offset in the row, bytes) of the pieces of a row that the swizzle keeps together.
template <class F> void for_pieces(const Map& map, std::byte* shared, uint32_t window, uint32_t row, F f) {
    const uint32_t width = map.box[0] * map.element;
    for (uint32_t i = 0; i < width; i += 16) {
        const uint32_t at = window + row * width + i;
        f(shared + (swizzled(at, map.span) - window), i, std::min(16u, width - i));
    }
}

}  // namespace

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    const uint32_t element = element_bytes(type), span = swizzle_span(swizzle);
    bool good = map && reinterpret_cast<uintptr_t>(map) % 64 == 0 && rank >= 1 && rank <= 5 && address &&
                reinterpret_cast<uintptr_t>(address) % 16 == 0;
    for (cuuint32_t i = 0; good && i < rank; ++i) {
        good = sizes[i] >= 1 && sizes[i] <= uint64_t{1} << 32 && box[i] >= 1 && box[i] <= 256 &&
               element_strides[i] >= 1 && element_strides[i] <= 8;
        if (i > 0) good = good && strides[i - 1] % 16 == 0 && strides[i - 1] < uint64_t{1} << 40;
    }
    if (!good || box[0] * element % 16 || (span > 16 && box[0] * element > span)) return CUDA_ERROR_INVALID_VALUE;
    const bool emulated = rank <= 2 && span && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
                          fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE && element_strides[0] == 1 &&
                          (rank < 2 || element_strides[1] == 1);
    if (!emulated) return CUDA_ERROR_NOT_SUPPORTED;
    const bool flat = rank == 1;
    Map encoded{magic, static_cast<std::byte*>(address), {sizes[0], flat ? 1 : sizes[1]}, flat ? 0 : strides[0],
                {box[0], flat ? 1 : box[1]}, element, span, rank};
    std::memset(map, 0, sizeof(*map));
    std::memcpy(map, &encoded, sizeof(encoded));
    return CUDA_SUCCESS;
}

void tma_load_2d(void* shared, const CUtensorMap* encoded, uint64_t* barrier, int x, int y, uint32_t blocks,
                 const Location& where) {
    const Map map = decode(encoded, where);
    check_shared_box(map, shared, where);
    Block& mine = *this_thread().block;
    const auto offset = static_cast<std::byte*>(shared) - mine.dynamic;
    const uint32_t window = shared_window(shared);
    const Moment moment = asynchronous_now(this_thread());
    for (uint32_t row = 0; row < map.box[1]; ++row) {
        const Row from = row_of(map, x, int64_t{y} + row);
        if (from.global) note_read(from.global, from.bytes, moment, where);
    }
    if (blocks == 0 || blocks >> mine.cluster->blocks.size())
        fail("bulk tensor copy: to blocks that the cluster does not have", where);
    for (Block& block : mine.cluster->blocks) {
        if (!(blocks >> block.rank & 1)) continue;
        mbarrier_check(block, barrier, where);
        note_write(block.dynamic + offset, size_t{map.box[0]} * map.box[1] * map.element, moment, where);
        // Each block's copy arrives by itself.
        issue([=, target = &block] {
            if (target->running == 0) fail("bulk tensor copy: arrives at a block that has exited", where);
            std::byte* to = target->dynamic + offset;
            for (uint32_t row = 0; row < map.box[1]; ++row) {
                const Row from = row_of(map, x, int64_t{y} + row);
                std::byte line[256 * 16] = {};
                if (from.global) std::memcpy(line + from.first, from.global, from.bytes);
                for_pieces(map, to, window, row, [&](std::byte* piece, uint32_t i, uint32_t bytes) {
                    std::memcpy(piece, line + i, bytes);
                });
            }
            mbarrier_complete_bytes(*target, barrier, map.box[0] * map.box[1] * map.element, moment, where);
        });
    }
    preempt();
}

void tma_store_2d(const CUtensorMap* encoded, const void* shared, int x, int y, const Location& where) {
    const Map map = decode(encoded, where);
    check_shared_box(map, shared, where);
    const uint32_t window = shared_window(shared);
    const Moment moment = asynchronous_now(this_thread());
    const size_t bytes = size_t{map.box[0]} * map.box[1] * map.element;
    note_read(shared, bytes, moment, where);
    require_proxy_fence(shared, bytes, where);
    for (uint32_t row = 0; row < map.box[1]; ++row) {
        const Row to = row_of(map, x, int64_t{y} + row);
        if (to.global) note_write(to.global, to.bytes, moment, where);
    }
    auto* from = static_cast<std::byte*>(const_cast<void*>(shared));
    auto copy = [=, source = this_thread().block] {
        if (source->running == 0) fail("bulk tensor copy: reads from a block that has exited", where);
        for (uint32_t row = 0; row < map.box[1]; ++row) {
            const Row to = row_of(map, x, int64_t{y} + row);
            if (!to.global) continue;
            std::byte line[256 * 16];
            for_pieces(map, from, window, row, [&](const std::byte* piece, uint32_t i, uint32_t bytes) {
                std::memcpy(line + i, piece, bytes);
            });
            std::memcpy(to.global, line + to.first, to.bytes);
        }
    };
    this_thread().async_groups["bulk"].add(copy, moment);
    preempt();
}

void bulk_commit() { this_thread().async_groups["bulk"].commit(); }
void bulk_wait_read(size_t pending) { this_thread().async_groups["bulk"].wait(pending); }
void fence_proxy_async() { fence_proxy(this_thread()); }

}  // namespace cuda_emulator

using namespace cuda_emulator;

// The one function of the driver that kernels' launchers ask for.
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(&encode_tiled) : nullptr;
    if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
