// Gradients of tap weights, for trainable partitions.
//
//     d_out_weight[k, t] = sum_{m, tau} (grad S_in)[k, m, tau] nodes[out_start[k] + t, m, tau]
//     d_in_weight[l, t]  = sum_{k, tau} grad[k, l, tau] (S_out nodes)[k, in_start[l] + t, tau]
//     d_weight[k, t]     = sum_{o, j} grad[o, k, j] x[o, start[k] + t, j]            (interpolate)
//
// The first is a dot product of a spread row with the rows of nodes in a window. The second goes down the rows,
// elementwise, and sums over tau last. The third is either, by the length of its runs. A sum over rows is cut into
// chunks whose number depends on the shape alone, and they are added as a tree: the same bits on any number of threads.
//
// `taps` below are those a point has that are nodes, min(T, M); the others have no gradient.
#include "operations.h"

#include "banded_product.h"

namespace inn {
namespace {

// How many rows go into one partial sum: at least 64, at most 32 partial sums.
int64_t rows_of_chunk(int64_t rows) { return std::max<int64_t>(64, (rows + 31) / 32); }

// A result [points, T], zero; what is computed are the first `taps` of each row.
template <typename Accumulator>
struct TapSums {
  Accumulator* out;
  int64_t points, per_point, taps;

