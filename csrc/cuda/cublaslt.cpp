#include "cublaslt.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "cublaslt_libraries.h"

namespace tilegrad::cublaslt {
namespace {

// --- descriptors -----------------------------------------------------------------------------------------------------

template <class T> using Owned = std::unique_ptr<std::remove_pointer_t<T>, Status (*)(T)>;

// A call in the library's terms. Made anew for each: it holds the call's pointers.
class Descriptors {
  public:
    Descriptors(const Matmul& call, const CublasLt& library)
        : call_(call),
          library_(library),
          operation_(operation()),
          // From here on the library's A is our B, and its rows are our columns.
          a_(layout(call.type, call.k, call.n, call.b.ld, call.b.transposed)),
          b_(layout(call.type, call.m, call.k, call.a.ld, call.a.transposed)),
          c_(layout(call.out_type, call.m, call.n, adds() ? call.ldc : call.ldd, false)),
          d_(layout(call.out_type, call.m, call.n, call.ldd, false)) {
        set(DescAttribute::transpose_a, call.b.transposed ? Operation::transpose : Operation::none);
        set(DescAttribute::transpose_b, call.a.transposed ? Operation::transpose : Operation::none);
        set(DescAttribute::epilogue, call.epilogue->epilogue);
        if (call.epilogue->bias) set(DescAttribute::bias_pointer, call.bias);
        if (call.epilogue->aux != Aux::none) {
            set(DescAttribute::aux_pointer, call.aux);
            set(DescAttribute::aux_ld, call.ld_aux);
        }
    }

    // What the library's heuristics propose, the one first that they take for the fastest.
    std::vector<HeuristicResult> candidates(Handle handle, int most) const {
        Owned<Preference> preference = this->preference();
        std::vector<HeuristicResult> found(most);
        int count = 0;
        Status status =
            library_.cublasLtMatmulAlgoGetHeuristic(handle, operation_.get(), a_.get(), b_.get(), c_.get(), d_.get(),
                                                    preference.get(), most, found.data(), &count);
        if (status != STATUS_NOT_SUPPORTED) check(status, "cublasLtMatmulAlgoGetHeuristic", description(call_));
        found.resize(count);
        auto fails = [](const HeuristicResult& result) { return result.state != STATUS_SUCCESS; };
        found.erase(std::remove_if(found.begin(), found.end(), fails), found.end());
        if (found.empty()) throw NoKernel("cuBLASLt has no kernel " + description(call_));
        return found;
    }

    Status launch(Handle handle, const Algorithm& algorithm, void* d) const {
        float narrow[] = {static_cast<float>(call_.alpha), static_cast<float>(call_.beta)};
        double wide[] = {call_.alpha, call_.beta};
        bool in_double = call_.type == DataType::float64;
        const void* alpha = in_double ? static_cast<const void*>(&wide[0]) : &narrow[0];
        const void* beta = in_double ? static_cast<const void*>(&wide[1]) : &narrow[1];
        return library_.cublasLtMatmul(handle, operation_.get(), alpha, call_.b.data, a_.get(), call_.a.data, b_.get(),
                                       beta, adds() ? call_.c : d, c_.get(), d, d_.get(), &algorithm, call_.workspace,
                                       call_.workspace_bytes, call_.stream);
    }

  private:
    bool adds() const { return call_.beta != 0; }  // or else the library wants a C all the same, and D will do

    Owned<Desc> operation() const {
        bool in_double = call_.type == DataType::float64;
        ComputeType compute = in_double ? ComputeType::float64 : call_.tf32 ? ComputeType::tf32 : ComputeType::float32;
        DataType scale = in_double ? DataType::float64 : DataType::float32;
        Desc made = nullptr;
        check(library_.cublasLtMatmulDescCreate(&made, compute, scale), "cublasLtMatmulDescCreate", description(call_));
        return {made, library_.cublasLtMatmulDescDestroy};
    }

