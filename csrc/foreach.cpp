// All tensors of a network sampled, or brought back to their nodes, by one operation.
//
//     W_n = S_out_n nodes_n S_in_n^T          [M_out, M_in, *kernel] or [M_out], along the dimensions that have taps
//     d_nodes_n = S_out_n^T grad_n S_in_n
//
// Each tensor is computed as `discretize` or `interpolate` does it; what is saved is the way through the dispatcher
// and autograd for each. Taps are given once and named by position: -1 is a dimension that is not sampled.
#include <algorithm>

#include "operations.h"

namespace inn {
namespace {

using Tensors = std::vector<Tensor>;
using Positions = std::vector<int64_t>;

void check_positions(size_t tensors, const Tensors& start, const Tensors& weight, const Positions& out,
                     const Positions& in) {
  STD_TORCH_CHECK(out.size() == tensors && in.size() == tensors,
                  "out and in_ must have one position a tensor, got ", out.size(), " and ", in.size(), " for ", tensors);
  STD_TORCH_CHECK(start.size() == weight.size(), "start and weight must be of one length, got ", start.size(), " and ",
                  weight.size());
  for (size_t n = 0; n < tensors; ++n) {
    for (const int64_t at : {out[n], in[n]})
      STD_TORCH_CHECK(at >= -1 && at < int64_t(start.size()), "a position of taps must be in [-1, ", start.size(),
                      "), got ", at);
    STD_TORCH_CHECK(out[n] >= 0 || in[n] >= 0, "tensor ", n, " has no taps");
  }
}

}  // namespace

Tensors discretize_foreach(Tensors nodes, Tensors start, Tensors weight, Positions out, Positions in,
                           ScalarType dtype) {
  check_positions(nodes.size(), start, weight, out, in);
  Tensors made;
  made.reserve(nodes.size());
  for (size_t n = 0; n < nodes.size(); ++n) {
    const int64_t o = out[n], i = in[n];
    if (o >= 0 && i >= 0)
      made.push_back(discretize(nodes[n], start[o], weight[o], start[i], weight[i], dtype));
    else
      made.push_back(interpolate(nodes[n], start[std::max(o, i)], weight[std::max(o, i)], o >= 0 ? 0 : 1, dtype));
  }
  return made;
}

Tensors discretize_foreach_adjoint(Tensors grads, Tensors start, Tensors weight, Positions nodes, Positions out,
                                   Positions in, ScalarType dtype) {
  check_positions(grads.size(), start, weight, out, in);
  STD_TORCH_CHECK(nodes.size() == start.size(), "nodes must have one size for each of the taps, got ", nodes.size(),
                  " for ", start.size());
  Tensors made;
  made.reserve(grads.size());
  for (size_t n = 0; n < grads.size(); ++n) {
    const int64_t o = out[n], i = in[n], either = std::max(o, i);
    if (o >= 0 && i >= 0)
      made.push_back(
          discretize_adjoint(grads[n], start[o], weight[o], start[i], weight[i], nodes[o], nodes[i], dtype));
    else
      made.push_back(spread(grads[n], start[either], weight[either], nodes[either], o >= 0 ? 0 : 1, dtype));
  }
  return made;
}

}  // namespace inn