  TapSums(Tensor& tensor, int64_t nodes)
      : out(static_cast<Accumulator*>(tensor.mutable_data_ptr())),
        points(tensor.size(0)),
        per_point(tensor.size(1)),
        taps(std::min(per_point, nodes)) {
    std::fill(out, out + points * per_point, Accumulator(0));
  }
  Accumulator* row(int64_t k) const { return out + k * per_point; }
};

// result = the sum of partial [chunks, points, taps] over chunks, as a tree.
template <typename Accumulator>
void add_chunks(std::vector<Accumulator>& partial, int64_t chunks, const TapSums<Accumulator>& result) {
  const int64_t size = result.points * result.taps;
  for (int64_t step = 1; step < chunks; step *= 2)
    for (int64_t chunk = 0; chunk + step < chunks; chunk += 2 * step)
      for (int64_t i = 0; i < size; ++i) partial[chunk * size + i] += partial[(chunk + step) * size + i];
  for (int64_t k = 0; k < result.points; ++k)
    std::copy_n(partial.begin() + k * result.taps, result.taps, result.row(k));
}

// The sum of value(i) for i in [begin, end), as a tree.
template <typename Accumulator, typename Value>
Accumulator add_tree(int64_t begin, int64_t end, const Value& value) {
  if (end - begin == 1) return value(begin);
  const int64_t middle = begin + (end - begin) / 2;
  return add_tree<Accumulator>(begin, middle, value) + add_tree<Accumulator>(middle, end, value);
}

// The sum of kDotLanes partial sums, as a tree.
template <typename Accumulator>
Accumulator add_lanes(Accumulator* lanes) {
  for (int half = kDotLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// out[l, t] = sum_{row, tau} grad[row, l, tau] (A x)[row, start[l] + t, tau]; without a row band, A is the identity.
template <typename Accumulator>
void gradient_down_rows(const Band<Accumulator>* row_band, const Matrix& x, const Matrix& grad, const int32_t* start,
                        const TapSums<Accumulator>& result) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  const int64_t rows = grad.rows, points = grad.columns, inner = x.inner, width = kernels.width, taps = result.taps;
  if (rows * inner == 0) return;
  const int64_t chunk = rows_of_chunk(rows), chunks = (rows + chunk - 1) / chunk;
  Band<Accumulator> band = band_of_windows<Accumulator>({start, nullptr, points, taps}, x.columns, {0, points});
  band.weight.resize(points * taps);  // the table needs where taps are, not weights
  const ColumnTable<Accumulator> table(band, inner, kernels);
  const std::vector<Tile> tiles = make_tiles(band, std::max<int64_t>(kTileElements / inner, 1));
  int64_t widest_in = 0, widest_out = 0;
  for (const Tile& tile : tiles) {
    widest_in = std::max(widest_in, tile.in_end - tile.in_begin);
    widest_out = std::max(widest_out, tile.out_end - tile.out_begin);
  }
  std::vector<Accumulator> partial(chunks * points * taps);
  const auto row_pass = kernels.runs[x.storage][kBuffer<Accumulator>];
  const auto accumulate = kernels.accumulate_taps[grad.storage];
  const BandView<Accumulator> row_view = row_band ? row_band->view() : UnitBand<Accumulator>::view();
  const int64_t x_stride = x.columns * inner, x_bytes = bytes_of(x.storage), grad_bytes = bytes_of(grad.storage);
  const int64_t tile_count = int64_t(tiles.size());
  const int64_t cost = chunk * (x.columns + points) * inner * 2 / std::max<int64_t>(tile_count, 1);

  parallel_tasks(chunks * tile_count, cost, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> buffer(widest_in * inner + kSourcePadding);     // [in_end - in_begin, inner]
    const Buffer<Accumulator> sums((widest_out * inner + width) * taps);      // [blocks, taps, width]
    for (int64_t task = begin; task < end; ++task) {
      const Tile& tile = tiles[task % tile_count];
      const int64_t first_row = task / tile_count * chunk, last_row = std::min(first_row + chunk, rows);
      const int64_t first_block = tile.out_begin * inner / width;
      const int64_t last_block = (tile.out_end * inner + width - 1) / width;
      std::fill(sums.get(), sums.get() + (last_block - first_block) * taps * width, Accumulator(0));
      const char* source = static_cast<const char*>(x.data) + tile.in_begin * inner * x_bytes;
      for (int64_t row = first_row; row < last_row; ++row) {
        const char* from = row_band ? source : source + row * x_stride * x_bytes;
        const int64_t which = row_band ? row : 0;
        row_pass(row_view, which, which + 1, from, x_stride, 0, (tile.in_end - tile.in_begin) * inner, buffer.get(), 0);
        const char* grad_row =
            static_cast<const char*>(grad.data) + (row * points + tile.out_begin) * inner * grad_bytes;
        accumulate(table.view(), first_block, last_block, taps, buffer.get(), tile.in_begin * inner, grad_row,
                   sums.get());
      }
      Accumulator* target = partial.data() + (task / tile_count * points + tile.out_begin) * taps;
      for (int64_t l = 0; l < tile.out_end - tile.out_begin; ++l)
        for (int64_t t = 0; t < taps; ++t)
          target[l * taps + t] = add_tree<Accumulator>(l * inner, (l + 1) * inner, [&](int64_t element) {
            return sums.get()[(element / width * taps + t) * width + element % width];
          });
    }
  });
  add_chunks(partial, chunks, result);
}

// out[k, t] = sum_{m, tau} (grad S_in)[k, m, tau] nodes[start[k] + t, m, tau].
template <typename Accumulator>
void gradient_across_rows(const Matrix& nodes, const Matrix& grad, const int32_t* start,
                          const Band<Accumulator>& in_band, const TapSums<Accumulator>& result) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  const int64_t inner = nodes.inner, row_elements = nodes.columns * inner, grad_elements = grad.columns * inner;
  const bool along_runs = inner >= kRunLength;
  const ColumnTable<Accumulator> table(along_runs ? Band<Accumulator>() : in_band, inner, kernels);
  const auto convert = kernels.runs[grad.storage][kBuffer<Accumulator>];
  const auto run_pass = kernels.short_runs[kBuffer<Accumulator>];
  const auto column_pass = kernels.columns[kBuffer<Accumulator>];
  const int64_t blocks = (table.elements + kernels.width - 1) / kernels.width;
  const auto dot = kernels.dot_taps[nodes.storage];
  const int64_t taps = result.taps;

