// out = A in B^T with banded A and B: what discretize, its adjoint, interpolate and spread are.
//
// A row of `out` combines a few consecutive rows of `in` (row pass, into a buffer that stays in the nearest cache),
// then its columns combine a few consecutive elements of that buffer (column pass, in vector registers):
//
//     in   rows 7..10 |=|=====tile=====|=|      row pass: 4 rows weighted and added, into
//     buffer            |==============|        column pass: 16 outputs from some 20 consecutive inputs
//     out  row 5          |===========|
//
// A group of output rows goes through the tiles of a strip together, left to right: they share input rows, weights
// and lane indices, and the processor sees a handful of long streams through memory, which it prefetches by itself
// (asking for lines explicitly was no faster). The input rows that the next group needs again fit the second cache.
// Neither S nor the product of one pass reaches memory, and every output is written once, by one thread,
// with its sum in one order: no atomics, no zero-fill.
#pragma once

#include "band.h"
#include "simd/instruction_set.h"
#include "tensors.h"

namespace inn {

constexpr int64_t kTileElements = 2048;  // inputs and outputs of a tile: four rows of it are some 24 KB of float32
constexpr int64_t kStripTiles = 8;       // tiles of a strip: eight input rows of it are some 300 KB of float32
constexpr int64_t kRowBlock = 32;        // output rows of a task
constexpr int64_t kPiece = 1 << 20;      // outputs of a band: one serves almost always, and a band stays some 40 MB

// The storage type of a buffer of accumulators.
template <typename Accumulator>
constexpr Storage kBuffer = sizeof(Accumulator) == 8 ? kFloat64 : kFloat32;

// Turns one row of values into accumulators: a band of one output with one tap of weight 1.
template <typename Accumulator>
struct UnitBand {
  static constexpr int32_t first = 0, count = 1;
  static constexpr int64_t offset = 0;
  static constexpr Accumulator weight = 1;
  static constexpr BandView<Accumulator> view() { return {&first, &count, &offset, &weight}; }
};

// Calls `function` with the bands of a dimension, piece by piece: S of its taps, or, `adjoint`, the transpose.
template <typename Accumulator, typename Function>
void for_bands(const Taps& taps, int64_t nodes, bool adjoint, const Function& function) {
  const auto make = adjoint ? band_of_nodes<Accumulator> : band_of_points<Accumulator>;
  const int64_t outputs = adjoint ? nodes : taps.points;
  for (int64_t begin = 0; begin < outputs; begin += kPiece)
    function(make(taps.view<Accumulator>(), nodes, {begin, std::min(begin + kPiece, outputs)}));
}

// out [rows of A, outer, columns of B, inner] from in [.., outer, .., inner]: the piece of it whose bands are given.
// Without a row band, A is the identity.
template <typename Accumulator>
void banded_product(const Band<Accumulator>* row_band, const Band<Accumulator>& column_band, const Matrix& in,
                    void* out, Storage out_storage) {
  const Kernels<Accumulator>& kernels = instruction_set().kernels<Accumulator>();
  const int64_t rows = row_band ? row_band->outputs() : in.rows, columns = column_band.outputs(), inner = in.inner;
  if (rows * columns * in.outer * inner == 0) return;

  const bool along_runs = inner >= kRunLength;
  const ColumnTable<Accumulator> table(along_runs ? Band<Accumulator>() : column_band, inner, kernels);
  const ColumnView<Accumulator> column_view = table.view();
  const BandView<Accumulator> row_view = row_band ? row_band->view() : UnitBand<Accumulator>::view();
  const BandView<Accumulator> run_view = column_band.view();
  const std::vector<Tile> tiles = make_tiles(column_band, std::max<int64_t>(kTileElements / inner, 1));
  int64_t widest = 0;
  for (const Tile& tile : tiles) widest = std::max(widest, tile.in_end - tile.in_begin);
  const int64_t line = 64 / int64_t(sizeof(Accumulator));
  const int64_t buffer_stride = (widest * inner + kSourcePadding + line - 1) / line * line;

  const auto row_pass = kernels.runs[in.storage][kBuffer<Accumulator>];
  const auto run_pass = kernels.short_runs[out_storage];
  const auto column_pass = kernels.columns[out_storage];
  const int64_t in_stride = in.outer * in.columns * inner, out_stride = in.outer * column_band.total * inner;
  const int64_t top = row_band ? row_band->begin : 0;
  const int64_t in_bytes = bytes_of(in.storage), out_bytes = bytes_of(out_storage);

  // out[row .. row + group, outer, the tile's columns]
  const auto product_of_tile = [&](int64_t row, int64_t group, int64_t outer, const Tile& tile, Accumulator* buffer) {
    const char* source = static_cast<const char*>(in.data) + (outer * in.columns + tile.in_begin) * inner * in_bytes;
    const int64_t width = (tile.in_end - tile.in_begin) * inner;
    if (row_band)
      row_pass(row_view, row, row + group, source, in_stride, 0, width, buffer, buffer_stride);
    else
      for (int64_t r = 0; r < group; ++r)
        row_pass(row_view, 0, 1, source + (row + r) * in_stride * in_bytes, 0, 0, width, buffer + r * buffer_stride, 0);
    const int64_t column = column_band.begin + tile.out_begin;
    char* target = static_cast<char*>(out) +
                   (((top + row) * in.outer + outer) * column_band.total + column) * inner * out_bytes;
    if (along_runs)
      run_pass(run_view, tile.out_begin, tile.out_end, group, inner, buffer, buffer_stride, tile.in_begin, target,
               out_stride);
    else
      column_pass(column_view, tile.out_begin * inner / kernels.width,
                  (tile.out_end * inner + kernels.width - 1) / kernels.width, group, buffer, buffer_stride,
                  tile.in_begin * inner, target, out_stride);
  };

  const int64_t an_eighth = (rows + 8 * kRowGroup - 1) / (8 * kRowGroup) * kRowGroup;
  const int64_t block = std::min(kRowBlock, an_eighth), blocks = (rows + block - 1) / block;
  const int64_t tile_count = int64_t(tiles.size()), strips = (tile_count + kStripTiles - 1) / kStripTiles;
  const int64_t tasks_of_block = in.outer * strips;
  const int64_t cost = block * (in.columns + columns) * inner / strips;
  parallel_tasks(blocks * tasks_of_block, cost, [&](int64_t begin, int64_t end) {
    const Buffer<Accumulator> buffer(kRowGroup * buffer_stride);  // [kRowGroup, in_end - in_begin, inner]
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first_row = task / tasks_of_block * block, last_row = std::min(first_row + block, rows);
      const int64_t outer = task % tasks_of_block / strips, first_tile = task % strips * kStripTiles;
      const int64_t last_tile = std::min(first_tile + kStripTiles, tile_count);
      for (int64_t row = first_row; row < last_row; row += kRowGroup)
        for (int64_t tile = first_tile; tile < last_tile; ++tile)
          product_of_tile(row, std::min<int64_t>(kRowGroup, last_row - row), outer, tiles[tile], buffer.get());
    }
  });
}

