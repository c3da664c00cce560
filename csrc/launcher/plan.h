// What a call of one kind does, as words that Python recorded (inn_kernels/gpu/replay.py), and its replay.
//
//   identities   count, then address and version of each W argument; 1 if float32 products are TF32
//   steps        count, then of each, by its first word (all but launches make values, numbered in their order):
//                MAKE    dtype, rank, sizes, strides of a tensor to allocate
//                LAUNCH  function, grid x y z, threads, shared memory, count, (source, index, offset) of each parameter
//                SUM     value, count of dimensions, dimensions
//                TABLE   count, int64 words; count, (position, source, index, offset) of each pointer among them
//   results      1 if they are one list, count, then of each: value, rank, sizes, strides, offset; rank -1: the value
//
// A source is LITERAL (index is the value itself), ARGUMENT or VALUE, its offset in bytes. Dtypes are float32, bfloat16,
// float16, int32, int64, from 0.
#pragma once

#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "call.h"
#include "driver.h"

namespace inn::launcher {

constexpr int64_t kResults = 4;  // most that an operator returns; a list is one

struct Delete {
  void operator()(AtenTensorOpaque* tensor) const { aoti_torch_delete_tensor_object(tensor); }
};
using Owned = std::unique_ptr<AtenTensorOpaque, Delete>;

struct Source {
  enum Kind : int64_t { LITERAL, ARGUMENT, VALUE } kind;
  int64_t index, offset;
};

struct Layout {
  int32_t dtype;
  std::vector<int64_t> sizes, strides;
};

// Memory that begins with pointers to arguments: written when the pointers are new, kept for the last few.
class Table {
 public:
  Table(std::vector<int64_t> words, std::vector<std::pair<int64_t, Source>> pointers)
      : words_(std::move(words)), pointers_(std::move(pointers)) {}
  Owned on_device(const Call& call) const;

 private:
  using Kept = std::pair<std::vector<int64_t>, std::shared_ptr<AtenTensorOpaque>>;

  std::vector<int64_t> words_;
  std::vector<std::pair<int64_t, Source>> pointers_;
  mutable std::mutex mutex_;
  mutable std::vector<Kept> kept_;  // least recently used first
};

struct Step {
  enum Kind : int64_t { MAKE, LAUNCH, SUM, TABLE } kind = MAKE;
  Layout layout{};
  void* function = nullptr;
  Grid grid{};
  std::vector<Source> parameters;
  int64_t value = 0;
  std::vector<int64_t> dimensions;
  std::shared_ptr<const Table> table;
};

struct Result {
  int64_t value, rank, offset;
  std::vector<int64_t> sizes, strides;
};

// There is no memory for a result.
struct NoMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Plan {
 public:
  // Reads the words for a call; raises a RuntimeError where they do not fit it.
  Plan(const Call& call, const int64_t* words, int64_t count, std::vector<Owned> constants);

  // Makes the results, at most kResults. Raises NoMemory, and a RuntimeError where a launch fails.
  void replay(const Call& call, StableIValue* results) const;

  bool has_tables() const;

 private:
  std::vector<Step> steps_;
  std::vector<Result> results_;
  bool list_ = false;
  std::vector<Owned> constants_;  // that launches read
};

}  // namespace inn::launcher