  parallel_tasks(grad.rows, grad_elements + taps * row_elements, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> grad_row(grad_elements + kSourcePadding);  // [L, inner]
    const Buffer<Accumulator> spread_row(row_elements);                  // [M_in, inner]
    const Buffer<Accumulator> lanes(taps * kDotLanes);                   // [tap, lane]
    for (int64_t k = begin; k < end; ++k) {
      const char* source = static_cast<const char*>(grad.data) + k * grad_elements * bytes_of(grad.storage);
      convert(UnitBand<Accumulator>::view(), 0, 1, source, 0, 0, grad_elements, grad_row.get(), 0);
      if (along_runs)
        run_pass(in_band.view(), 0, nodes.columns, 1, inner, grad_row.get(), 0, 0, spread_row.get(), 0);
      else
        column_pass(table.view(), 0, blocks, 1, grad_row.get(), 0, 0, spread_row.get(), 0);
      std::fill(lanes.get(), lanes.get() + taps * kDotLanes, Accumulator(0));
      const char* rows = static_cast<const char*>(nodes.data) + start[k] * row_elements * bytes_of(nodes.storage);
      dot(spread_row.get(), rows, row_elements, taps, row_elements, lanes.get());
      for (int64_t t = 0; t < taps; ++t) result.row(k)[t] = add_lanes(lanes.get() + t * kDotLanes);
    }
  });
}

// out[k, t] = sum_{o, j} grad[o, k, j] x[o, start[k] + t, j], by dot products of runs of `inner` elements.
template <typename Accumulator>
void gradient_by_runs(const Matrix& x, const Matrix& grad, const int32_t* start,
                      const TapSums<Accumulator>& result) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  constexpr int64_t kPoints = 64;  // points of a task: their partial sums fit the nearest cache, or the second
  const int64_t points = grad.columns, nodes = x.columns, inner = x.inner;
  if (grad.rows == 0) return;
  const int64_t chunk = rows_of_chunk(grad.rows), chunks = (grad.rows + chunk - 1) / chunk;
  const int64_t groups = (points + kPoints - 1) / kPoints;
  const auto convert = kernels.runs[grad.storage][kBuffer<Accumulator>];
  const auto dot = kernels.dot_taps[x.storage];
  const int64_t taps = result.taps;
  std::vector<Accumulator> partial(chunks * points * taps);

  parallel_tasks(chunks * groups, std::min(chunk, grad.rows) * kPoints * inner * 2, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> run(inner);                         // one run of grad
    const Buffer<Accumulator> lanes(kPoints * taps * kDotLanes);  // [point, tap, lane]
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups * kPoints, last = std::min(first + kPoints, points);
      const int64_t first_row = task / groups * chunk, last_row = std::min(first_row + chunk, grad.rows);
      std::fill(lanes.get(), lanes.get() + kPoints * taps * kDotLanes, Accumulator(0));
      for (int64_t o = first_row; o < last_row; ++o)
        for (int64_t k = first; k < last; ++k) {
          const char* source =
              static_cast<const char*>(grad.data) + (o * points + k) * inner * bytes_of(grad.storage);
          const char* rows = static_cast<const char*>(x.data) + (o * nodes + start[k]) * inner * bytes_of(x.storage);
          convert(UnitBand<Accumulator>::view(), 0, 1, source, 0, 0, inner, run.get(), 0);
          dot(run.get(), rows, inner, taps, inner, lanes.get() + (k - first) * taps * kDotLanes);
        }
      Accumulator* target = partial.data() + (task / groups * points + first) * taps;
      for (int64_t i = 0; i < (last - first) * taps; ++i) target[i] = add_lanes(lanes.get() + i * kDotLanes);
    }
  });
  add_chunks(partial, chunks, result);
}

