// Gradients of tap weights, for trainable partitions.
//
//     d_out_weight[k, t] = sum_{m, tau} (grad S_in)[k, m, tau] nodes[out_start[k] + t, m, tau]
//     d_in_weight[l, t]  = sum_{k, tau} grad[k, l, tau] (S_out nodes)[k, in_start[l] + t, tau]
//     d_weight[k, t]     = sum_{o, j} grad[o, k, j] x[o, start[k] + t, j]            (interpolate)
//
// The first is a dot product of a spread row with four rows of nodes. The second goes down the rows, elementwise,
// and sums over tau last. The third is either, by the length of its runs. A sum over rows is cut into chunks
// whose number depends on the shape alone, and the chunks are added in order: the same bits on any number of threads.
#include "operations.h"

#include "banded_product.h"

namespace inn {
namespace {

// How many rows go into one partial sum: at least 64, at most 32 partial sums.
int64_t rows_of_chunk(int64_t rows) { return std::max<int64_t>(64, (rows + 31) / 32); }

// out [outputs, 4] = the sum of partial [chunks, outputs, 4] over chunks, in order.
template <typename Accumulator>
void add_chunks(const std::vector<Accumulator>& partial, int64_t chunks, int64_t outputs, Accumulator* out) {
  std::fill(out, out + outputs * 4, Accumulator(0));
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < outputs * 4; ++i) out[i] += partial[chunk * outputs * 4 + i];
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
                        Accumulator* out) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  const int64_t rows = grad.rows, points = grad.columns, inner = x.inner, width = kernels.width;
  if (rows * inner == 0) {
    std::fill(out, out + points * 4, Accumulator(0));
    return;
  }
  const int64_t chunk = rows_of_chunk(rows), chunks = (rows + chunk - 1) / chunk;
  const std::vector<Accumulator> unused(points * 4, Accumulator(0));  // the table needs where taps are, not weights
  const Band<Accumulator> band = band_of_points(start, unused.data(), points, x.columns, {0, points});
  const ColumnTable<Accumulator> table(band, inner, kernels);
  const std::vector<Tile> tiles = make_tiles(band, std::max<int64_t>(kTileElements / inner, 1));
  int64_t widest_in = 0, widest_out = 0;
  for (const Tile& tile : tiles) {
    widest_in = std::max(widest_in, tile.in_end - tile.in_begin);
    widest_out = std::max(widest_out, tile.out_end - tile.out_begin);
  }
  std::vector<Accumulator> partial(chunks * points * 4);
  const auto row_pass = kernels.runs[x.storage][kBuffer<Accumulator>];
  const auto accumulate = kernels.accumulate_taps[grad.storage];
  const BandView<Accumulator> row_view = row_band ? row_band->view() : UnitBand<Accumulator>::view();
  const int64_t x_stride = x.columns * inner, x_bytes = bytes_of(x.storage), grad_bytes = bytes_of(grad.storage);
  const int64_t tile_count = int64_t(tiles.size());
  const int64_t cost = chunk * (x.columns + points) * inner * 2 / std::max<int64_t>(tile_count, 1);

  parallel_tasks(chunks * tile_count, cost, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> buffer(widest_in * inner + kSourcePadding);     // [in_end - in_begin, inner]
    const Buffer<Accumulator> sums((widest_out * inner + width) * 4);         // [blocks, 4, width]
    for (int64_t task = begin; task < end; ++task) {
      const Tile& tile = tiles[task % tile_count];
      const int64_t first_row = task / tile_count * chunk, last_row = std::min(first_row + chunk, rows);
      const int64_t first_block = tile.out_begin * inner / width;
      const int64_t last_block = (tile.out_end * inner + width - 1) / width;
      std::fill(sums.get(), sums.get() + (last_block - first_block) * 4 * width, Accumulator(0));
      const char* source = static_cast<const char*>(x.data) + tile.in_begin * inner * x_bytes;
      for (int64_t row = first_row; row < last_row; ++row) {
        const char* from = row_band ? source : source + row * x_stride * x_bytes;
        const int64_t which = row_band ? row : 0;
        row_pass(row_view, which, which + 1, from, x_stride, 0, (tile.in_end - tile.in_begin) * inner, buffer.get(), 0);
        const char* grad_row =
            static_cast<const char*>(grad.data) + (row * points + tile.out_begin) * inner * grad_bytes;
        accumulate(table.view(), first_block, last_block, buffer.get(), tile.in_begin * inner, grad_row, sums.get());
      }
      Accumulator* target = partial.data() + (task / tile_count * points + tile.out_begin) * 4;
      for (int64_t l = 0; l < tile.out_end - tile.out_begin; ++l)
        for (int64_t t = 0; t < 4; ++t) {
          Accumulator sum = 0;
          for (int64_t element = l * inner; element < (l + 1) * inner; ++element)
            sum += sums.get()[(element / width * 4 + t) * width + element % width];
          target[l * 4 + t] = sum;
        }
    }
  });
  add_chunks(partial, chunks, points, out);
}

