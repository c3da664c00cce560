// Banded matrices from taps, and how a row of outputs is cut into tiles.
//
// Taps (start [K], weight [K, T]) are the rows of S [K, M]: point k = sum_t weight[k, t] * node[start[k] + t].
// Because start does not decrease, the transpose is banded as well: the points that touch node i are
// consecutive. Discretizing and its adjoint are then one product with two kinds of band.
//
// Points have four taps. Cells have more, padded with zeros, and what is zero at the ends of a row costs nothing:
// a band leaves it out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd/kernels.h"

namespace inn {

// S: its rows as taps, `per_point` a point. Those beyond the last node are not read.
template <typename Accumulator>
struct TapView {
  const int32_t* start;       // [points], never decreases
  const Accumulator* weight;  // [points, per_point]
  int64_t points, per_point;
};

// The outputs [begin, begin + outputs) of a dimension of `total`.
template <typename Accumulator>
struct Band {
  int64_t begin = 0, total = 0;
  std::vector<int32_t> first;        // [outputs]; without inputs, where they would be
  std::vector<int32_t> count;        // [outputs]
  std::vector<int64_t> offset;       // [outputs]
  std::vector<Accumulator> weight;   // [sum of count], with gaps allowed

  int64_t outputs() const { return int64_t(first.size()); }
  BandView<Accumulator> view() const { return {first.data(), count.data(), offset.data(), weight.data()}; }

  // Leaves out the zeros at both ends of an output's inputs.
  void trim(int64_t o) {
    const Accumulator* own = weight.data() + offset[o];
    int32_t skip = 0;
    while (count[o] > 0 && own[count[o] - 1] == 0) --count[o];
    while (skip < count[o] && own[skip] == 0) ++skip;
    first[o] += skip, count[o] -= skip, offset[o] += skip;
  }
};

constexpr int64_t kTapsOfPoint = 4;  // rows of more are cells': padded, and worth trimming

// Outputs [begin, end) of a dimension.
struct Range {
  int64_t begin, end;
};

// The windows of S: which nodes each point sees, with weights yet to be given.
template <typename Accumulator>
Band<Accumulator> band_of_windows(const TapView<Accumulator>& taps, int64_t nodes, Range piece) {
  const int64_t size = piece.end - piece.begin;
  Band<Accumulator> band;
  band.begin = piece.begin;
  band.total = taps.points;
  band.first.assign(taps.start + piece.begin, taps.start + piece.end);
  band.count.assign(size, int32_t(std::min(taps.per_point, nodes)));
  band.offset.resize(size);
  for (int64_t k = 0; k < size; ++k) band.offset[k] = taps.per_point * k;
  return band;
}

// S itself: outputs are points, inputs are nodes.
template <typename Accumulator>
Band<Accumulator> band_of_points(const TapView<Accumulator>& taps, int64_t nodes, Range piece) {
  Band<Accumulator> band = band_of_windows(taps, nodes, piece);
  band.weight.assign(taps.weight + taps.per_point * piece.begin, taps.weight + taps.per_point * piece.end);
  if (taps.per_point > kTapsOfPoint)
    for (int64_t k = 0; k < band.outputs(); ++k) band.trim(k);
  return band;
}

// The transpose of S: outputs are nodes, inputs are points.
template <typename Accumulator>
Band<Accumulator> band_of_nodes(const TapView<Accumulator>& taps, int64_t nodes, Range piece) {
  const auto [start, weight, points, per_point] = taps;
  const int64_t size = piece.end - piece.begin, before = per_point - 1;
  Band<Accumulator> band;
  band.begin = piece.begin;
  band.total = nodes;
  band.first.resize(size);
  band.count.resize(size);
  band.offset.resize(size);
  int64_t begin = std::lower_bound(start, start + points, piece.begin - before) - start, end = begin;
  const int64_t seen = std::lower_bound(start + begin, start + points, piece.end) - (start + begin);
  band.weight.reserve(std::min(per_point, nodes) * seen);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t node = piece.begin + i;  // points [begin, end): node - before <= start <= node
    while (begin < points && start[begin] < node - before) ++begin;
    end = std::max(begin, end);
    while (end < points && start[end] <= node) ++end;
    band.first[i] = int32_t(begin);
    band.count[i] = int32_t(end - begin);
    band.offset[i] = int64_t(band.weight.size());
    for (int64_t k = begin; k < end; ++k) band.weight.push_back(weight[per_point * k + (node - start[k])]);
    if (per_point > kTapsOfPoint) band.trim(i);
  }
  return band;
}

// Whether S is the identity: as many points as nodes, each on its own and unweighted. So it is with all axes of a
// converted network at full size.
template <typename Accumulator>
bool is_identity(const TapView<Accumulator>& taps, int64_t nodes) {
  if (taps.points != nodes) return false;
  const int64_t count = std::min(taps.per_point, nodes);
  for (int64_t k = 0; k < nodes; ++k) {
    const int64_t own = k - taps.start[k];
    if (own < 0 || own >= count) return false;
    const Accumulator* weight = taps.weight + taps.per_point * k;
    for (int64_t t = 0; t < count; ++t)
      if (weight[t] != Accumulator(t == own)) return false;
  }
  return true;
}

// Its band, one tap an output.
template <typename Accumulator>
Band<Accumulator> identity_band(int64_t size) {
  Band<Accumulator> band;
  band.total = size;
  band.first.resize(size);
  band.offset.resize(size);
  for (int64_t k = 0; k < size; ++k) band.first[k] = int32_t(k), band.offset[k] = k;
  band.count.assign(size, 1);
  band.weight.assign(size, Accumulator(1));
  return band;
}

