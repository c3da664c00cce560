// interpolate and spread: one dimension of a tensor sampled at points, and the adjoint of that.
//
//     y[.., k, ..] = sum_t weight[k, t] x[.., start[k] + t, ..]          interpolate, size M -> K
//     x[.., i, ..] = sum_{k, t: start[k] + t = i} weight[k, t] y[.., k, ..]   spread, size K -> M
//
// The tensor is [outer, dim, inner]. With inner = 1 this is the column pass of a banded product alone; from a few
// elements on it is the row pass alone, straight from input to output.
#include "operations.h"

#include "banded_product.h"

namespace inn {
namespace {

template <typename Accumulator>
void along_dimension(const Taps& taps, int64_t nodes, bool adjoint, const Matrix& in, void* out, Storage out_storage) {
  for_bands<Accumulator>(taps, nodes, adjoint, [&](const Band<Accumulator>& band) {
    if (in.inner < kRunLength)
      banded_product<Accumulator>(nullptr, band, in, out, out_storage);
    else
      combine_rows(band, in.rows, in.columns, in.inner, in.data, in.storage, out, out_storage);
  });
}

Tensor apply(const Tensor& x, const Tensor& start, const Tensor& weight, int64_t nodes, int64_t dim,
             ScalarType dtype, bool adjoint) {
  const Matrix in = check_along(x, dim, "x");
  const Storage storage = storage_of(dtype, "dtype");
  check_same_precision(in.storage, "x", storage, "dtype");
  if (!adjoint) nodes = in.columns;
  const Taps taps = check_taps(start, weight, nodes, in.storage, "start", "weight");
  STD_TORCH_CHECK(!adjoint || in.columns == taps.points, "x must have ", taps.points,
                  " points along dim, one for each of the taps, got ", in.columns);
  Shape shape = shape_of(x);
  shape[dim < 0 ? dim + int64_t(shape.size()) : dim] = adjoint ? nodes : taps.points;
  Tensor out = allocate(shape, storage);
  if (out.numel() == 0) return out;
  const auto run = in.storage == kFloat64 ? along_dimension<double> : along_dimension<float>;
  run(taps, nodes, adjoint, in, out.mutable_data_ptr(), storage);
  return out;
}

}  // namespace

Tensor interpolate(const Tensor& x, const Tensor& start, const Tensor& weight, int64_t dim, ScalarType dtype) {
  return apply(x, start, weight, 0, dim, dtype, /*adjoint=*/false);
}

Tensor spread(const Tensor& x, const Tensor& start, const Tensor& weight, int64_t nodes, int64_t dim,
              ScalarType dtype) {
  return apply(x, start, weight, nodes, dim, dtype, /*adjoint=*/true);
}

}  // namespace inn
