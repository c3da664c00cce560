// The operations, as library.cpp registers them. Schemas are defined in Python (inn_kernels/ops.py).
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace inn {

Tensor discretize(const Tensor& nodes, const Tensor& out_start, const Tensor& out_weight, const Tensor& in_start,
                  const Tensor& in_weight, ScalarType dtype);

Tensor discretize_adjoint(const Tensor& grad, const Tensor& out_start, const Tensor& out_weight,
                          const Tensor& in_start, const Tensor& in_weight, int64_t out_nodes, int64_t in_nodes,
                          ScalarType dtype);

std::tuple<Tensor, Tensor> discretize_tap_gradient(const Tensor& nodes, const Tensor& grad, const Tensor& out_start,
                                                   const Tensor& out_weight, const Tensor& in_start,
                                                   const Tensor& in_weight, bool need_out, bool need_in);

Tensor interpolate(const Tensor& x, const Tensor& start, const Tensor& weight, int64_t dim, ScalarType dtype);

Tensor spread(const Tensor& x, const Tensor& start, const Tensor& weight, int64_t nodes, int64_t dim,
              ScalarType dtype);

Tensor interpolate_tap_gradient(const Tensor& x, const Tensor& grad, const Tensor& start, int64_t taps, int64_t dim);

std::vector<Tensor> discretize_foreach(std::vector<Tensor> nodes, std::vector<Tensor> start,
                                       std::vector<Tensor> weight, std::vector<int64_t> out, std::vector<int64_t> in,
                                       ScalarType dtype);

std::vector<Tensor> discretize_foreach_adjoint(std::vector<Tensor> grads, std::vector<Tensor> start,
                                               std::vector<Tensor> weight, std::vector<int64_t> nodes,
                                               std::vector<int64_t> out, std::vector<int64_t> in, ScalarType dtype);

Tensor weight_gradient(const Tensor& grad, const Tensor& x);

// Written into `start` and `weight`, and into `table`.
void uniform_taps(const Tensor& start, const Tensor& weight, int64_t nodes, double a, std::string kernel,
                  std::string boundary, std::string quadrature, std::optional<double> scale);

void axis_table(const Tensor& table, const Tensor& start, const Tensor& weight, int64_t nodes, int64_t contributors);

}  // namespace inn
