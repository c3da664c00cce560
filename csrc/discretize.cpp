// discretize and its adjoint: one banded product with two kinds of band.
//
//     W  = S_out nodes S_in^T       [M_out, M_in, *kernel] -> [K, L, *kernel]        (Eq. 6, scale and q are in the taps)
//     d_nodes = S_out^T grad S_in   [K, L, *kernel] -> [M_out, M_in, *kernel]        (Neural Integral Lemma)
//
// Both are out = A in B^T with banded A and B (banded_product.h): a few nodes a point one way, and the other way
// the consecutive points whose window covers a node.
#include "operations.h"

#include "banded_product.h"

namespace inn {
namespace {

// Calls `function` with the bands of a dimension, or with none where S is the identity: the dimension passes through.
template <typename Accumulator, typename Function>
void for_bands_unless_identity(const Taps& taps, int64_t nodes, bool adjoint, const Function& function) {
  if (is_identity(taps.view<Accumulator>(), nodes)) return function(nullptr);
  for_bands<Accumulator>(taps, nodes, adjoint, [&](const Band<Accumulator>& band) { function(&band); });
}

template <typename Accumulator>
void product(const Taps& out_taps, const Taps& in_taps, int64_t out_nodes, int64_t in_nodes, bool adjoint,
             const Matrix& in, void* out, Storage out_storage) {
  using BandPointer = const Band<Accumulator>*;
  for_bands_unless_identity<Accumulator>(out_taps, out_nodes, adjoint, [&](BandPointer rows) {
    for_bands_unless_identity<Accumulator>(in_taps, in_nodes, adjoint, [&](BandPointer columns) {
      if (columns) return banded_product<Accumulator>(rows, *columns, in, out, out_storage);
      const int64_t row = in.outer * in.columns * in.inner;
      combine_rows<Accumulator>(rows ? *rows : identity_band<Accumulator>(in.rows), 1, in.rows, row, in.data,
                                in.storage, out, out_storage);
    });
  });
}

Shape resized(const Tensor& tensor, int64_t rows, int64_t columns) {
  Shape shape = shape_of(tensor);
  shape[0] = rows;
  shape[1] = columns;
  return shape;
}

}  // namespace

Tensor discretize(const Tensor& nodes, const Tensor& out_start, const Tensor& out_weight, const Tensor& in_start,
                  const Tensor& in_weight, ScalarType dtype) {
  const Matrix in = check_matrix(nodes, "nodes", /*keep_channels_last=*/true);
  const Storage storage = storage_of(dtype, "dtype");
  check_same_precision(in.storage, "nodes", storage, "dtype");
  const Taps out_taps = check_taps(out_start, out_weight, in.rows, in.storage, "out_start", "out_weight");
  const Taps in_taps = check_taps(in_start, in_weight, in.columns, in.storage, "in_start", "in_weight");
  Tensor out = allocate(resized(nodes, out_taps.points, in_taps.points), storage, in.channels_last);
  if (out.numel() == 0) return out;
  const auto run = in.storage == kFloat64 ? product<double> : product<float>;
  run(out_taps, in_taps, in.rows, in.columns, /*adjoint=*/false, in, out.mutable_data_ptr(), storage);
  return out;
}

Tensor discretize_adjoint(const Tensor& grad, const Tensor& out_start, const Tensor& out_weight,
                          const Tensor& in_start, const Tensor& in_weight, int64_t out_nodes, int64_t in_nodes,
                          ScalarType dtype) {
  const Matrix in = check_matrix(grad, "grad", /*keep_channels_last=*/true);
  const Storage storage = storage_of(dtype, "dtype");
  check_same_precision(in.storage, "grad", storage, "dtype");
  const Taps out_taps = check_taps(out_start, out_weight, out_nodes, in.storage, "out_start", "out_weight");
  const Taps in_taps = check_taps(in_start, in_weight, in_nodes, in.storage, "in_start", "in_weight");
  STD_TORCH_CHECK(in.rows == out_taps.points && in.columns == in_taps.points, "grad must have shape ",
                  to_string(resized(grad, out_taps.points, in_taps.points)), " as the taps say, got ",
                  to_string(shape_of(grad)));
  Tensor out = allocate(resized(grad, out_nodes, in_nodes), storage, in.channels_last);
  if (out.numel() == 0) return out;
  const auto run = in.storage == kFloat64 ? product<double> : product<float>;
  run(out_taps, in_taps, out_nodes, in_nodes, /*adjoint=*/true, in, out.mutable_data_ptr(), storage);
  return out;
}

}  // namespace inn
