// weight_gradient: dW = dy^T x, PyTorch's own product written into huge pages.
//
//     grad [B, K], x [B, L] -> [K, L]
//
// The gradient of a large weight is fresh memory in every step, and its page faults cost as much as the product itself.
#include "operations.h"

namespace inn {

Tensor weight_gradient(const Tensor& grad, const Tensor& x) {
  const Storage storage = check_values(grad, "grad");
  check_values(x, "x");
  const Shape rows = shape_of(grad), columns = shape_of(x);
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "grad and x must be of one dtype");
  STD_TORCH_CHECK(rows.size() == 2 && columns.size() == 2 && rows[0] == columns[0],
                  "grad and x must have shapes [B, K] and [B, L], got ", to_string(rows), " and ", to_string(columns));
  Tensor out = allocate({rows[1], columns[1]}, storage);
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(torch::stable::transpose(grad, 0, 1)), from(x), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace inn
