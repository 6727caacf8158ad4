#include "shared_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <new>

namespace cuda_emulator {

namespace {

constexpr int poison = 0xFF;  // a NaN in every floating-point type
constexpr size_t alignment = 1024;
constexpr uint32_t reserved_bytes = 1024;  // that the system keeps of each block's window on sm_90

thread_local int anchor;  // touched so that the loader makes this library's thread-local storage

struct Memory {
    std::byte* static_begin = nullptr;
    size_t static_bytes = 0;
    std::vector<std::byte> hosts_image;  // what the thread-local variables held before the launch
    Block* resident = nullptr;
    std::byte* dynamic = nullptr;  // of all ranks
    size_t stride = 0;
    uintptr_t library_begin = 0, library_end = 0;
};
Memory memory;

// This library's addresses, and where the running thread's copy of this library's thread-local variables lies.
int find_thread_locals(dl_phdr_info* info, size_t, void*) {
    const auto here = reinterpret_cast<uintptr_t>(&memory);
    bool mine = false;
    size_t bytes = 0;
    uintptr_t first = UINTPTR_MAX, last = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
        if (header.p_type == PT_LOAD) {
            first = std::min(first, begin);
            last = std::max(last, begin + header.p_memsz);
            if (here >= begin && here < begin + header.p_memsz) mine = true;
        }
        if (header.p_type == PT_TLS) bytes = header.p_memsz;
    }
    if (!mine) return 0;
    memory.static_begin = static_cast<std::byte*>(info->dlpi_tls_data);
    memory.static_bytes = bytes;
    memory.library_begin = first;
    memory.library_end = last;
    return 1;
}

bool is_static(const void* address) {
    return address >= memory.static_begin && address < memory.static_begin + memory.static_bytes;
}

}  // namespace

size_t static_shared_bytes() { return memory.static_bytes; }

void enter_shared_memory(const Launch& launch) {
    *const_cast<volatile int*>(&anchor) = 0;
    dl_iterate_phdr(find_thread_locals, nullptr);
    memory.hosts_image.assign(memory.static_begin, memory.static_begin + memory.static_bytes);
    memory.stride = (launch.dynamic_bytes + 2 * alignment - 1) / alignment * alignment;
    memory.dynamic = static_cast<std::byte*>(std::aligned_alloc(alignment, memory.stride * launch.cluster));
    if (!memory.dynamic) throw std::bad_alloc();
}

void leave_shared_memory() {
    std::copy(memory.hosts_image.begin(), memory.hosts_image.end(), memory.static_begin);
    std::free(memory.dynamic);
    memory = Memory{};
}

void start_shared_memory(Block& block, size_t dynamic_bytes) {
    block.dynamic = memory.dynamic + block.rank * memory.stride;
    block.dynamic_bytes = dynamic_bytes;
    std::memset(block.dynamic, poison, memory.stride);
    block.static_image.assign(memory.static_bytes, std::byte{poison});
    if (memory.resident == &block) memory.resident = nullptr;
}

void end_shared_memory(Block& block) {
    if (memory.resident == &block) memory.resident = nullptr;
    std::memset(block.dynamic, poison, memory.stride);
    std::fill(block.static_image.begin(), block.static_image.end(), std::byte{poison});
}

void make_resident(Block& block) {
    if (memory.resident == &block) return;
    if (memory.resident) std::memcpy(memory.resident->static_image.data(), memory.static_begin, memory.static_bytes);
    std::memcpy(memory.static_begin, block.static_image.data(), memory.static_bytes);
    memory.resident = &block;
}

std::optional<SharedAddress> find_shared(Cluster& cluster, const void* address) {
    const auto* p = static_cast<const std::byte*>(address);
    if (is_static(p)) return SharedAddress{memory.resident, static_cast<size_t>(p - memory.static_begin)};
    if (p >= memory.dynamic && p < memory.dynamic + memory.stride * cluster.blocks.size()) {
        const size_t rank = static_cast<size_t>(p - memory.dynamic) / memory.stride;
        return SharedAddress{&cluster.blocks[rank],
                             memory.static_bytes + static_cast<size_t>(p - memory.dynamic) % memory.stride};
    }
    for (Block& block : cluster.blocks)
        if (p >= block.static_image.data() && p < block.static_image.data() + memory.static_bytes)
            return SharedAddress{&block, static_cast<size_t>(p - block.static_image.data())};
    return std::nullopt;
}

bool is_static_data(const void* address) {
    const auto p = reinterpret_cast<uintptr_t>(address);
    return p >= memory.library_begin && p < memory.library_end;
}

std::byte* dynamic_shared_memory() { return this_thread().block->dynamic; }

void* map_shared_rank(const void* address, unsigned rank) {
    Block& mine = *this_thread().block;
    Cluster& cluster = *mine.cluster;
    if (rank >= cluster.blocks.size())
        fail("map_shared_rank: rank " + std::to_string(rank) + " of a cluster of " +
             std::to_string(cluster.blocks.size()));
    const auto found = find_shared(cluster, address);
    if (!found || found->block != &mine) fail("map_shared_rank: not an address of the block's own shared memory");
    Block& other = cluster.blocks[rank];
    if (found->offset >= memory.static_bytes) return other.dynamic + (found->offset - memory.static_bytes);
    return (&other == &mine ? memory.static_begin : other.static_image.data()) + found->offset;
}

// Static shared memory of the kernels here is the whole library's: the window begins with the dynamic memory, so that
// its 1024-byte alignment holds in the window, too.
uint32_t shared_window(const void* address) {
    Block& mine = *this_thread().block;
    const auto found = find_shared(*mine.cluster, address);
    if (!found || found->block != &mine) fail("not an address of the block's own shared memory");
    if (found->offset >= memory.static_bytes)
        return reserved_bytes + static_cast<uint32_t>(found->offset - memory.static_bytes);
    return reserved_bytes + static_cast<uint32_t>(memory.stride + found->offset);
}

}  // namespace cuda_emulator