// out[k, t] = sum_{m, tau} (grad S_in)[k, m, tau] nodes[start[k] + t, m, tau].
template <typename Accumulator>
void gradient_across_rows(const Matrix& nodes, const Matrix& grad, const int32_t* start,
                          const Band<Accumulator>& in_band, Accumulator* out) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  const int64_t inner = nodes.inner, row_elements = nodes.columns * inner, grad_elements = grad.columns * inner;
  const bool along_runs = inner >= kRunLength;
  const ColumnTable<Accumulator> table(along_runs ? Band<Accumulator>() : in_band, inner, kernels);
  const auto convert = kernels.runs[grad.storage][kBuffer<Accumulator>];
  const auto run_pass = kernels.short_runs[kBuffer<Accumulator>];
  const auto column_pass = kernels.columns[kBuffer<Accumulator>];
  const int64_t blocks = (table.elements + kernels.width - 1) / kernels.width;
  const int taps = int(std::min<int64_t>(4, nodes.rows));

  parallel_tasks(grad.rows, grad_elements + 4 * row_elements, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> grad_row(grad_elements + kSourcePadding);  // [L, inner]
    const Buffer<Accumulator> spread_row(row_elements);                  // [M_in, inner]
    for (int64_t k = begin; k < end; ++k) {
      const char* source = static_cast<const char*>(grad.data) + k * grad_elements * bytes_of(grad.storage);
      convert(UnitBand<Accumulator>::view(), 0, 1, source, 0, 0, grad_elements, grad_row.get(), 0);
      if (along_runs)
        run_pass(in_band.view(), 0, nodes.columns, 1, inner, grad_row.get(), 0, 0, spread_row.get(), 0);
      else
        column_pass(table.view(), 0, blocks, 1, grad_row.get(), 0, 0, spread_row.get(), 0);
      Accumulator lanes[4 * kDotLanes] = {};
      const char* rows = static_cast<const char*>(nodes.data) + start[k] * row_elements * bytes_of(nodes.storage);
      kernels.dot_taps[nodes.storage](spread_row.get(), rows, row_elements, taps, row_elements, lanes);
      for (int t = 0; t < 4; ++t) out[k * 4 + t] = add_lanes(lanes + t * kDotLanes);
    }
  });
}