// First taps lie within `reach` elements, the others of `taps` at strides beyond.
template <typename Accumulator>
Access choose_access(int64_t reach, int64_t taps, int64_t stride, const Kernels<Accumulator>& kernels) {
  const int64_t extent = reach + std::max<int64_t>(taps - 1, 0) * stride, width = kernels.width;
  if (kernels.max_registers >= 2) {
    if (extent <= width) return Access::kFixed1;
    if (extent <= 2 * width) return Access::kFixed2;
    if (reach <= width) return Access::kMoving1;
    if (reach <= 2 * width) return Access::kMoving2;
  }
  if (kernels.max_registers >= 4 && reach <= 4 * width) return Access::kMoving4;
  return Access::kGather;
}

template <typename Accumulator>
struct ColumnTable {
  int64_t elements = 0, stride = 1;
  std::vector<ColumnBlock> block;    // [blocks]
  std::vector<int32_t> index, count; // [blocks, width]
  std::vector<Accumulator> weight;   // per block [max(4, max_taps), width]

  ColumnTable(const Band<Accumulator>& band, int64_t stride, const Kernels<Accumulator>& kernels);
  ColumnView<Accumulator> view() const {
    return {elements, stride, block.data(), index.data(), count.data(), weight.data()};
  }
};

template <typename Accumulator>
ColumnTable<Accumulator>::ColumnTable(const Band<Accumulator>& band, int64_t stride,
                                      const Kernels<Accumulator>& kernels)
    : elements(band.outputs() * stride), stride(stride) {
  const int width = kernels.width;
  const int64_t blocks = (elements + width - 1) / width;
  block.resize(blocks);
  index.assign(blocks * width, 0);
  count.assign(blocks * width, 0);
  weight.reserve(blocks * width * 4);
  std::vector<int64_t> output(width), from(width);  // of each lane: its output and the element its first tap reads
  int64_t o = 0, tau = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const int lanes = int(std::min<int64_t>(width, elements - b * width));
    ColumnBlock& here = block[b];
    int64_t low = INT64_MAX, high = -1;
    int32_t* lane_count = &count[b * width];
    for (int lane = 0; lane < lanes; ++lane) {
      output[lane] = o;
      from[lane] = band.first[o] * stride + tau;
      lane_count[lane] = band.count[o];
      if (lane_count[lane] > 0) {
        low = std::min(low, from[lane]);
        high = std::max(high, from[lane]);
      }
      if (++tau == stride) tau = 0, ++o;
    }
    here.base = high < 0 ? band.first[output[0]] * stride : low;
    here.min_taps = *std::min_element(lane_count, lane_count + width);  // 0 in a partial block: the rest is masked
    here.max_taps = *std::max_element(lane_count, lane_count + width);
    here.taps = here.max_taps > 6                          ? TapCount::kAny
                : here.max_taps == 6                       ? TapCount::kUpToSix
                : here.max_taps == 5                       ? TapCount::kUpToFive
                : here.min_taps == 4                       ? TapCount::kFour
                : here.min_taps == 3 && here.max_taps == 3 ? TapCount::kThree
                                                           : TapCount::kUpToFour;
    here.access = choose_access(high < 0 ? 1 : high - low + 1, here.max_taps, stride, kernels);
    here.weight = int64_t(weight.size());
    weight.resize(weight.size() + std::max<size_t>(here.max_taps, 4) * width, Accumulator(0));
    Accumulator* block_weight = weight.data() + here.weight;
    for (int lane = 0; lane < lanes; ++lane) {
      if (lane_count[lane] == 0) continue;
      index[b * width + lane] = int32_t(from[lane] - here.base);
      const Accumulator* coefficient = band.weight.data() + band.offset[output[lane]];
      for (int32_t t = 0; t < lane_count[lane]; ++t) block_weight[int64_t(t) * width + lane] = coefficient[t];
    }
  }
}

// A piece of a row: outputs [out_begin, out_end) and the inputs they read, [in_begin, in_end). The place of every
// output, with inputs or without, is in it: so a block's base is, and windows end in the padding of the row buffer.
struct Tile {
  int64_t out_begin, out_end, in_begin, in_end;
};

constexpr int64_t kTileOutputs = 16;  // tiles hold a multiple of it: whole vectors, at any stride and width

// Tiles of about `target` inputs and outputs together, so that a handful of rows of one stay in the nearest cache.
template <typename Accumulator>
std::vector<Tile> make_tiles(const Band<Accumulator>& band, int64_t target) {
  std::vector<Tile> tiles;
  const int64_t outputs = band.outputs();
  for (int64_t begin = 0; begin < outputs;) {
    Tile tile = {begin, begin, INT64_MAX, 0};
    while (tile.out_end < outputs) {
      const int64_t end = std::min(tile.out_end + kTileOutputs, outputs);
      int64_t in_begin = tile.in_begin, in_end = tile.in_end;
      for (int64_t o = tile.out_end; o < end; ++o) {
        in_begin = std::min<int64_t>(in_begin, band.first[o]);
        in_end = std::max<int64_t>(in_end, int64_t(band.first[o]) + band.count[o]);
      }
      if (tile.out_end > begin && (end - begin) + (in_end - in_begin) > target) break;
      tile = {begin, end, in_begin, in_end};
    }
    // Whole cache lines, where rows are: loads that cross lines cost double.
    tile.in_begin &= ~(kTileOutputs - 1);
    tiles.push_back(tile);
    begin = tile.out_end;
  }
  return tiles;
}

}  // namespace inn
