#include "cublaslt_libraries.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <optional>

namespace tilegrad::cublaslt {
namespace {

// Before 12.1 the heuristics return kernels that fail where a leading dimension is much longer than its rows.
constexpr size_t OLDEST = 120100;
constexpr const char* NAMES[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

std::string dotted(size_t version) {
    using std::to_string;
    return to_string(version / 10000) + "." + to_string(version / 100 % 100) + "." + to_string(version % 100);
}

std::string cuda_version(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

template <class F> void find(F& function, void* library, const char* name, const std::string& path) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (!function) throw Unavailable(path + " has no " + name + ", which is needed of it");
}

#define FIND(table, function, path) find(table.function, library, #function, path)

std::string path_of(void* function) {
    Dl_info info{};
    return dladdr(function, &info) && info.dli_fname ? info.dli_fname : "?";
}

Loaded functions_of(void* library, const std::string& name) {
    Loaded found{};
    CublasLt& f = found.functions;
    FIND(f, cublasLtGetVersion, name);
    found.version = f.cublasLtGetVersion();
    found.path = path_of(reinterpret_cast<void*>(f.cublasLtGetVersion));
    if (found.version < OLDEST)
        throw Unavailable("cuBLASLt " + dotted(OLDEST) + " or newer is needed, and " + found.path + " is " +
                          dotted(found.version));
    FIND(f, cublasLtGetCudartVersion, found.path);
    FIND(f, cublasLtGetStatusName, found.path);
    FIND(f, cublasLtCreate, found.path);
    FIND(f, cublasLtMatmulDescCreate, found.path);
    FIND(f, cublasLtMatmulDescDestroy, found.path);
    FIND(f, cublasLtMatmulDescSetAttribute, found.path);
    FIND(f, cublasLtMatrixLayoutCreate, found.path);
    FIND(f, cublasLtMatrixLayoutDestroy, found.path);
    FIND(f, cublasLtMatmulPreferenceCreate, found.path);
    FIND(f, cublasLtMatmulPreferenceDestroy, found.path);
    FIND(f, cublasLtMatmulPreferenceSetAttribute, found.path);
    FIND(f, cublasLtMatmulAlgoGetHeuristic, found.path);
    FIND(f, cublasLtMatmul, found.path);
    return found;
}

Loaded load_now(const std::vector<std::string>& paths) {
    constexpr int flags = RTLD_NOW | RTLD_LOCAL;
    const char* asked = std::getenv("TILEGRAD_CUBLASLT");
    if (asked && *asked) {
        if (void* library = dlopen(asked, flags)) return functions_of(library, asked);
        throw Unavailable(std::string("TILEGRAD_CUBLASLT names a cuBLASLt that cannot be loaded: ") + dlerror());
    }
    for (int more : {RTLD_NOLOAD, 0})
        for (const char* name : NAMES)
            if (void* library = dlopen(name, flags | more)) return functions_of(library, name);
    for (const std::string& path : paths)
        if (void* library = dlopen(path.c_str(), flags)) return functions_of(library, path);
    throw Unavailable(
        "libcublasLt.so.13 or .12 is needed, and neither this process has one, nor the loader's path, nor any of " +
        std::to_string(paths.size()) + " files of wheels: install nvidia-cublas, or set TILEGRAD_CUBLASLT");
}

// Never unloaded, and handles never destroyed: at the end of a process the driver may be gone before.
struct State {
    std::mutex mutex;
    std::optional<Loaded> cublaslt;
    std::optional<Driver> driver;
    std::map<int, Device> devices;
};

State& state() {
    static State* one = new State;
    return *one;
}

Driver load_driver() {
    constexpr const char* name = "libcuda.so.1";
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        throw Unavailable(std::string("cuBLASLt needs NVIDIA's driver, which cannot be loaded: ") + dlerror());
    Driver d{};
    FIND(d, cuInit, name);
    FIND(d, cuDriverGetVersion, name);
    FIND(d, cuGetErrorName, name);
    FIND(d, cuDeviceGet, name);
    FIND(d, cuDeviceGetAttribute, name);
    FIND(d, cuDevicePrimaryCtxRetain, name);
    FIND(d, cuCtxGetCurrent, name);
    FIND(d, cuCtxSetCurrent, name);
    FIND(d, cuStreamIsCapturing, name);
    FIND(d, cuEventCreate, name);
    FIND(d, cuEventRecord, name);
    FIND(d, cuEventSynchronize, name);
    FIND(d, cuEventElapsedTime, name);
    FIND(d, cuEventDestroy_v2, name);
    return d;
}

// A library of CUDA 13 runs on every driver of CUDA 13 and of what came later, and on none from before.
void check_driver(const Driver& d, const Loaded& library) {
    int found = 0;
    check(d.cuDriverGetVersion(&found), "cuDriverGetVersion");
    size_t needed = library.functions.cublasLtGetCudartVersion() / 1000;
    if (static_cast<size_t>(found) / 1000 < needed)
        throw Unavailable("cuBLASLt " + dotted(library.version) + " needs a driver for CUDA " + std::to_string(needed) +
                          ", and the one here is for CUDA " + cuda_version(found));
}

}  // namespace

const Loaded& load(const std::vector<std::string>& paths) {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.cublaslt) s.cublaslt = load_now(paths);
    return *s.cublaslt;
}

const Loaded& loaded() {
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (!s.cublaslt) throw Unavailable("cuBLASLt is used before it is loaded");
    return *s.cublaslt;
}

const Driver& driver() { return *state().driver; }

const Device& device(int index) {
    const Loaded& library = loaded();
    State& s = state();
    std::lock_guard<std::mutex> lock(s.mutex);
    if (auto known = s.devices.find(index); known != s.devices.end()) return known->second;
    if (!s.driver) s.driver = load_driver();
    const Driver& d = *s.driver;
    check(d.cuInit(0), "cuInit");
    check_driver(d, library);
    int ordinal = 0;
    Device made{};
    check(d.cuDeviceGet(&ordinal, index), "cuDeviceGet");
    check(d.cuDeviceGetAttribute(&made.capability_major, DeviceAttribute::compute_capability_major, ordinal),
          "cuDeviceGetAttribute");
    check(d.cuDevicePrimaryCtxRetain(&made.context, ordinal), "cuDevicePrimaryCtxRetain");
    Current current(made.context);  // a handle belongs to the device that is current when it is made
    Status status = library.functions.cublasLtCreate(&made.handle);
    if (status != STATUS_SUCCESS)
        throw Unavailable(std::string("cublasLtCreate: ") + library.functions.cublasLtGetStatusName(status) +
                          " on device " + std::to_string(index));
    return s.devices.emplace(index, made).first->second;
}

void check(Status status, const char* call, const std::string& what) {
    if (status != STATUS_SUCCESS)
        throw Unavailable(std::string(call) + ": " + loaded().functions.cublasLtGetStatusName(status) + " " + what);
}

void check(DriverResult result, const char* call) {
    if (result == DRIVER_SUCCESS) return;
    const char* name = nullptr;
    driver().cuGetErrorName(result, &name);
    throw Unavailable(std::string(call) + ": " + (name ? name : "an error of the driver that has no name"));
}

Current::Current(Context context) {
    check(driver().cuCtxGetCurrent(&before_), "cuCtxGetCurrent");
    if (before_ == context) return;
    check(driver().cuCtxSetCurrent(context), "cuCtxSetCurrent");
    changed_ = true;
}

Current::~Current() {
    if (changed_) driver().cuCtxSetCurrent(before_);
}

}  // namespace tilegrad::cublaslt
