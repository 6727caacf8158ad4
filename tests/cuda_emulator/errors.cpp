// How bugs are reported.
#include "machine.h"

#include <string_view>

namespace cuda_emulator {

std::string text(const uint3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string text(const Location& where) {
    const std::string file = where.file_name();
    return file.substr(file.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

bool operator==(const Location& a, const Location& b) {
    return a.line() == b.line() && a.column() == b.column() && std::string_view(a.file_name()) == b.file_name();
}

namespace {

// "void tilegrad::row_sum<(Kind)2>(float*, int)" without what it returns and takes.
std::string look_up_kernel(const void* kernel) {
    std::string whole = look_up(static_cast<const char*>(kernel) + 1).function;
    for (const std::string unnamed = "(anonymous namespace)::"; whole.find(unnamed) != std::string::npos;)
        whole.erase(whole.find(unnamed), unnamed.size());
    size_t start = 0, depth = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
        if (whole[i] == '<') ++depth;
        if (whole[i] == '>') --depth;
        if (depth) continue;
        if (whole[i] == ' ') start = i + 1;
        if (whole[i] == '(') return whole.substr(start, i - start);
    }
    return whole.substr(start);
}

}  // namespace

std::string kernel_name(const void* kernel) {
    static std::map<const void*, std::string> names;
    std::string& name = names[kernel];
    if (name.empty()) name = look_up_kernel(kernel);
    return name;
}

void fail(const std::string& message, const Location& where) { fail(message + ", " + text(where)); }

void fail(const std::string& message) { fail(*machine.thread, message); }

void fail(const Thread& thread, const std::string& message) {
    std::string whole = kernel_name(machine.launch->kernel) + ", block " + text(thread.block->index) + ", thread " +
                        text(thread.index) + ": " + message;
    if (!fiber) throw Error(whole);
    // Not thrown on the fiber: its frames may be instrumented code or noexcept. It is abandoned where it stands.
    machine.failure = std::make_exception_ptr(Error(whole));
    whole = {};
    while (true) leave_fiber();
}

void report_deadlock(const Cluster& cluster) {
    struct Group {
        unsigned threads = 0;
        const Thread* first = nullptr;
    };
    std::map<std::string, Group> groups;
    for (const Block& block : cluster.blocks)
        for (const Thread& thread : block.threads) {
            if (thread.finished) continue;
            Group& group = groups[std::string(thread.operation) + ", " + text(thread.where)];
            if (!group.threads++) group.first = &thread;
        }
    std::string message = kernel_name(machine.launch->kernel) + ": deadlock: ";
    for (const auto& [operation, group] : groups)
        message += (message.ends_with(": ") ? "" : "; ") + std::to_string(group.threads) +
                   " threads (the first: block " + text(group.first->block->index) + ", thread " +
                   text(group.first->index) + ") wait at " + operation;
    throw Error(message);
}

}  // namespace cuda_emulator
