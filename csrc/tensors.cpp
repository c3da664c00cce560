// Checks, allocation and small helpers declared in tensors.h.
#include "tensors.h"

#include <algorithm>
#include <climits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace inn {
namespace {

bool is_channels_last(const Shape& shape, const Tensor& tensor) {
  if (shape.size() != 4 || tensor.is_contiguous()) return false;
  const auto strides = tensor.strides();
  int64_t expected = 1;
  for (const size_t d : {1, 3, 2, 0}) {
    if (shape[d] != 1 && strides[d] != expected) return false;
    expected *= shape[d];
  }
  return true;
}

// Raises unless the product of all sizes, those of empty dimensions left out, fits int64: then strides, offsets and
// bytes do. (PyTorch bounds the number of elements alone, which one empty dimension makes zero.)
void check_size(const Shape& shape, const char* name) {
  int64_t bytes = 8;
  for (const int64_t size : shape)
    STD_TORCH_CHECK(!__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes), name,
                    " must have fewer than 2^60 elements, got shape ", to_string(shape));
}

void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) & ~(kHugePage - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a hint: may fail
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + "]";
}

Shape shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Shape(sizes.begin(), sizes.end());
}

std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Short: return "int16";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return torch::headeronly::toString(dtype);
  }
}

Storage storage_of(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    case ScalarType::Double: return kFloat64;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float32, bfloat16, float16 or float64, got ",
                  name_of(dtype));
  return kFloat32;
}

Storage check_values(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, name, " must be a dense (strided) tensor");
  return storage_of(tensor.scalar_type(), name);
}

void check_same_precision(Storage first, const char* first_name, Storage second, const char* second_name) {
  STD_TORCH_CHECK((first == kFloat64) == (second == kFloat64), first_name, " and ", second_name,
                  " must both be float64 or neither, got float64 for only one of them");
}

namespace {

// Everything about start but its values.
Taps check_start_form(const Tensor& start, int64_t nodes, const char* start_name) {
  STD_TORCH_CHECK(nodes >= 0 && nodes <= INT_MAX, start_name, ": the number of nodes must be in [0, 2^31), got ",
                  nodes);
  STD_TORCH_CHECK(start.is_cpu(), start_name, " must be on the CPU");
  STD_TORCH_CHECK(start.scalar_type() == ScalarType::Int, start_name, " must be int32, got ",
                  name_of(start.scalar_type()));
  STD_TORCH_CHECK(start.dim() == 1, start_name, " must have shape [K], got ", to_string(shape_of(start)));
  Taps taps;
  taps.points = start.size(0);
  STD_TORCH_CHECK(taps.points <= INT_MAX / 4, start_name, " must have fewer than 2^29 points, got ", taps.points);
  taps.start_tensor = start.is_contiguous() ? start : torch::stable::contiguous(start);
  taps.start = static_cast<const int32_t*>(taps.start_tensor.const_data_ptr());
  STD_TORCH_CHECK(taps.points == 0 || nodes > 0, start_name, " has ", taps.points, " points but there are no nodes");
  return taps;
}

// Whether every tap addresses nodes there are, in order.
void check_start_values(const Taps& taps, int64_t nodes, const char* start_name) {
  if (taps.points == 0) return;
  const int64_t last = std::max<int64_t>(0, nodes - taps.per_point);
  STD_TORCH_CHECK(taps.start[0] >= 0, start_name, " must be in [0, ", last, "], got ", taps.start[0], " at 0");
  bool sorted = true;
  for (int64_t k = 1; k < taps.points; ++k) sorted &= taps.start[k - 1] <= taps.start[k];
  STD_TORCH_CHECK(sorted, start_name, " must not decrease");
  STD_TORCH_CHECK(taps.start[taps.points - 1] <= last, start_name, " must be in [0, ", last, "] for ", nodes,
                  " nodes and ", taps.per_point, " taps a point, got ", taps.start[taps.points - 1], " at ",
                  taps.points - 1);
}

}  // namespace

Taps check_start(const Tensor& start, int64_t per_point, int64_t nodes, const char* start_name) {
  Taps taps = check_start_form(start, nodes, start_name);
  STD_TORCH_CHECK(per_point >= 1 && per_point <= INT_MAX, "taps must be in [1, 2^31), got ", per_point);
  taps.per_point = per_point;
  check_start_values(taps, nodes, start_name);
  return taps;
}

