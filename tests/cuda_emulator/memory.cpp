// Global memory: what a kernel may access, what it has, and whether blocks race for it.
#include "memory.h"

#include "shared_memory.h"

#include <algorithm>
#include <bit>

namespace cuda_emulator {

namespace {

constexpr uint32_t several = ~0u;

// One bit per byte.
class Bits {
  public:
    explicit Bits(size_t bytes) : words_((bytes + 63) / 64) {}

    void set(size_t first, size_t count) {
        for_words(first, count, [&](size_t word, uint64_t mask) { words_[word] |= mask; });
    }
    bool all(size_t first, size_t count) const {
        bool result = true;
        for_words(first, count, [&](size_t word, uint64_t mask) { result &= (words_[word] & mask) == mask; });
        return result;
    }
    uint64_t count() const {
        uint64_t bits = 0;
        for (uint64_t word : words_) bits += static_cast<uint64_t>(std::popcount(word));
        return bits;
    }

  private:
    template <class F> static void for_words(size_t first, size_t count, F f) {
        for (size_t i = first; i < first + count;) {
            const size_t in_word = std::min<size_t>(64 - i % 64, first + count - i);
            f(i / 64, (in_word == 64 ? ~uint64_t{0} : (uint64_t{1} << in_word) - 1) << i % 64);
            i += in_word;
        }
    }
    std::vector<uint64_t> words_;
};

struct Region {
    const std::byte* begin;
    size_t bytes;
    std::string name;
    bool readable, writable, empty;
    uint64_t bytes_read = 0, bytes_written = 0;
    Bits read, written;
    // Which cluster has written and read each byte, where there can be both. Clusters are numbered across launches, so
    // that older entries need no clearing.
    std::vector<uint32_t> writer, reader;

    Region(const void* address, size_t size, const char* what, int access)
        : begin(static_cast<const std::byte*>(address)),
          bytes(size),
          name(what),
          readable(access & 1),
          writable(access & 2),
          empty(access & 4),
          read(readable ? size : 0),
          written(writable ? size : 0),
          writer(writable ? size : 0),
          reader(readable && writable ? size : 0) {}
};

std::vector<Region> regions;  // in order of address
size_t latest;                // the one accessed last
uint32_t first_cluster_of_launch;
// Clusters may hand data on with an atomic flag or counter: after one, a cluster's accesses count as ordered.
uint32_t cluster_with_atomics;

Region* find_region(const void* address) {
    const auto* p = static_cast<const std::byte*>(address);
    auto holds = [&](const Region& region) { return static_cast<size_t>(p - region.begin) < region.bytes; };
    if (latest < regions.size() && holds(regions[latest])) return &regions[latest];
    auto next =
        std::upper_bound(regions.begin(), regions.end(), p, [](auto* q, const Region& r) { return q < r.begin; });
    if (next == regions.begin() || !holds(*(next - 1))) return nullptr;
    latest = static_cast<size_t>(next - 1 - regions.begin());
    return &regions[latest];
}

[[noreturn]] void report_outside(const void* address, size_t bytes, Access access, const Site& site) {
    const auto p = reinterpret_cast<uintptr_t>(address);
    std::string nearest;
    size_t least = SIZE_MAX;
    for (const Region& region : regions) {
        const auto begin = reinterpret_cast<uintptr_t>(region.begin), end = begin + region.bytes;
        if (p < begin && begin - p < least) {
            least = begin - p;
            nearest = std::to_string(least) + " bytes before the start of " + region.name;
        } else if (p + bytes > end && (p < end ? 0 : p - end) < least) {
            least = p < end ? 0 : p - end;
            nearest = p < end ? std::to_string(p + bytes - end) + " of them past the end of " + region.name
                              : std::to_string(least) + " bytes past the end of " + region.name;
        }
    }
    fail("out of bounds: " + describe(access, bytes) + ", " + nearest + ", " + site.text());
}

void check_clusters(Region& region, size_t offset, size_t bytes, Access access, const Site& site) {
    const uint32_t me = this_thread().block->cluster->number;
    if (access == Access::atomic) cluster_with_atomics = me;
    if (access == Access::atomic || !region.writable) return;
    auto require_none = [&](const std::vector<uint32_t>& visitors, const char* verb) {
        bool others = false;
        for (size_t i = offset; i < offset + bytes; ++i)
            others |= visitors[i] >= first_cluster_of_launch && visitors[i] != me;
        if (others && cluster_with_atomics != me)
            fail("race between blocks: " + describe(access, bytes) + " of " + region.name + " at byte " +
                 std::to_string(offset) + ", which another block " + verb + ", " + site.text());
    };
    require_none(region.writer, "wrote");
    if (access == Access::read) {
        for (size_t i = offset; i < offset + bytes; ++i)
            region.reader[i] = region.reader[i] < first_cluster_of_launch || region.reader[i] == me ? me : several;
    } else {
        if (region.readable) require_none(region.reader, "read");
        std::fill_n(region.writer.begin() + static_cast<ptrdiff_t>(offset), bytes, me);
    }
}

void check_region(Region& region, const void* address, size_t bytes, Access access, const Site& site) {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(address) - region.begin);
    if (offset + bytes > region.bytes) report_outside(address, bytes, access, site);
    if (access != Access::write) {
        if (!region.readable)
            fail(describe(access, bytes) + " of " + region.name + " at byte " + std::to_string(offset) +
                 ", which is for writing only, " + site.text());
        if (region.empty && !region.written.all(offset, bytes))
            fail("uninitialised: " + describe(access, bytes) + " of " + region.name + " at byte " +
                 std::to_string(offset) + ", which nothing has written, " + site.text());
        region.bytes_read += bytes;
        region.read.set(offset, bytes);
    }
    if (access != Access::read) {
        if (!region.writable)
            fail(describe(access, bytes) + " of " + region.name + " at byte " + std::to_string(offset) +
                 ", which is for reading only, " + site.text());
        region.bytes_written += bytes;
        region.written.set(offset, bytes);
    }
    check_clusters(region, offset, bytes, access, site);
}

}  // namespace

