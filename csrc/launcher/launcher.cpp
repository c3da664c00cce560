// The operators of a GPU: a call of a kind that was recorded is replayed; any other goes to its Triton implementation
// in Python (inn_kernels/gpu), which records it the second time a kind comes.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "call.h"
#include "driver.h"
#include "plan.h"

namespace inn::launcher {
namespace {

constexpr Operator kOperators[] = {
    {"discretize", "TTTTTV", false},
    {"discretize_adjoint", "TTTTTVVV", false},
    {"discretize_tap_gradient", "TTTTTTVV", false},
    {"interpolate", "TTTVV", false},
    {"spread", "TTTVVV", false},
    {"interpolate_tap_gradient", "TTTVV", false},
    {"discretize_foreach", "SSSLLV", true},
    {"discretize_foreach_adjoint", "SSSLLLV", true},
    {"linear", "TTOWWWW", true},
    {"linear_backward", "TTTWWWWVVV", true},
    {"conv", "TTOWWWWLLL", true},
    {"conv_input_gradient", "TTWWWWLLLL", true},
    {"conv_node_gradient", "TTTWWWWLLLVV", true},
};
constexpr size_t kCount = std::size(kOperators);
constexpr size_t kMost = 4096;     // plans kept, of those that hold memory fewer
constexpr size_t kHolding = 4;     // plans that one with constants counts for,
constexpr size_t kTabled = 16;     // and one with tables of pointers
constexpr uint32_t kAgain = 1024;  // calls until one that could not be recorded is tried again

// A plan of calls with a key, or, without one, that they could not be recorded.
struct Entry {
  std::vector<int64_t> key, identities;
  std::optional<Plan> plan;
  size_t weight = 1;
  std::atomic<uint64_t> used{0};
  std::atomic<uint32_t> missed{0};
};

class Plans {
 public:
  std::shared_ptr<Entry> find(uint64_t hash, const std::vector<int64_t>& key) {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = entries_.find(hash);
    if (found == entries_.end() || found->second->key != key) return nullptr;
    found->second->used.store(clock_.fetch_add(1, std::memory_order_relaxed), std::memory_order_relaxed);
    return found->second;
  }

  void put(uint64_t hash, std::shared_ptr<Entry> entry) {
    entry->used = clock_.fetch_add(1);
    std::vector<std::shared_ptr<Entry>> dropped;  // freed without the lock: a tensor's end may need Python's
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    weight_ += entry->weight;
    std::shared_ptr<Entry>& place = entries_[hash];
    if (place) weight_ -= place->weight;
    dropped.push_back(std::exchange(place, std::move(entry)));
    if (weight_ > kMost) drop_oldest(&dropped);
  }

  void drop_oldest(std::vector<std::shared_ptr<Entry>>* dropped) {
    std::vector<uint64_t> stamps;
    for (const auto& [hash, entry] : entries_) stamps.push_back(entry->used);
    const auto quarter = stamps.begin() + stamps.size() / 4;
    std::nth_element(stamps.begin(), quarter, stamps.end());
    drop_if([&](const Entry& entry) { return entry.used < *quarter; }, dropped);
  }

  template <typename Condition>
  void drop_if(Condition condition, std::vector<std::shared_ptr<Entry>>* dropped) {
    for (auto at = entries_.begin(); at != entries_.end();) {
      if (!condition(*at->second)) {
        ++at;
        continue;
      }
      weight_ -= at->second->weight;
      dropped->push_back(std::move(at->second));
      at = entries_.erase(at);
    }
  }

  template <typename Condition>
  void drop(Condition condition) {
    std::vector<std::shared_ptr<Entry>> dropped;
    const std::unique_lock<std::shared_mutex> lock(mutex_);
    drop_if(condition, &dropped);
  }

  size_t size() {
    const std::shared_lock<std::shared_mutex> lock(mutex_);
    return entries_.size();
  }

