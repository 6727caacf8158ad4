// Shared memory: who wrote and read each byte last, for races and for reads of what nothing wrote.
#include "memory.h"

#include "shared_memory.h"

#include <array>
#include <unordered_map>

namespace cuda_emulator {

namespace {

constexpr size_t word = 4;

struct Touch {
    Moment moment;
    Site site;
};

// What is known of a word, or of a byte where threads have accessed parts of the word.
struct Cell {
    uint32_t cluster = 0;  // the number of the one that it tells of: any other has left it there
    bool split = false;    // see the four cells at Shadow::bytes[index]
    bool shared = false;   // more readers than one, at Shadow::readers[index]
    bool atomic = false;   // the last write was
    uint8_t written = 0;   // bit by byte
    uint32_t index = 0;
    Touch write, read;
};

struct Shadow {
    std::vector<Cell> words;
    std::vector<std::array<Cell, word>> bytes;
    std::vector<std::vector<Touch>> readers;
    std::unordered_map<uint32_t, Touch> remote;  // the latest access of each thread of other blocks
};
std::vector<Shadow> shadows;  // by rank in the cluster

struct Visit {
    Block& block;
    Shadow& shadow;
    size_t offset, bytes;
    Access access;
    Touch touch;
    Knowledge knowledge;

    std::string describe() const {
        const size_t fixed = static_shared_bytes();
        const std::string place =
            offset < fixed ? "static shared memory" : "dynamic shared memory at byte " + std::to_string(offset - fixed);
        return cuda_emulator::describe(access, bytes) + " of " + place +
               (&block == this_thread().block ? "" : " of block " + text(block.index)) + ", " + touch.site.text();
    }

    void require_order(const Touch& before, const char* verb) const {
        if (!knowledge.covers(before.moment)) report_race(before, verb);
    }

    [[noreturn]] void report_race(const Touch& before, const char* verb) const {
        const Thread& other = thread_of(*block.cluster, before.moment);
        fail("race: " + describe() + "; not ordered after what " +
             (is_asynchronous(before.moment) ? "asynchronous work of " : "") + "thread " + text(other.index) +
             (other.block == this_thread().block ? "" : " of block " + text(other.block->index)) + " " + verb + ", " +
             before.site.text());
    }

    void read(Cell& cell) {
        if (!(cell.atomic && access == Access::atomic)) require_order(cell.write, "wrote");
        if (cell.shared) {
            add_reader(shadow.readers[cell.index]);
        } else if (cell.read.moment.column == touch.moment.column || knowledge.covers(cell.read.moment)) {
            cell.read = touch;
        } else {
            cell.shared = true;
            cell.index = static_cast<uint32_t>(shadow.readers.size());
            shadow.readers.push_back({cell.read, touch});
        }
    }

    void add_reader(std::vector<Touch>& readers) {
        if (readers.back().moment.column == touch.moment.column) {
            readers.back() = touch;
            return;
        }
        // Those that this read is ordered after need not be known any more. Looked for now and then.
        const size_t size = readers.size();
        if (size >= 64 && (size & (size - 1)) == 0)
            std::erase_if(readers, [&](const Touch& reader) { return knowledge.covers(reader.moment); });
        readers.push_back(touch);
    }

    void write(Cell& cell, uint8_t bytes_of_word) {
        const bool both_atomic = cell.atomic && access == Access::atomic;
        if (!both_atomic) {
            require_order(cell.write, "wrote");
            if (cell.shared)
                for (const Touch& reader : shadow.readers[cell.index]) require_order(reader, "read");
            else
                require_order(cell.read, "read");
        }
        cell.shared = false;
        cell.read = Touch{};
        cell.write = touch;
        cell.atomic = access == Access::atomic;
        cell.written |= bytes_of_word;
    }

    // `bytes_of_word` is the part of the word that the access covers, and that the cell stands for.
    void visit(Cell& cell, uint8_t bytes_of_word) {
        const Moment& same = access == Access::read ? cell.read.moment : cell.write.moment;
        if (same == touch.moment && access != Access::atomic) return;
        if (access != Access::write && (cell.written & bytes_of_word) != bytes_of_word)
            fail("uninitialised: " + describe() + ", which nothing has written since the block began");
        if (access == Access::read)
            read(cell);
        else
            write(cell, bytes_of_word);
    }