// out[k, t] = sum_{o, j} grad[o, k, j] x[o, start[k] + t, j], by dot products of runs of `inner` elements.
template <typename Accumulator>
void gradient_by_runs(const Matrix& x, const Matrix& grad, const int32_t* start, Accumulator* out) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  constexpr int64_t kPoints = 64;  // points of a task: their partial sums fit the nearest cache
  const int64_t points = grad.columns, nodes = x.columns, inner = x.inner;
  const int64_t chunk = rows_of_chunk(grad.rows), chunks = (grad.rows + chunk - 1) / chunk;
  const int64_t groups = (points + kPoints - 1) / kPoints;
  const auto convert = kernels.runs[grad.storage][kBuffer<Accumulator>];
  const auto dot = kernels.dot_taps[x.storage];
  const int taps = int(std::min<int64_t>(4, nodes));
  std::vector<Accumulator> partial(chunks * points * 4);

  parallel_tasks(chunks * groups, std::min(chunk, grad.rows) * kPoints * inner * 2, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> run(inner);                     // one run of grad
    const Buffer<Accumulator> lanes(kPoints * 4 * kDotLanes);  // [point, tap, lane]
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % groups * kPoints, last = std::min(first + kPoints, points);
      const int64_t first_row = task / groups * chunk, last_row = std::min(first_row + chunk, grad.rows);
      std::fill(lanes.get(), lanes.get() + kPoints * 4 * kDotLanes, Accumulator(0));
      for (int64_t o = first_row; o < last_row; ++o)
        for (int64_t k = first; k < last; ++k) {
          const char* source =
              static_cast<const char*>(grad.data) + (o * points + k) * inner * bytes_of(grad.storage);
          const char* rows = static_cast<const char*>(x.data) + (o * nodes + start[k]) * inner * bytes_of(x.storage);
          convert(UnitBand<Accumulator>::view(), 0, 1, source, 0, 0, inner, run.get(), 0);
          dot(run.get(), rows, inner, taps, inner, lanes.get() + (k - first) * 4 * kDotLanes);
        }
      Accumulator* target = partial.data() + (task / groups * points + first) * 4;
      for (int64_t i = 0; i < (last - first) * 4; ++i) target[i] = add_lanes(lanes.get() + i * kDotLanes);
    }
  });
  add_chunks(partial, chunks, points, out);
}

template <typename Accumulator>
void discretize_gradients(const Matrix& nodes, const Matrix& grad, const Taps& out_taps, const Taps& in_taps,
                          Tensor* d_out, Tensor* d_in) {
  if (d_out && out_taps.points > 0)
    gradient_across_rows(
        nodes, grad, out_taps.start,
        band_of_nodes(in_taps.start, in_taps.weight_as<Accumulator>(), in_taps.points, nodes.columns,
                      {0, nodes.columns}),
        static_cast<Accumulator*>(d_out->mutable_data_ptr()));
  if (d_in && in_taps.points > 0) {
    const Band<Accumulator> row_band =
        band_of_points(out_taps.start, out_taps.weight_as<Accumulator>(), out_taps.points, nodes.rows,
                       {0, out_taps.points});
    gradient_down_rows(&row_band, nodes, grad, in_taps.start, static_cast<Accumulator*>(d_in->mutable_data_ptr()));
  }
}

template <typename Accumulator>
void interpolate_gradient(const Matrix& x, const Matrix& grad, const int32_t* start, Tensor* out) {
  Accumulator* target = static_cast<Accumulator*>(out->mutable_data_ptr());
  if (x.inner < kDotRun)
    gradient_down_rows<Accumulator>(nullptr, x, grad, start, target);
  else
    gradient_by_runs(x, grad, start, target);
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
  Tensor d_out = allocate({need_out ? out_taps.points : 0, 4}, storage);
  Tensor d_in = allocate({need_in ? in_taps.points : 0, 4}, storage);
  const auto run = storage == kFloat64 ? discretize_gradients<double> : discretize_gradients<float>;
  run(from, with, out_taps, in_taps, need_out ? &d_out : nullptr, need_in ? &d_in : nullptr);
  return {d_out, d_in};
}

Tensor interpolate_tap_gradient(const Tensor& x, const Tensor& grad, const Tensor& start, int64_t dim) {
  const Matrix from = check_along(x, dim, "x");
  const Matrix with = check_along(grad, dim, "grad");
  check_same_precision(from.storage, "x", with.storage, "grad");
  const Taps taps = check_start(start, from.columns, "start");
  Shape wanted = shape_of(x);
  wanted[dim < 0 ? dim + int64_t(wanted.size()) : dim] = taps.points;
  STD_TORCH_CHECK(shape_of(grad) == wanted, "grad must have shape ", to_string(wanted), " as x and start say, got ",
                  to_string(shape_of(grad)));
  const Storage storage = from.storage == kFloat64 ? kFloat64 : kFloat32;
  Tensor out = allocate({taps.points, 4}, storage);
  if (taps.points == 0) return out;
  const auto run = storage == kFloat64 ? interpolate_gradient<double> : interpolate_gradient<float>;
  run(from, with, taps.start, &out);
  return out;
}

}  // namespace inn
