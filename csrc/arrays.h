// NumPy arrays as the kernels' callers see them, and how the rows of several are reached together.
#pragma once

#include <sys/types.h>

#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpu/api.h"

namespace tilegrad::cpu {

inline int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// An array, or nothing where None was handed over. The memory is the caller's.
struct Array {
    char* data = nullptr;
    int ndim = 0;
    const ssize_t* shape = nullptr;
    const ssize_t* strides = nullptr;  // in bytes
    std::optional<DType> floating;     // what it holds, if it is one of these
    std::optional<Index> integer;

    explicit operator bool() const { return data != nullptr; }

    int64_t size() const {
        int64_t count = 1;
        for (int i = 0; i < ndim; i++) count *= shape[i];
        return count;
    }

    DType dtype() const {
        if (!floating) throw std::invalid_argument("expected an array of float32, float64, float16 or bfloat16");
        return *floating;
    }

    Index index() const {
        if (!integer) throw std::invalid_argument("expected an array of integers of 8 to 64 bits");
        return *integer;
    }
};

// Doubles, all 0; a MemoryError says how many bytes there were not.
inline std::vector<double> numbers(int64_t count) {
    try {
        return std::vector<double>(count);
    } catch (const std::bad_alloc&) {
        no_memory(count * static_cast<int64_t>(sizeof(double)));
    }
}

// Collects the arrays of a call, and finds the fewest dimensions that reach the rows of all of them.
class Layout {
  public:
    // `axis` is the dimension that is reduced, of the arrays that have it.
    Layout(const Array& first, int axis) : axis_(axis) {
        for (int i = 0; i < first.ndim; i++)
            if (i != axis) sizes_.push_back(first.shape[i]);
    }

    // One line a row. `lines` is filled in by `rows()`.
    void columns(const Array& a, Lines& lines) {
        lines = Lines{};
        if (!a) return;
        lines.data = a.data;
        lines.column = a.ndim > 0 ? a.strides[axis_] : 0;
        std::vector<int64_t> strides;
        for (int i = 0; i < a.ndim; i++)
            if (i != axis_) strides.push_back(a.strides[i]);
        found_.push_back({&lines, strides});
    }

    // One element a row, from `data` on with these strides; none at all: one element for all rows.
    void elements(char* data, const ssize_t* strides, int ndim, Lines& lines) {
        lines = Lines{};
        if (data == nullptr) return;
        lines.data = data;
        std::vector<int64_t> of_rows(sizes_.size(), 0);
        for (int i = 0; i < ndim; i++) of_rows[i] = strides[i];
        found_.push_back({&lines, of_rows});
    }
    void elements(const Array& a, Lines& lines) { elements(a.data, a.strides, a.ndim, lines); }

    Rows rows() const {
        Rows rows{};
        rows.count = 1;
        for (size_t i = 0; i < sizes_.size(); i++) {
            rows.count *= sizes_[i];
            if (sizes_[i] == 1) continue;
            bool joins = rows.dims > 0;
            for (auto& [lines, strides] : found_) joins = joins && lines->rows[rows.dims - 1] == strides[i] * sizes_[i];
            if (!joins && rows.dims == MAX_DIMS)
                throw std::invalid_argument("expected at most " + std::to_string(MAX_DIMS) + " dimensions that no stride joins");
            int at = joins ? rows.dims - 1 : rows.dims++;
            rows.sizes[at] = joins ? rows.sizes[at] * sizes_[i] : sizes_[i];
            for (auto& [lines, strides] : found_) lines->rows[at] = strides[i];
        }
        return rows;
    }

  private:
    struct Found {
        Lines* lines;
        std::vector<int64_t> strides;
    };
    int axis_;
    std::vector<int64_t> sizes_;
    std::vector<Found> found_;
};

// A dense (rows, columns) view of an array's data, of all but the last dimension and the last.
struct Matrix {
    char* data = nullptr;
    int64_t rows = 0, columns = 0;
};

inline bool is_matrix(const Array& a, DType dtype, Matrix& m) {
    if (a.floating != dtype || a.ndim == 0) return false;
    m.data = a.data;
    m.columns = a.shape[a.ndim - 1];
    m.rows = m.columns > 0 ? a.size() / m.columns : 0;
    int64_t stride = bytes_of(dtype);
    for (int i = a.ndim - 1; i >= 0; i--) {
        if (a.shape[i] > 1 && a.strides[i] != stride) return false;
        stride *= a.shape[i];
    }
    return true;
}

}  // namespace tilegrad::cpu
