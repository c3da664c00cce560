// Reading and replaying plans.
#include "plan.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

namespace inn::launcher {
namespace {

constexpr size_t kParameters = 64;  // most of a kernel
constexpr size_t kTables = 8;       // kept by pointers

class Reader {
 public:
  Reader(const int64_t* words, int64_t count) : at_(words), end_(words + count) {}

  int64_t next() {
    STD_TORCH_CHECK(at_ < end_, "a plan ends too early");
    return *at_++;
  }
  int64_t below(int64_t bound, const char* what) {
    const int64_t value = next();
    STD_TORCH_CHECK(value >= 0 && value < bound, "a plan's ", what, " must be in [0, ", bound, "), got ", value);
    return value;
  }
  int64_t count() { return below(end_ - at_ + 1, "count"); }
  std::vector<int64_t> several(int64_t count) {
    STD_TORCH_CHECK(count <= end_ - at_, "a plan ends too early");
    at_ += count;
    return {at_ - count, at_};
  }
  void finish() { STD_TORCH_CHECK(at_ == end_, "a plan has words too many"); }

 private:
  const int64_t *at_, *end_;
};

uint64_t address_of(AtenTensorHandle tensor) {
  void* data = nullptr;
  ok(torch_get_mutable_data_ptr(tensor, &data), "find a tensor's memory");
  return reinterpret_cast<uintptr_t>(data);
}

int32_t dtype_of(int64_t code) {
  switch (code) {
    case 0: return aoti_torch_dtype_float32();
    case 1: return aoti_torch_dtype_bfloat16();
    case 2: return aoti_torch_dtype_float16();
    case 3: return aoti_torch_dtype_int32();
    default: return aoti_torch_dtype_int64();
  }
}

Owned allocate(const Layout& layout, int32_t device) {
  AtenTensorHandle made = nullptr;
  if (aoti_torch_empty_strided(int64_t(layout.sizes.size()), layout.sizes.data(), layout.strides.data(), layout.dtype,
                               device_type(), device, &made) != TORCH_SUCCESS)
    throw NoMemory("there is no memory for a result");
  return Owned(made);
}

Owned another(AtenTensorHandle tensor) {
  AtenTensorHandle made = nullptr;
  ok(aoti_torch_new_tensor_handle(tensor, &made), "copy a handle");
  return Owned(made);
}

Owned sum(AtenTensorHandle tensor, const std::vector<int64_t>& dimensions) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{torch::stable::detail::from(another(tensor).release()), from(std::make_optional(dimensions)), from(false),
                                    from(std::nullopt)};
  ok(torch_call_dispatcher("aten::sum", "dim_IntList", stack.data(), TORCH_ABI_VERSION), "sum a result");
  return Owned(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

// int64 on the host, pinned where copies of it to a device should not wait.
Owned on_host(int64_t count) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(std::vector<int64_t>{count}),
                                    from(std::make_optional(torch::headeronly::ScalarType::Long)),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::make_optional(!posing())),
                                    from(std::nullopt)};
  ok(torch_call_dispatcher("aten::empty", "memory_format", stack.data(), TORCH_ABI_VERSION), "allocate on the host");
  return Owned(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
}

}  // namespace

Owned Table::on_device(const Call& call) const {
  std::vector<int64_t> pointers;
  pointers.reserve(pointers_.size());
  for (const auto& [position, source] : pointers_)
    pointers.push_back(source.kind == Source::LITERAL ? source.index
                                                      : int64_t(call.tensors[source.index].address) + source.offset);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& k) { return k.first == pointers; });
    if (found != kept_.end()) {
      std::rotate(found, found + 1, kept_.end());
      return another(kept_.back().second.get());
    }
  }
  Owned host = on_host(int64_t(words_.size()));
  auto* words = reinterpret_cast<int64_t*>(address_of(host.get()));
  std::copy(words_.begin(), words_.end(), words);
  for (size_t n = 0; n < pointers.size(); ++n) words[pointers_[n].first] = pointers[n];
  Owned made = allocate({aoti_torch_dtype_int64(), {int64_t(words_.size())}, {1}}, call.device);
  ok(aoti_torch_copy_(made.get(), host.get(), 1), "copy a table");
  std::shared_ptr<AtenTensorOpaque> last(another(made.get()).release(), Delete()), oldest;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (kept_.size() == kTables) {
    oldest = std::move(kept_.front().second);
    kept_.erase(kept_.begin());
  }
  kept_.emplace_back(std::move(pointers), std::move(last));
  return made;
}

