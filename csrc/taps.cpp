// Taps of uniform points and equal cells, and the table of an axis: what a size that was never seen needs first.
//
//     F(x) = sum_i nodes[i] u(s - i) = sum_{t<T} weight[t] nodes[start + t]
//
// The definitions are those of inn_kernels/basis.py, points.py, cells.py and quadrature.py: some forty operations on
// tensors. Here it is a loop over points. Positions are fractions, kept as whole numbers; everything else is
// float64, in the order in which PyTorch computes it, rounded once at the end.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "operations.h"

namespace inn {
namespace {

constexpr int kMostHeard = 4;  // nodes that count in a piece of a basis

struct Basis {
  double one[kMostHeard], first[kMostHeard], second[kMostHeard], third[kMostHeard];  // of 1, t, t^2, t^3
  int heard;
  bool knots_between_nodes, keys;
  double bend[kMostHeard];  // second / 3

  void at(double t, double* values) const {
    for (int i = 0; i < kMostHeard; ++i) values[i] = one[i] + t * (first[i] + t * (second[i] + t * third[i]));
  }

  // The mean over [middle - half, middle + half], times a share.
  void mean(double middle, double half, double share, double* values) const {
    at(middle, values);
    const double square = half * half;
    for (int i = 0; i < kMostHeard; ++i)
      values[i] = share * (values[i] + square * (bend[i] + middle * third[i]));
  }
};

Basis basis_of(double a, const std::string& kernel, const std::string& boundary) {
  STD_TORCH_CHECK(boundary == "clamp" || boundary == "keys", "boundary must be clamp or keys, got ", boundary);
  char text[32];
  std::snprintf(text, sizeof text, "%g", a);
  STD_TORCH_CHECK(a > -1e6 && a < 1e6, "a must be finite, got ", text);
  Basis basis{};
  if (kernel == "cubic") {
    basis = {{0, 1, 0, 0}, {a, 0, -a, 0}, {-2 * a, -a - 3, 2 * a + 3, a}, {a, a + 2, -a - 2, -a}, 4, false, false, {}};
  } else if (kernel == "linear") {
    basis = {{0, 1, 0, 0}, {0, -1, 1, 0}, {}, {}, 4, false, false, {}};
  } else if (kernel == "bspline") {
    basis = {{1. / 6, 4. / 6, 1. / 6, 0},  {-1. / 2, 0, 1. / 2, 0}, {1. / 2, -1, 1. / 2, 0},
             {-1. / 6, 1. / 2, -1. / 2, 1. / 6}, 4, false, false, {}};
  } else {
    STD_TORCH_CHECK(kernel == "conservative", "kernel must be cubic, linear, bspline or conservative, got ", kernel);
    basis = {{1. / 2, 1. / 2, 0, 0}, {-2, 3, -1, 0}, {3. / 2, -3, 3. / 2, 0}, {}, 3, true, false, {}};
  }
  basis.keys = boundary == "keys";
  for (int i = 0; i < kMostHeard; ++i) basis.bend[i] = basis.second[i] / 3;
  return basis;
}

// Quadrature ------------------------------------------------------------------------------------------------------

enum class Rule { kCells, kMidpoint, kTrapezoid, kSimpson, kLeft, kRight };

Rule rule_of(const std::string& name) {
  if (name == "cells") return Rule::kCells;
  if (name == "midpoint") return Rule::kMidpoint;
  if (name == "trapezoid") return Rule::kTrapezoid;
  if (name == "simpson") return Rule::kSimpson;
  if (name == "left") return Rule::kLeft;
  STD_TORCH_CHECK(name == "right", "quadrature must be cells, midpoint, trapezoid, simpson, left or right, got ", name);
  return Rule::kRight;
}

// Weights of the parabola through an interval of length h, the end it shares with the next one, and that one's far end.
struct Parabola {
  double outer, shared, far;
  Parabola(double h, double next) {
    const double ratio = h / next, part = h / (h + next);
    outer = (3 - part) * h / 6, shared = (3 + ratio) * h / 6, far = -ratio * part * h / 6;
  }
};

// Of n points p, differences between which are h.
std::vector<double> simpson(const std::vector<double>& p) {
  const int64_t n = int64_t(p.size()), intervals = n - 1;
  std::vector<double> outer(n, 0.0), middle(n, 0.0), end(n, 0.0);
  const auto share = [&](int64_t i) {
    if (i == 0) return 1.0;
    if (i == intervals - 1) return 0.0;
    return intervals % 2 == 0 ? double(i % 2 == 0) : 0.5;
  };
  for (int64_t i = 0; i + 1 < intervals; ++i) {
    const double h = p[i + 1] - p[i], next = p[i + 2] - p[i + 1];
    const Parabola right(h, next), left(next, h);
    const double to_right = share(i), to_left = 1 - share(i + 1);
    outer[i] = to_right * right.outer + to_left * left.far;
    middle[i + 1] = to_right * right.shared + to_left * left.shared;
    end[i + 2] = to_right * right.far + to_left * left.outer;
  }
  for (int64_t k = 0; k < n; ++k) outer[k] = outer[k] + middle[k] + end[k];
  return outer;
}

// What each point's weights are multiplied by: the quadrature on uniform points (on equal cells), times scale.
std::vector<double> multipliers(Rule rule, int64_t n, double scale) {
  if (rule == Rule::kCells) return std::vector<double>(n, scale / double(n));
  std::vector<double> p(n), q(n);
  for (int64_t k = 0; k < n; ++k)
    p[k] = rule == Rule::kMidpoint ? (double(k) + 0.5) / double(n) : double(k) / double(std::max<int64_t>(n - 1, 1));
  if (rule == Rule::kSimpson && n > 2) {
    q = simpson(p);
  } else {
    for (int64_t k = 0; k < n; ++k) {
      const bool first = k == 0, last = k == n - 1;
      switch (rule) {
        case Rule::kLeft: q[k] = (last ? 1.0 : p[k + 1]) - p[k]; break;
        case Rule::kRight: q[k] = p[k] - (first ? 0.0 : p[k - 1]); break;
        case Rule::kMidpoint:
          q[k] = (last ? 1.0 : (p[k + 1] + p[k]) / 2) - (first ? 0.0 : (p[k] + p[k - 1]) / 2);
          break;
        default: q[k] = (last ? 0.0 : (p[k + 1] - p[k]) / 2) + (first ? 0.0 : (p[k] - p[k - 1]) / 2);
      }
    }
  }
  for (double& value : q) value *= scale;
  return q;
}

// Windows ---------------------------------------------------------------------------------------------------------

// A fraction numerator / denominator that goes up by the same step from point to point: its whole part and the rest.
struct Position {
  int64_t denominator, whole, rest, step, step_rest;

