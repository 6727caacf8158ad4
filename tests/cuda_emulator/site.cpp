#include "machine.h"
#include "memory.h"

#include <cstdio>
#include <dlfcn.h>

namespace cuda_emulator {

namespace {

std::string without_folder(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

// Of the emulator's headers, the standard library, or CUDA's headers: not what a kernel's author looks for.
bool is_foreign(const std::string& place) {
    static const std::string emulator = std::string(__FILE__).substr(0, std::string(__FILE__).find_last_of('/') + 1);
    return place.starts_with("/usr/") || place.find("/include/") != std::string::npos ||
           (place.starts_with(emulator) && place.find(".h:") != std::string::npos);
}

}  // namespace

SourcePlace look_up(const void* instruction) {
    SourcePlace best{"a kernel", "unknown place"};
    Dl_info info;
    if (!dladdr(instruction, &info)) return best;
    char command[4096];
    // A return address is behind the call that it stands for.
    const auto offset = static_cast<const char*>(instruction) - 1 - static_cast<const char*>(info.dli_fbase);
    std::snprintf(command, sizeof command, "addr2line -ifC --exe='%s' 0x%tx 2>&1", info.dli_fname, offset);
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command, "r"), pclose);
    char function[4096], place[4096];
    bool found = false;
    // A line for the name of each function and a line for the place in it, innermost first.
    while (pipe && std::fgets(function, sizeof function, pipe.get()) && std::fgets(place, sizeof place, pipe.get())) {
        best.function = function;
        best.function.pop_back();
        if (found) continue;
        const std::string line = place;
        best.line = line.substr(0, line.find_first_of(" \n"));
        found = !is_foreign(best.line);
    }
    best.line = without_folder(best.line);
    return best;
}

std::string Site::text() const { return instruction ? look_up(instruction).line : cuda_emulator::text(where); }

}  // namespace cuda_emulator