// out [outer, outputs, inner] from in [outer, inputs, inner], run by run: the row pass alone, straight to its result.
// The piece of it whose band is given.
template <typename Accumulator>
void combine_rows(const Band<Accumulator>& band, int64_t outer, int64_t inputs, int64_t inner, const void* in,
                  Storage in_storage, void* out, Storage out_storage) {
  if (outer * band.outputs() * inner == 0) return;
  constexpr int64_t kRun = 2048;        // elements of a run: the inputs of a few outputs stay in the nearest cache
  constexpr int64_t kBlock = 1 << 16;   // elements of a task, about
  const auto kernel = instruction_set().kernels<Accumulator>().runs[in_storage][out_storage];
  const BandView<Accumulator> view = band.view();
  const int64_t outputs = band.outputs();
  const int64_t run = std::min(inner, kRun), runs = (inner + run - 1) / run;
  const int64_t block = std::min(outputs, std::max<int64_t>(16, kBlock / run / 4)), blocks = (outputs + block - 1) / block;
  parallel_tasks(outer * runs * blocks, block * run * 2, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t o = task / (runs * blocks), j = task / blocks % runs * run, first = task % blocks * block;
      const char* source = static_cast<const char*>(in) + (o * inputs * inner + j) * bytes_of(in_storage);
      char* target =
          static_cast<char*>(out) + ((o * band.total + band.begin + first) * inner + j) * bytes_of(out_storage);
      kernel(view, first, std::min(first + block, outputs), source, inner, 0, std::min(run, inner - j), target, inner);
    }
  });
}

}  // namespace inn