  Position(int64_t first, int64_t by, int64_t denominator) : denominator(denominator) {
    whole = first / denominator, rest = first % denominator;
    if (rest < 0) --whole, rest += denominator;
    step = by / denominator, step_rest = by % denominator;
  }
  void advance() {
    whole += step, rest += step_rest;
    if (rest >= denominator) ++whole, rest -= denominator;
  }
};

// What nodes outside add to those inside: value at node `outside`, `order` nodes from an end on.
void add_from_outside(double* row, const double* values, int64_t count, int64_t first, int64_t nodes, int64_t width,
                      bool keys) {
  const int64_t order = keys ? std::min<int64_t>(nodes, 3) : 1, end = std::min(width, nodes) - 1;
  double before[3] = {0, 0, 0}, after[3] = {0, 0, 0};
  const auto add = [&](double* sums, double value, double d) {
    if (order == 1) {
      sums[0] += value;
    } else if (order == 2) {
      sums[0] += value * (d + 1), sums[1] += value * -d;
    } else {
      sums[0] += value * ((d + 1) * (d + 2) / 2), sums[1] += value * (-d * (d + 2)), sums[2] += value * (d * (d + 1) / 2);
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t node = first + i;
    if (node < 0) add(before, values[i], double(std::min<int64_t>(-node, 2)));
    if (node > nodes - 1) add(after, values[i], double(std::min<int64_t>(node - (nodes - 1), 2)));
  }
  for (int64_t i = 0; i < order; ++i) row[i] += before[i];
  for (int64_t i = 0; i < order; ++i) row[end - i] += after[i];
}

template <typename Value>
struct Rows {
  int32_t* start;
  Value* weight;
  int64_t nodes, width, count;  // `count` values a row
  bool keys;
  std::vector<double> row;

  // Values of nodes first, first + 1, .. as a window of nodes that there are.
  void put(int64_t k, int64_t first, const double* values, double factor) {
    const int64_t from = std::min(std::max<int64_t>(first, 0), std::max<int64_t>(nodes - width, 0));
    start[k] = int32_t(from);
    Value* out = weight + k * width;
    if (first == from && first + count <= nodes) {
      for (int64_t c = 0; c < count; ++c) out[c] = Value((values[c] + 0.0) * factor);
      for (int64_t c = count; c < width; ++c) out[c] = Value(0.0 * factor);
      return;
    }
    for (int64_t c = 0; c < width; ++c) {
      const int64_t source = from - first + c;
      row[c] = source >= 0 && source < count && from + c < nodes ? values[source] + 0.0 : 0.0;
    }
    if (first < 0 || first + count > nodes) add_from_outside(row.data(), values, count, first, nodes, width, keys);
    for (int64_t c = 0; c < width; ++c) out[c] = Value(row[c] * factor);
  }
};

// Uniform points k/(K-1), or the centres of equal cells.
template <typename Value>
void put_points(Rows<Value>& rows, const Basis& basis, int64_t points, bool centred, const double* factor) {
  const int64_t nodes = rows.nodes, denominator = 2 * (centred ? points : std::max<int64_t>(points - 1, 1));
  const int64_t shift = basis.knots_between_nodes ? denominator / 2 : 0;
  Position s((centred ? nodes - points : 0) + shift, 2 * (centred ? nodes : nodes - 1), denominator);
  double values[kMostHeard];
  for (int64_t k = 0; k < points; ++k, s.advance()) {
    basis.at(double(s.rest) / double(denominator), values);
    rows.put(k, s.whole - 1, values, factor ? factor[k] : 1.0);
  }
}

// The most parts that a cell is cut into.
int64_t most_parts(int64_t cells, int64_t nodes, bool knots_between_nodes) {
  const int64_t size = 2 * cells, step = std::gcd(2 * nodes, size), shift = knots_between_nodes ? 0 : cells % step;
  const int64_t last = size - step + (step - shift) % step;
  return (last + 2 * nodes + size - 1) / size;
}

// Equal cells, a part for each piece that a cell has something of.
template <typename Value>
void put_cells(Rows<Value>& rows, const Basis& basis, int64_t cells, const double* factor) {
  const int64_t nodes = rows.nodes, size = 2 * cells;  // of a piece; a cell is 2 nodes
  Position begin(basis.knots_between_nodes ? 0 : -cells, 2 * nodes, size);
  std::vector<double> values(size_t(rows.count) + kMostHeard);
  double own[kMostHeard], whole[kMostHeard];  // of a part, and of one that is all of its piece
  basis.mean(double(size) / double(2 * size), double(size) / double(2 * size), double(size) / double(2 * nodes), whole);
  for (int64_t k = 0; k < cells; ++k, begin.advance()) {
    const int64_t end = begin.rest + 2 * nodes;
    std::fill(values.begin(), values.end(), 0.0);
    for (int64_t j = (end - 1) / size; j >= 0; --j) {  // sums in the reference's order
      const int64_t low = j == 0 ? begin.rest : 0, high = std::min(end - j * size, size);
      const double* part = whole;
      if (high - low < size) {
        const double width = double(high - low);
        basis.mean(double(low + high) / double(2 * size), width / double(2 * size), width / double(2 * nodes), own);
        part = own;
      }
      for (int i = 0; i < basis.heard; ++i) values[j + i] += part[i];
    }
    rows.put(k, begin.whole - 1, values.data(), factor ? factor[k] : 1.0);
  }
}

template <typename Value>
void put_all(const Tensor& start, const Tensor& weight, int64_t nodes, int64_t count, const Basis& basis, Rule rule,
             const double* factor) {
  const int64_t points = weight.size(0), width = weight.size(1);
  Rows<Value> rows{static_cast<int32_t*>(start.mutable_data_ptr()), static_cast<Value*>(weight.mutable_data_ptr()),
                   nodes, width, count, basis.keys, std::vector<double>(size_t(std::max<int64_t>(width, 3)))};
  if (rule == Rule::kCells)
    put_cells(rows, basis, points, factor);
  else
    put_points(rows, basis, points, rule == Rule::kMidpoint, factor);
}

// T for so many taps, as `tap_class` has it.
int64_t tap_class(int64_t count) {
  int64_t size = 4;
  while (count > size) size = size % 3 == 0 ? size * 4 / 3 : size * 3 / 2;
  return size;
}

void check_written(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, name, " must be a dense (strided) tensor");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
}

}  // namespace

void uniform_taps(const Tensor& start, const Tensor& weight, int64_t nodes, double a, std::string kernel,
                  std::string boundary, std::string quadrature, std::optional<double> scale) {
  const Basis basis = basis_of(a, kernel, boundary);
  const Rule rule = rule_of(quadrature);
  check_written(start, "start");
  check_written(weight, "weight");
  STD_TORCH_CHECK(start.scalar_type() == ScalarType::Int, "start must be int32, got ", name_of(start.scalar_type()));
  const bool wide = weight.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || weight.scalar_type() == ScalarType::Float, "weight must be float32 or float64, got ",
                  name_of(weight.scalar_type()));
  STD_TORCH_CHECK(nodes >= 1 && nodes <= INT32_MAX, "nodes must be in [1, 2^31), got ", nodes);
  STD_TORCH_CHECK(start.dim() == 1, "start must have shape [K], got ", to_string(shape_of(start)));
  const int64_t points = start.size(0), fewest = scale && (rule == Rule::kTrapezoid || rule == Rule::kSimpson) ? 2 : 1;
  STD_TORCH_CHECK(points >= fewest, "start must have at least ", fewest, " points, got ", points);
  STD_TORCH_CHECK(points <= INT32_MAX / 4, "start must have fewer than 2^29 points, got ", points);
  const int64_t count =
      rule == Rule::kCells ? most_parts(points, nodes, basis.knots_between_nodes) + basis.heard - 1 : basis.heard;
  const int64_t taps = rule == Rule::kCells ? tap_class(count) : 4;
  const Shape shape = shape_of(weight);
  STD_TORCH_CHECK(shape.size() == 2 && shape[0] == points && shape[1] == taps, "weight must have shape [", points, ", ",
                  taps, "] for such points, got ", to_string(shape));
  const std::vector<double> factor = scale ? multipliers(rule, points, *scale) : std::vector<double>();
  const double* factors = scale ? factor.data() : nullptr;
  if (wide)
    put_all<double>(start, weight, nodes, count, basis, rule, factors);
  else
    put_all<float>(start, weight, nodes, count, basis, rule, factors);
}