    // Of an operand that is (rows, columns) after it was transposed, or not, from how it is stored.
    Owned<Layout> layout(DataType type, int64_t rows, int64_t columns, int64_t ld, bool transposed) const {
        if (transposed) std::swap(rows, columns);
        Layout made = nullptr;
        Status status = library_.cublasLtMatrixLayoutCreate(&made, type, columns, rows, ld);
        check(status, "cublasLtMatrixLayoutCreate", description(call_));
        return {made, library_.cublasLtMatrixLayoutDestroy};
    }

    // What the heuristics may count on, workspace and alignments, and what they may not propose: the partial sums of a
    // product that is split along k are never rounded to 16 bits.
    Owned<Preference> preference() const {
        Preference made = nullptr;
        check(library_.cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate", description(call_));
        Owned<Preference> owned(made, library_.cublasLtMatmulPreferenceDestroy);
        auto set = [&](PreferenceAttribute attribute, auto value) {
            Status status = library_.cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value);
            check(status, "cublasLtMatmulPreferenceSetAttribute", description(call_));
        };
        set(PreferenceAttribute::max_workspace_bytes, static_cast<uint64_t>(call_.workspace_bytes));
        bool narrow = call_.out_type == DataType::float16 || call_.out_type == DataType::bfloat16;
        set(PreferenceAttribute::reduction_scheme_mask, narrow ? REDUCTION_COMPUTE_TYPE : REDUCTION_ANY);
        set(PreferenceAttribute::min_alignment_a, alignment(call_.b.data));
        set(PreferenceAttribute::min_alignment_b, alignment(call_.a.data));
        set(PreferenceAttribute::min_alignment_c, alignment(adds() ? call_.c : call_.d));
        set(PreferenceAttribute::min_alignment_d, alignment(call_.d));
        return owned;
    }

    template <class T> void set(DescAttribute attribute, T value) {
        Status status = library_.cublasLtMatmulDescSetAttribute(operation_.get(), attribute, &value, sizeof value);
        check(status, "cublasLtMatmulDescSetAttribute", description(call_));
    }

    const Matmul& call_;
    const CublasLt& library_;
    Owned<Desc> operation_;
    Owned<Layout> a_, b_, c_, d_;
};

// --- which kernel ----------------------------------------------------------------------------------------------------

struct Plan {
    Algorithm algorithm;
    float microseconds;  // 0: not timed
};

// All that a choice may depend on.
using Key = std::array<int64_t, 23>;

Key key_of(const Matmul& c) {
    bool adds = c.beta != 0;
    const Traits& e = *c.epilogue;
    return {
        c.device, c.m, c.n, c.k,
        int64_t(c.type), int64_t(c.out_type), c.tf32, int64_t(e.epilogue), int64_t(c.workspace_bytes),
        c.a.ld, c.a.transposed, alignment(c.a.data),
        c.b.ld, c.b.transposed, alignment(c.b.data),
        adds ? c.ldc : -1, adds ? alignment(c.c) : 0, adds && c.c == c.d,
        c.ldd, alignment(c.d),
        e.bias ? alignment(c.bias) : 0,
        e.aux == Aux::none ? 0 : alignment(c.aux), e.aux == Aux::none ? 0 : c.ld_aux,
    };
}

class Plans {
  public:
    std::optional<Plan> find(const Key& key) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = by_key_.find(key);
        return found == by_key_.end() ? std::nullopt : std::optional<Plan>(found->second);
    }
    // What was timed is kept, whatever another thread kept in the meantime.
    void keep(const Key& key, const Plan& plan) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto [at, is_new] = by_key_.emplace(key, plan);
        if (!is_new && plan.microseconds > 0) at->second = plan;
    }

  private:
    std::mutex mutex_;
    std::map<Key, Plan> by_key_;
};

Plans plans;

// --- timing ----------------------------------------------------------------------------------------------------------

class Stopwatch {
  public:
    explicit Stopwatch(void* stream) : stream_(stream), start_(event()), end_(event()) {}

