// cuBLASLt and CUDA's driver library, found and loaded when first asked for, and the devices they run on.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cublaslt_api.h"

namespace tilegrad::cublaslt {

// A library, a driver or a device that is needed is not there; or it is, and a call of it failed.
struct Unavailable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Loaded {
    CublasLt functions;
    size_t version;  // 130002 for 13.0.2
    std::string path;
};

// cuBLASLt: the file that the variable TILEGRAD_CUBLASLT names, or else what this process has loaded already (torch and
// CuPy do), or else what the loader finds, or else the first of the paths that can be loaded.
const Loaded& load(const std::vector<std::string>& paths);
const Loaded& loaded();  // Unavailable before load

// The primary context of a device, which is the one that torch and CuPy use, and a handle of cuBLASLt in it.
struct Device {
    Context context;
    Handle handle;
    int capability_major;
};
const Device& device(int index);

const Driver& driver();

// Throws Unavailable if a call failed: "call: CUBLAS_STATUS_… what".
void check(Status status, const char* call, const std::string& what);
void check(DriverResult result, const char* call);

// Makes a context current and afterwards the one that was before.
class Current {
  public:
    explicit Current(Context context);
    ~Current();
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

  private:
    Context before_ = nullptr;
    bool changed_ = false;
};

}  // namespace tilegrad::cublaslt