std::string describe(Access access, size_t bytes) {
    const char* verb = access == Access::read ? "reads " : access == Access::write ? "writes " : "changes atomically ";
    return verb + std::to_string(bytes) + " bytes";
}

void start_global_checks(uint32_t first_cluster) {
    first_cluster_of_launch = first_cluster;
    for (Region& region : regions) std::replace(region.reader.begin(), region.reader.end(), several, 0u);
}

void check_access(const void* address, size_t bytes, Access access, const Moment& moment, const Site& site) {
    if (Region* region = find_region(address))
        check_region(*region, address, bytes, access, site);
    else if (const auto shared = find_shared(*this_thread().block->cluster, address))
        check_shared(*shared->block, shared->offset, bytes, access, moment, site);
    else if (!regions.empty() && !is_static_data(address))
        report_outside(address, bytes, access, site);
}

void note_read(const void* address, size_t bytes, const Moment& moment, const Location& where) {
    if (checked && bytes) check_access(address, bytes, Access::read, moment, Site{nullptr, where});
}
void note_write(void* address, size_t bytes, const Moment& moment, const Location& where) {
    if (checked && bytes) check_access(address, bytes, Access::write, moment, Site{nullptr, where});
}
void note_host_write(void* address, size_t bytes) {
    Region* region = find_region(address);
    if (!region || !region->writable) return;
    const auto offset = static_cast<size_t>(static_cast<std::byte*>(address) - region->begin);
    region->written.set(offset, std::min(bytes, region->bytes - offset));
}
void note_atomic(void* address, size_t bytes, const Location& where) {
    if (checked) check_access(address, bytes, Access::atomic, now(this_thread()), Site{nullptr, where});
}

void require_proxy_fence(const void* shared, size_t bytes, const Location& where) {
    if (!checked) return;
    const Thread& thread = this_thread();
    const auto found = find_shared(*thread.block->cluster, shared);
    const Moment* write = found ? find_unfenced(*found->block, found->offset, bytes, thread) : nullptr;
    if (!write) return;
    fail("no fence.proxy.async between what thread " + text(thread_of(*thread.block->cluster, *write).index) +
             " wrote to shared memory and asynchronous work that reads it",
         where);
}

}  // namespace cuda_emulator

using namespace cuda_emulator;

int cuda_emulator_watch(const void* address, uint64_t bytes, const char* name, int access) {
    Region region(address, bytes, name, access);
    auto next = std::upper_bound(regions.begin(), regions.end(), region.begin,
                                 [](auto* q, const Region& r) { return q < r.begin; });
    if (next != regions.begin() && (next - 1)->begin + (next - 1)->bytes > region.begin) return 0;
    if (next != regions.end() && region.begin + bytes > next->begin) return 0;
    regions.insert(next, std::move(region));
    return 1;
}

void cuda_emulator_forget() { regions.clear(); }

int cuda_emulator_traffic(const char* name, cuda_emulator_traffic_counts* counts) {
    for (const Region& region : regions)
        if (region.name == name) {
            *counts = {region.bytes_read, region.bytes_written, region.read.count(), region.written.count()};
            return 1;
        }
    return 0;
}
