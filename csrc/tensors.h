// Tensors through PyTorch's stable ABI: what the operations accept, how they report what they do not, and
// how outputs are allocated.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "band.h"
#include "simd/kernels.h"

namespace inn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

std::string to_string(const Shape& shape);
Shape shape_of(const Tensor& tensor);

// The name of a dtype in Python.
std::string name_of(ScalarType dtype);

// The storage type of a dtype; raises for a dtype without kernels.
Storage storage_of(ScalarType dtype, const char* name);

// Checks device, layout and dtype.
Storage check_values(const Tensor& tensor, const char* name);

// float64 goes with float64 only; the other storage types mix.
void check_same_precision(Storage first, const char* first_name, Storage second, const char* second_name);

inline int64_t bytes_of(Storage storage) {
  return storage == kFloat64 ? 8 : storage == kFloat32 ? 4 : 2;
}

// Taps of one dimension, checked and contiguous.
struct Taps {
  Tensor start_tensor, weight_tensor;  // keep the memory alive
  int64_t points = 0, per_point = 0;
  const int32_t* start = nullptr;  // [points]
  const void* weight = nullptr;    // [points, per_point] in the accumulator of the data

  template <typename Accumulator>
  TapView<Accumulator> view() const { return {start, static_cast<const Accumulator*>(weight), points, per_point}; }
};

// `nodes` is how many nodes the taps may address; weight_dtype_of is the storage type of the data.
Taps check_taps(const Tensor& start, const Tensor& weight, int64_t nodes, Storage data, const char* start_name,
                const char* weight_name);
// For an operation that makes the gradient of the weights, `per_point` a point, and reads only start.
Taps check_start(const Tensor& start, int64_t per_point, int64_t nodes, const char* start_name);

// From so many elements behind a dimension on, kernels run along them; below, they permute across them, in rows
// whose elements int32 indices address.
constexpr int64_t kRunLength = 9;  // of the column pass
constexpr int64_t kDotRun = 16;    // of dot products: shorter runs leave lanes empty

// [rows, R, columns, T] in memory: R is the number of kernel offsets of a channels_last tensor, T of a contiguous one.
struct Matrix {
  Tensor tensor;  // keeps the memory alive
  Storage storage;
  int64_t rows, columns, outer, inner;
  bool channels_last;
  const void* data;
};

// A [rows, columns, *rest] argument as a Matrix, copied only if it is neither contiguous nor channels_last.
Matrix check_matrix(const Tensor& tensor, const char* name, bool keep_channels_last);

// A tensor seen along `dim` (negative counts from the end) as a Matrix [outer, dim, inner]: rows, columns and inner.
Matrix check_along(const Tensor& tensor, int64_t dim, const char* name);

// An uninitialised CPU tensor. Large ones ask for huge pages: a fresh tensor costs a page fault every 4 KiB
// otherwise, several times what the kernels need to fill it.
Tensor allocate(const Shape& shape, Storage storage, bool channels_last = false);

// Uninitialised memory of one thread, aligned to a cache line.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(sizeof(T) * size_t(size > 0 ? size : 1), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// For tasks that cost about `cost` elements each: few enough elements run on the calling thread alone, where
// they are done before a second thread would have woken up.
template <typename Function>
void parallel_tasks(int64_t tasks, int64_t cost, const Function& function) {
  constexpr int64_t kElementsPerThread = 1 << 15;
  if (tasks == 0) return;
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(cost, 1)), function);
}

}  // namespace inn