 private:
  std::shared_mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Entry>> entries_;
  size_t weight_ = 0;
  std::atomic<uint64_t> clock_{1};
};

Plans& plans() {
  static Plans* const all = new Plans;  // for good: at exit the device may be gone before
  return *all;
}

std::atomic<bool> enabled{true};
std::atomic<int64_t> replays{0};
std::array<std::atomic<uint64_t>, 4096> seen{};  // hashes of kinds that came once

thread_local const Call* recorded = nullptr;  // the call that Python records
thread_local std::string failure;             // what Python raised

// The call by Python. Its arguments are handed on; `record`: a plan is to be stored under its key.
void by_python(const Operator& op, Call& call, StableIValue* stack, bool record) {
  const std::string name = std::string("inn_kernels_triton::") + op.name;
  const Call* const before = std::exchange(recorded, record ? &call : nullptr);
  const bool grad = aoti_torch_grad_mode_is_enabled();
  aoti_torch_grad_mode_set_enabled(false);
  failure.clear();
  call.hand_on();
  const auto code = torch_call_dispatcher(name.c_str(), record ? "recorded" : "", stack, TORCH_ABI_VERSION);
  aoti_torch_grad_mode_set_enabled(grad);
  recorded = before;
  if (code != TORCH_SUCCESS) throw std::runtime_error(failure.empty() ? name + " failed" : failure);
}

void run(const Operator& op, StableIValue* stack, uint64_t count, uint64_t results) {
  STD_TORCH_CHECK(count == std::strlen(op.kinds), op.name, " takes ", std::strlen(op.kinds), " arguments, got ", count);
  Call call(op, stack);
  if (!enabled || !call.known()) return by_python(op, call, stack, false);
  const uint64_t hash = hash_of(call.key);
  const std::shared_ptr<Entry> entry = plans().find(hash, call.key);
  // What a graph reads at every replay Python keeps.
  if (entry && entry->plan && !(op.constant && is_capturing(call.stream))) {
    std::array<StableIValue, kResults> made{};
    try {
      entry->plan->replay(call, made.data());
    } catch (const NoMemory&) {  // Python says how much, and of what
      return by_python(op, call, stack, false);
    }
    replays.fetch_add(1, std::memory_order_relaxed);
    call.clear();
    std::copy_n(made.begin(), results, stack);
    return;
  }
  bool record = false;
  if (entry) record = !entry->plan && entry->missed.fetch_add(1) % kAgain == kAgain - 1;
  else record = seen[hash % seen.size()].exchange(hash) == hash;
  record = record && call.device >= 0 && !is_capturing(op.constant ? call.stream : current_stream(call.device));
  by_python(op, call, stack, record);
  if (record && !plans().find(hash, call.key)) {  // it could not be
    auto none = std::make_shared<Entry>();
    none->key = std::move(call.key);
    none->identities = std::move(call.identities);
    plans().put(hash, std::move(none));
  }
}

template <size_t N>
void boxed(StableIValue* stack, uint64_t count, uint64_t results) {
  run(kOperators[N], stack, count, results);
}

template <size_t... N>
void implement(torch::stable::detail::StableLibrary& library, std::index_sequence<N...>) {
  (library.impl(kOperators[N].name, &boxed<N>), ...);
}

// Stores the plan of the call that is being recorded. Returns why not, or "".
std::string store(torch::stable::Tensor words, std::vector<torch::stable::Tensor> constants) {
  STD_TORCH_CHECK(recorded != nullptr, "no call is being recorded");
  std::vector<Owned> kept;
  for (const auto& tensor : constants) {
    AtenTensorHandle handle = nullptr;
    ok(aoti_torch_new_tensor_handle(tensor.get(), &handle), "copy a handle");
    kept.emplace_back(handle);
  }
  auto entry = std::make_shared<Entry>();
  try {
    entry->plan.emplace(*recorded, static_cast<const int64_t*>(words.const_data_ptr()), words.numel(), std::move(kept));
  } catch (const std::exception& error) {
    return error.what();
  }
  entry->weight = entry->plan->has_tables() ? kTabled : constants.empty() ? 1 : kHolding;
  entry->key = recorded->key;
  entry->identities = recorded->identities;
  plans().put(hash_of(recorded->key), std::move(entry));
  return "";
}

}  // namespace
}  // namespace inn::launcher

STABLE_TORCH_LIBRARY(inn_kernels_launcher, m) { m.def("store(Tensor words, Tensor[] constants) -> str"); }

STABLE_TORCH_LIBRARY_IMPL(inn_kernels_launcher, CompositeExplicitAutograd, m) {
  m.impl("store", TORCH_BOX(&inn::launcher::store));
}

// What Python calls by ctypes (inn_kernels/gpu/replay.py).
#define INN_EXPORT extern "C" __attribute__((visibility("default")))

// Makes the launcher the implementation of the operators for a dispatch key, "CUDA" or, `posing`, "CPU". Returns why
// that cannot be, or nullptr.
INN_EXPORT const char* inn_launcher_install(const char* key, const char* driver, int posing) {
  using namespace inn::launcher;
  if (const char* missing = connect(driver, posing != 0)) return missing;
  using Library = torch::stable::detail::StableLibrary;
  auto* const library = new Library(Library::Kind::IMPL, "inn_kernels", key, __FILE__, __LINE__);  // for good
  implement(*library, std::make_index_sequence<kCount>());
  return nullptr;
}

// Whether an operator is among those.
INN_EXPORT int inn_launcher_takes(const char* name) {
  return std::any_of(std::begin(inn::launcher::kOperators), std::end(inn::launcher::kOperators),
                     [&](const inn::launcher::Operator& op) { return std::strcmp(op.name, name) == 0; });
}

INN_EXPORT void inn_launcher_enable(int enable) { inn::launcher::enabled = enable != 0; }

// What the implementation in Python raised, for the error that its caller gets.
INN_EXPORT void inn_launcher_failed(const char* message) { inn::launcher::failure = message; }

// Drops every plan, or those of calls that were given a tensor: another may have its address from now on.
INN_EXPORT void inn_launcher_forget() {
  inn::launcher::plans().drop([](const inn::launcher::Entry&) { return true; });
}

INN_EXPORT void inn_launcher_forget_tensor(int64_t identity) {
  inn::launcher::plans().drop([&](const inn::launcher::Entry& entry) {
    for (size_t n = 0; n < entry.identities.size(); n += 2)
      if (entry.identities[n] == identity) return true;
    return false;
  });
}

INN_EXPORT int64_t inn_launcher_replays() { return inn::launcher::replays; }

INN_EXPORT int64_t inn_launcher_plans() { return int64_t(inn::launcher::plans().size()); }