    void start() { check(driver().cuEventRecord(start_.get(), stream_), "cuEventRecord"); }
    float microseconds() {
        float milliseconds = 0;
        check(driver().cuEventRecord(end_.get(), stream_), "cuEventRecord");
        check(driver().cuEventSynchronize(end_.get()), "cuEventSynchronize");
        check(driver().cuEventElapsedTime(&milliseconds, start_.get(), end_.get()), "cuEventElapsedTime");
        return milliseconds * 1000;
    }

  private:
    using OwnedEvent = std::unique_ptr<std::remove_pointer_t<Event>, DriverResult (*)(Event)>;

    static OwnedEvent event() {
        Event made = nullptr;
        check(driver().cuEventCreate(&made, EVENT_DEFAULT), "cuEventCreate");
        return {made, driver().cuEventDestroy_v2};
    }

    void* stream_;
    OwnedEvent start_, end_;
};

constexpr int MOST_CANDIDATES = 16, ROUNDS = 3, CALLS = 4;

void require(const Matmul& call) {
    if (std::string why = refusal(call); !why.empty()) throw std::invalid_argument("cuBLASLt cannot take this: " + why);
}

void require_no_capture(void* stream) {
    CaptureStatus status{};
    check(driver().cuStreamIsCapturing(stream, &status), "cuStreamIsCapturing");
    if (status != CaptureStatus::none) throw Unavailable("kernels cannot be timed while their stream is captured");
}

}  // namespace

void run(const Matmul& call) {
    require(call);
    const CublasLt& library = loaded().functions;
    const Device& on = device(call.device);
    Current current(on.context);
    Descriptors descriptors(call, library);
    Key key = key_of(call);
    std::optional<Plan> plan = plans.find(key);
    if (!plan) {
        plan = Plan{descriptors.candidates(on.handle, 1)[0].algorithm, 0};
        plans.keep(key, *plan);
    }
    check(descriptors.launch(on.handle, plan->algorithm, call.d), "cublasLtMatmul", description(call));
}

float tune(const Matmul& call, void* scratch) {
    require(call);
    if (alignment(scratch) < alignment(call.d)) throw std::invalid_argument("scratch has to be aligned as D is");
    const CublasLt& library = loaded().functions;
    const Device& on = device(call.device);
    Key key = key_of(call);
    if (std::optional<Plan> known = plans.find(key); known && known->microseconds > 0) return known->microseconds;
    Current current(on.context);
    require_no_capture(call.stream);
    Descriptors descriptors(call, library);
    std::vector<HeuristicResult> candidates = descriptors.candidates(on.handle, MOST_CANDIDATES);
    std::vector<float> best(candidates.size());
    std::vector<Status> status(candidates.size());
    Stopwatch watch(call.stream);
    for (int round = 0; round <= ROUNDS; round++) {
        for (size_t i = 0; i < candidates.size(); i++) {
            watch.start();
            for (int j = 0; j < CALLS && status[i] == STATUS_SUCCESS; j++)
                status[i] = descriptors.launch(on.handle, candidates[i].algorithm, scratch);
            float time = watch.microseconds() / CALLS;
            if (round <= 1 || time < best[i]) best[i] = time;  // the first round loads the kernels, and does not count
        }
    }
    std::optional<Plan> fastest;
    for (size_t i = 0; i < candidates.size(); i++)
        if (status[i] == STATUS_SUCCESS && (!fastest || best[i] < fastest->microseconds))
            fastest = Plan{candidates[i].algorithm, best[i]};
    if (!fastest) check(status[0], "cublasLtMatmul", description(call));
    plans.keep(key, *fastest);
    return fastest->microseconds;
}

// As for cublasSetWorkspace: 32 MiB from Hopper on, 4 MiB before.
size_t workspace_bytes(int index) { return size_t{device(index).capability_major >= 9 ? 32u : 4u} << 20; }

}  // namespace tilegrad::cublaslt