Taps check_taps(const Tensor& start, const Tensor& weight, int64_t nodes, Storage data, const char* start_name,
                const char* weight_name) {
  Taps taps = check_start_form(start, nodes, start_name);
  STD_TORCH_CHECK(weight.is_cpu(), weight_name, " must be on the CPU");
  const ScalarType wanted = data == kFloat64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.scalar_type() == wanted, weight_name, " must be ", name_of(wanted), " for such values, got ",
                  name_of(weight.scalar_type()));
  const Shape shape = shape_of(weight);
  STD_TORCH_CHECK(shape.size() == 2 && shape[0] == taps.points && shape[1] >= 1, weight_name, " must have shape [",
                  taps.points, ", T] with T >= 1 as ", start_name, " has ", taps.points, " points, got ",
                  to_string(shape));
  taps.per_point = shape[1];
  taps.weight_tensor = weight.is_contiguous() ? weight : torch::stable::contiguous(weight);
  taps.weight = taps.weight_tensor.const_data_ptr();
  check_start_values(taps, nodes, start_name);
  return taps;
}

Matrix check_matrix(const Tensor& tensor, const char* name, bool keep_channels_last) {
  Matrix matrix;
  matrix.storage = check_values(tensor, name);
  const Shape shape = shape_of(tensor);
  STD_TORCH_CHECK(shape.size() >= 2, name, " must have shape [rows, columns, *kernel], got ", to_string(shape));
  check_size(shape, name);
  int64_t rest = 1;
  for (size_t d = 2; d < shape.size(); ++d) rest *= shape[d];
  STD_TORCH_CHECK(shape[1] * std::max<int64_t>(rest, 1) <= INT_MAX, name,
                  ": a row must have fewer than 2^31 elements, got shape ", to_string(shape));
  matrix.channels_last = keep_channels_last && is_channels_last(shape, tensor);
  const bool as_is = matrix.channels_last || tensor.is_contiguous();
  matrix.tensor = as_is ? tensor : torch::stable::contiguous(tensor);
  matrix.rows = shape[0];
  matrix.columns = shape[1];
  matrix.outer = matrix.channels_last ? rest : 1;
  matrix.inner = matrix.channels_last ? 1 : rest;
  matrix.data = matrix.tensor.const_data_ptr();
  return matrix;
}

Matrix check_along(const Tensor& tensor, int64_t dim, const char* name) {
  Matrix matrix;
  matrix.storage = check_values(tensor, name);
  const Shape shape = shape_of(tensor);
  const int64_t rank = int64_t(shape.size());
  STD_TORCH_CHECK(rank > 0, name, " must have at least one dimension, got a scalar");
  STD_TORCH_CHECK(dim >= -rank && dim < rank, "dim must be in [", -rank, ", ", rank - 1, "] for ", name, " of shape ",
                  to_string(shape), ", got ", dim);
  check_size(shape, name);
  const int64_t at = dim < 0 ? dim + rank : dim;
  matrix.rows = matrix.inner = matrix.outer = 1;
  for (int64_t d = 0; d < at; ++d) matrix.rows *= shape[d];
  for (int64_t d = at + 1; d < rank; ++d) matrix.inner *= shape[d];
  matrix.columns = shape[at];
  const int64_t indexed = matrix.inner < std::max(kRunLength, kDotRun) ? std::max<int64_t>(matrix.inner, 1) : 1;
  STD_TORCH_CHECK(matrix.columns * indexed <= INT_MAX, name, " must have fewer than 2^31 elements from dim ", at,
                  " on, got shape ", to_string(shape));
  matrix.channels_last = false;
  matrix.tensor = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  matrix.data = matrix.tensor.const_data_ptr();
  return matrix;
}

Tensor allocate(const Shape& shape, Storage storage, bool channels_last) {
  check_size(shape, "the result");
  std::vector<int64_t> strides(shape.size());
  int64_t size = 1;
  if (channels_last) {
    for (const size_t d : {1, 3, 2, 0}) strides[d] = size, size *= shape[d];
  } else {
    for (size_t d = shape.size(); d-- > 0;) strides[d] = size, size *= std::max<int64_t>(shape[d], 1);
  }
  const int32_t dtype = storage == kFloat64    ? aoti_torch_dtype_float64()
                        : storage == kFloat32  ? aoti_torch_dtype_float32()
                        : storage == kBFloat16 ? aoti_torch_dtype_bfloat16()
                                               : aoti_torch_dtype_float16();
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), dtype,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  constexpr int64_t kWorthHugePages = int64_t(4) << 20;
  int64_t bytes = bytes_of(storage);
  for (const int64_t length : shape) bytes *= length;
  if (bytes >= kWorthHugePages) advise_huge_pages(tensor.mutable_data_ptr(), bytes);
  return tensor;
}

}  // namespace inn