    void visit_word(size_t number, uint8_t bytes_of_word) {
        Cell& cell = shadow.words[number];
        if (cell.cluster != block.cluster->number) {
            cell = Cell{};
            cell.cluster = block.cluster->number;
        }
        if (!cell.split && bytes_of_word != 0xF) {
            const auto index = static_cast<uint32_t>(shadow.bytes.size());
            shadow.bytes.push_back({cell, cell, cell, cell});
            // Each byte goes its own way: a list of readers cannot be theirs together.
            if (cell.shared)
                for (size_t i = 1; i < word; ++i) {
                    shadow.bytes[index][i].index = static_cast<uint32_t>(shadow.readers.size());
                    shadow.readers.push_back(std::vector<Touch>(shadow.readers[cell.index]));
                }
            cell.split = true;
            cell.index = index;
        }
        if (!cell.split) {
            visit(cell, 0xF);
            return;
        }
        for (size_t i = 0; i < word; ++i)
            if (bytes_of_word >> i & 1) visit(shadow.bytes[cell.index][i], static_cast<uint8_t>(1u << i));
    }
};

void check_remote(Visit& visit) {
    const Block& block = visit.block;
    if (block.cluster->barrier.generation == 0)
        fail(visit.describe() + " before the cluster's first barrier: that block may not have started");
    if (block.running == 0) fail(visit.describe() + ", which has exited");
    visit.shadow.remote[visit.touch.moment.column] = visit.touch;
}

}  // namespace

void start_shadow(Cluster& cluster) {
    if (!checked) return;
    shadows.resize(cluster.blocks.size());
    for (size_t rank = 0; rank < shadows.size(); ++rank) {
        const size_t bytes = static_shared_bytes() + cluster.blocks[rank].dynamic_bytes;
        shadows[rank].words.resize((bytes + word - 1) / word);
        shadows[rank].bytes.clear();
        shadows[rank].readers.clear();
        shadows[rank].remote.clear();
    }
}

void check_shared(Block& block, size_t offset, size_t bytes, Access access, const Moment& moment, const Site& site) {
    Visit visit{block, shadows[block.rank], offset, bytes, access, {moment, site}, knowledge(this_thread())};
    const size_t limit = static_shared_bytes() + block.dynamic_bytes;
    if (offset + bytes > limit)
        fail("out of bounds: " + visit.describe() + "; the block has " + std::to_string(block.dynamic_bytes) +
             " bytes");
    if (&block != this_thread().block) check_remote(visit);
    for (size_t i = offset; i < offset + bytes;) {
        const size_t end = std::min(offset + bytes, (i / word + 1) * word);
        visit.visit_word(i / word, static_cast<uint8_t>(((1u << (end - i)) - 1) << i % word));
        i = end;
    }
}

const Moment* find_unfenced(Block& block, size_t offset, size_t bytes, const Thread& thread) {
    Shadow& shadow = shadows[block.rank];
    for (size_t i = offset; i < offset + bytes; ++i) {
        const Cell& whole = shadow.words[i / word];
        if (whole.cluster != block.cluster->number) continue;
        const Cell& cell = whole.split ? shadow.bytes[whole.index][i % word] : whole;
        if (!is_fenced(cell.write.moment, thread)) return &cell.write.moment;
    }
    return nullptr;
}

// Distributed shared memory is there as long as its block runs. Every access of another block has to be ordered before
// one of the block's threads exits.
void end_shadow(Block& block) {
    if (!checked) return;
    for (const auto& [column, touch] : shadows[block.rank].remote)
        if (!is_known_to_any(block, touch.moment))
            fail(thread_of(*block.cluster, touch.moment),
                 "block " + text(block.index) + " of the cluster may exit before this access to its shared memory, " +
                     touch.site.text());
}

}  // namespace cuda_emulator