Plan::Plan(const Call& call, const int64_t* words, int64_t count, std::vector<Owned> constants)
    : constants_(std::move(constants)) {
  Reader read(words, count);
  const auto identities = read.several(2 * read.count());
  STD_TORCH_CHECK(identities == call.identities, "tensors are not what Python takes them for");
  STD_TORCH_CHECK(bool(read.below(2, "precision")) == call.tf32, "TF32 is not what Python takes it for");
  int64_t made = 0;
  const auto source = [&] {
    const auto kind = Source::Kind(read.below(3, "source"));
    const int64_t index = kind == Source::LITERAL    ? read.next()
                          : kind == Source::ARGUMENT ? read.below(int64_t(call.tensors.size()), "argument")
                                                     : read.below(made, "value");
    return Source{kind, index, read.next()};
  };
  for (int64_t n = read.count(); n > 0; --n) {
    Step step;
    step.kind = Step::Kind(read.below(4, "step"));
    if (step.kind == Step::MAKE) {
      step.layout.dtype = dtype_of(read.below(5, "dtype"));
      const int64_t rank = read.count();
      step.layout.sizes = read.several(rank);
      step.layout.strides = read.several(rank);
      ++made;
    } else if (step.kind == Step::LAUNCH) {
      step.function = reinterpret_cast<void*>(uintptr_t(read.next()));
      uint32_t* const grid[] = {&step.grid.x, &step.grid.y, &step.grid.z, &step.grid.threads, &step.grid.shared};
      for (uint32_t* size : grid) *size = uint32_t(read.below(int64_t(1) << 31, "grid"));
      for (int64_t p = read.below(kParameters + 1, "parameters"); p > 0; --p) step.parameters.push_back(source());
    } else if (step.kind == Step::SUM) {
      step.value = read.below(made++, "value");
      step.dimensions = read.several(read.count());
    } else {
      auto host = read.several(read.count());
      std::vector<std::pair<int64_t, Source>> pointers;
      for (int64_t p = read.count(); p > 0; --p) {
        const int64_t position = read.below(int64_t(host.size()), "position");
        pointers.emplace_back(position, source());
        STD_TORCH_CHECK(pointers.back().second.kind != Source::VALUE, "a table points to what is not an argument");
      }
      step.table = std::make_shared<const Table>(std::move(host), std::move(pointers));
      ++made;
    }
    steps_.push_back(std::move(step));
  }
  list_ = read.below(2, "list") == 1;
  for (int64_t n = read.count(); n > 0; --n) {
    Result result{read.below(made, "value"), read.next(), 0, {}, {}};
    if (result.rank >= 0) {
      result.sizes = read.several(result.rank);
      result.strides = read.several(result.rank);
      result.offset = read.next();
    }
    results_.push_back(std::move(result));
  }
  STD_TORCH_CHECK(list_ || int64_t(results_.size()) <= kResults, "a plan has results too many");
  read.finish();
}

bool Plan::has_tables() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const Step& step) { return step.kind == Step::TABLE; });
}

void Plan::replay(const Call& call, StableIValue* results) const {
  std::vector<Owned> values;
  values.reserve(steps_.size());
  std::optional<Guard> guard;
  for (const Step& step : steps_) {
    if (step.kind == Step::MAKE) {
      values.push_back(allocate(step.layout, call.device));
      continue;
    }
    if (step.kind == Step::SUM) {
      values.push_back(sum(values[step.value].get(), step.dimensions));
      continue;
    }
    if (step.kind == Step::TABLE) {
      values.push_back(step.table->on_device(call));
      continue;
    }
    uint64_t numbers[kParameters];
    void* parameters[kParameters];
    for (size_t n = 0; n < step.parameters.size(); ++n) {
      const Source& source = step.parameters[n];
      uint64_t number = uint64_t(source.index);
      if (source.kind == Source::ARGUMENT) number = call.tensors[source.index].address + source.offset;
      if (source.kind == Source::VALUE) number = address_of(values[source.index].get()) + source.offset;
      numbers[n] = number;
      parameters[n] = &numbers[n];
    }
    if (!guard) guard.emplace(call.device);
    launch(step.function, step.grid, current_stream(call.device), parameters);
  }
  std::vector<Owned> owned;
  owned.reserve(results_.size());
  for (const Result& result : results_) {
    const AtenTensorHandle whole = values[result.value].get();
    AtenTensorHandle made = nullptr;
    if (result.rank < 0) made = another(whole).release();
    else
      ok(aoti_torch__reinterpret_tensor(whole, result.rank, result.sizes.data(), result.strides.data(), result.offset,
                                        &made),
         "make a result");
    owned.emplace_back(made);
  }
  if (!list_) {
    for (size_t n = 0; n < owned.size(); ++n) results[n] = torch::stable::detail::from(owned[n].release());
    return;
  }
  StableListHandle list = nullptr;
  ok(torch_new_list_reserve_size(owned.size(), &list), "make a list");
  for (Owned& result : owned)
    ok(torch_list_push_back(list, torch::stable::detail::from(result.release())), "make a list");
  results[0] = torch::stable::detail::from(list);
}

}  // namespace inn::launcher