// The table of an axis (inn_kernels/gpu/axis_table.py), its parts behind each other, each from a multiple of 16 bytes on:
//
//     first [M + 1]   skew [K]   lo [M']   hi [M']   crowded [2]   coefficient float32 [NT, M']     M' = 64 ceil(M/64)
void axis_table(const Tensor& table, const Tensor& start, const Tensor& weight, int64_t nodes, int64_t contributors) {
  check_written(table, "table");
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Int, "table must be int32, got ", name_of(table.scalar_type()));
  const Taps taps = check_taps(start, weight, nodes, kFloat32, "start", "weight");
  STD_TORCH_CHECK(taps.points >= 1, "start must have at least 1 points, got 0");
  STD_TORCH_CHECK(contributors >= 1 && contributors <= INT16_MAX, "contributors must be in [1, 2^15), got ",
                  contributors);
  const int64_t points = taps.points, width = taps.per_point, padded = (nodes + 63) / 64 * 64;
  const auto aligned = [](int64_t n) { return (n + 3) / 4 * 4; };
  const int64_t sizes[6] = {nodes + 1, points, padded, padded, 2, contributors * padded};
  int64_t total = 0, at[6];
  for (int i = 0; i < 6; ++i) at[i] = total, total += aligned(sizes[i]);
  const Shape shape = shape_of(table);
  STD_TORCH_CHECK(shape.size() == 1 && shape[0] == total, "table must have shape [", total, "] for such taps, got ",
                  to_string(shape));
  auto* all = static_cast<int32_t*>(table.mutable_data_ptr());
  int32_t *first = all + at[0], *skew = all + at[1], *lo = all + at[2], *hi = all + at[3], *crowded = all + at[4];
  float* coefficient = reinterpret_cast<float*>(all + at[5]);
  const auto* weights = static_cast<const float*>(taps.weight);

  int64_t k = 0;
  for (int64_t i = 0; i <= nodes; ++i) {
    while (k < points && taps.start[k] < i) ++k;
    first[i] = int32_t(k);
  }
  std::fill(lo, lo + padded, int32_t(points));
  std::memset(hi, 0, size_t(padded) * sizeof(int32_t));
  for (k = 0; k < points; ++k) {
    skew[k] = int32_t(width * k - taps.start[k]);
    for (int64_t t = 0; t < width; ++t) {
      const int64_t node = taps.start[k] + t;
      if (weights[k * width + t] == 0 || node >= padded) continue;  // windows are filled up by weights of 0
      lo[node] = std::min(lo[node], int32_t(k));
      hi[node] = int32_t(k + 1);
    }
  }
  const auto last = int32_t(std::max<int64_t>(points - contributors, 0));
  int64_t low = nodes, high = 0;
  for (int64_t j = 0; j < padded; ++j) {
    lo[j] = std::min(lo[j], last);
    if (hi[j] > lo[j] + contributors) low = std::min(low, j), high = j + 1;
  }
  crowded[0] = int32_t(low), crowded[1] = int32_t(high);
  std::memset(coefficient, 0, size_t(contributors * padded) * sizeof(float));
  for (k = 0; k < points; ++k) {
    for (int64_t t = 0; t < width; ++t) {
      const int64_t node = taps.start[k] + t;
      if (node >= nodes) break;
      const int64_t n = k - lo[node];
      if (n >= 0 && n < contributors) coefficient[n * padded + node] = weights[k * width + t];
    }
  }
  for (int i = 0; i < 5; ++i) std::fill(all + at[i] + sizes[i], all + at[i] + aligned(sizes[i]), 0);
}

}  // namespace inn