template <typename Accumulator>
void discretize_gradients(const Matrix& nodes, const Matrix& grad, const Taps& out_taps, const Taps& in_taps,
                          Tensor* d_out, Tensor* d_in) {
  if (d_out && out_taps.points > 0)
    gradient_across_rows(nodes, grad, out_taps.start,
                         band_of_nodes(in_taps.view<Accumulator>(), nodes.columns, {0, nodes.columns}),
                         TapSums<Accumulator>(*d_out, nodes.rows));
  if (d_in && in_taps.points > 0) {
    const Band<Accumulator> row_band =
        band_of_points(out_taps.view<Accumulator>(), nodes.rows, {0, out_taps.points});
    gradient_down_rows(&row_band, nodes, grad, in_taps.start, TapSums<Accumulator>(*d_in, nodes.columns));
  }
}

template <typename Accumulator>
void interpolate_gradient(const Matrix& x, const Matrix& grad, const int32_t* start, Tensor* out) {
  const TapSums<Accumulator> result(*out, x.columns);
  if (x.inner < kDotRun)
    gradient_down_rows<Accumulator>(nullptr, x, grad, start, result);
  else
    gradient_by_runs(x, grad, start, result);
}

}  // namespace

std::tuple<Tensor, Tensor> discretize_tap_gradient(const Tensor& nodes, const Tensor& grad, const Tensor& out_start,
                                                   const Tensor& out_weight, const Tensor& in_start,
                                                   const Tensor& in_weight, bool need_out, bool need_in) {
  // Contiguous copies of other layouts: the order of these sums is that of the elements.
  const Matrix from = check_matrix(nodes, "nodes", /*keep_channels_last=*/false);
  const Matrix with = check_matrix(grad, "grad", /*keep_channels_last=*/false);
  check_same_precision(from.storage, "nodes", with.storage, "grad");
  const Taps out_taps = check_taps(out_start, out_weight, from.rows, from.storage, "out_start", "out_weight");
  const Taps in_taps = check_taps(in_start, in_weight, from.columns, from.storage, "in_start", "in_weight");
  Shape wanted = shape_of(nodes);
  wanted[0] = out_taps.points;
  wanted[1] = in_taps.points;
  STD_TORCH_CHECK(shape_of(grad) == wanted, "grad must have shape ", to_string(wanted), " as nodes and taps say, got ",
                  to_string(shape_of(grad)));
  const Storage storage = from.storage == kFloat64 ? kFloat64 : kFloat32;
  Tensor d_out = allocate({need_out ? out_taps.points : 0, out_taps.per_point}, storage);
  Tensor d_in = allocate({need_in ? in_taps.points : 0, in_taps.per_point}, storage);
  const auto run = storage == kFloat64 ? discretize_gradients<double> : discretize_gradients<float>;
  run(from, with, out_taps, in_taps, need_out ? &d_out : nullptr, need_in ? &d_in : nullptr);
  return {d_out, d_in};
}

Tensor interpolate_tap_gradient(const Tensor& x, const Tensor& grad, const Tensor& start, int64_t taps, int64_t dim) {
  const Matrix from = check_along(x, dim, "x");
  const Matrix with = check_along(grad, dim, "grad");
  check_same_precision(from.storage, "x", with.storage, "grad");
  const Taps windows = check_start(start, taps, from.columns, "start");
  Shape wanted = shape_of(x);
  wanted[dim < 0 ? dim + int64_t(wanted.size()) : dim] = windows.points;
  STD_TORCH_CHECK(shape_of(grad) == wanted, "grad must have shape ", to_string(wanted), " as x and start say, got ",
                  to_string(shape_of(grad)));
  const Storage storage = from.storage == kFloat64 ? kFloat64 : kFloat32;
  Tensor out = allocate({windows.points, taps}, storage);
  if (windows.points == 0) return out;
  const auto run = storage == kFloat64 ? interpolate_gradient<double> : interpolate_gradient<float>;
  run(from, with, windows.start, &out);
  return out;
}

}  // namespace inn
