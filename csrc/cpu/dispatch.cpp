#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "api.h"

namespace tilegrad::cpu {

extern const PairKernels avx512bf16_kernels;

namespace {

bool runs(const Kernels* k) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (k == &avx512_kernels)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    if (k == &avx2_kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
    return k == &baseline_kernels;
}

#if defined(__x86_64__)
const Kernels* const all[] = {&avx512_kernels, &avx2_kernels, &baseline_kernels};
#else
const Kernels* const all[] = {&baseline_kernels};
#endif

const Kernels& chosen() {
    const char* asked = std::getenv("TILEGRAD_ISA");
    if (asked == nullptr || *asked == '\0') {
        for (const Kernels* k : all)
            if (runs(k)) return *k;
    }
    std::string names;
    for (const Kernels* k : all) {
        if (std::strcmp(k->name, asked) == 0) {
            if (!runs(k)) throw std::runtime_error(std::string("TILEGRAD_ISA: this processor does not run ") + asked);
            return *k;
        }
        names += std::string(names.empty() ? "" : ", ") + k->name;
    }
    throw std::runtime_error("TILEGRAD_ISA: expected one of " + names + ", got '" + asked + "'");
}

class NoMemory : public std::bad_alloc {
  public:
    explicit NoMemory(int64_t bytes) : text_("unable to allocate " + std::to_string(bytes) + " bytes of workspace") {}
    const char* what() const noexcept override { return text_.c_str(); }

  private:
    std::string text_;
};

}  // namespace

void no_memory(int64_t bytes) { throw NoMemory(bytes); }

const Kernels& kernels() {
    static const Kernels& found = chosen();
    return found;
}

const PairKernels* pair_kernels() {
#if defined(__x86_64__)
    static const bool there = &kernels() == &avx512_kernels && __builtin_cpu_supports("avx512bf16");
    return there ? &avx512bf16_kernels : nullptr;
#else
    return nullptr;
#endif
}

}  // namespace tilegrad::cpu
