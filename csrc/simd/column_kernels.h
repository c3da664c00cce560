// Sums across the lanes of row buffers: 16 outputs from some 20 consecutive inputs. Included by kernel_bodies.h.
#pragma once

#include <utility>

#include "kernels.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

// Ways to bring what tap t of a block's lanes reads into a vector: from a window of registers loaded once (its
// lanes' index moves with t), from a window that moves with t, or by reading memory lane by lane.
template <typename V, int Registers>
struct FixedWindow {
  typename V::template Window<Registers> window;
  typename V::Index lanes;
  int32_t stride;
  template <typename Accumulator>
  FixedWindow(const Accumulator* source, const int32_t* index, int64_t stride)
      : window(source), lanes(V::load_index(index)), stride(int32_t(stride)) {}
  V tap(int32_t t, typename V::Mask) const { return window.pick(V::shift(lanes, t * stride)); }
};

template <typename V, typename Accumulator, int Registers>
struct MovingWindow {
  const Accumulator* source;
  typename V::Index lanes;
  int64_t stride;
  MovingWindow(const Accumulator* source, const int32_t* index, int64_t stride)
      : source(source), lanes(V::load_index(index)), stride(stride) {}
  V tap(int32_t t, typename V::Mask) const {
    return typename V::template Window<Registers>(source + t * stride).pick(lanes);
  }
};

template <typename V, typename Accumulator>
struct Gather {
  const Accumulator* source;
  typename V::Index lanes;
  int64_t stride;
  Gather(const Accumulator* source, const int32_t* index, int64_t stride)
      : source(source), lanes(V::load_index(index)), stride(stride) {}
  V tap(int32_t t, typename V::Mask mask) const { return V::gather(source + t * stride, lanes, mask); }
};

// sum_t weight[t] * (what tap t reads), for the lanes of one block in Rows rows: its weights and masks serve all.
template <TapCount taps, typename V, int Rows, typename Accumulator, typename Reader>
inline void sum_taps(const ColumnBlock& block, const Accumulator* weight, const int32_t* count,
                     const Reader (&reader)[Rows], V (&sum)[Rows]) {
  const auto add = [&](int32_t t) {  // every lane has tap t
    const V here = V::load(weight + int64_t(t) * V::width);
    const typename V::Mask mask = V::greater(count, t);
    for (int r = 0; r < Rows; ++r) sum[r] = V::multiply_add(here, reader[r].tap(t, mask), sum[r]);
  };
  const auto add_masked = [&](int32_t t) {
    const V here = V::load(weight + int64_t(t) * V::width);
    const typename V::Mask mask = V::greater(count, t);
    for (int r = 0; r < Rows; ++r) sum[r] = V::multiply_add_where(mask, here, reader[r].tap(t, mask), sum[r]);
  };
  const V first = V::load(weight);
  const typename V::Mask mask = V::greater(count, 0);
  if constexpr (taps == TapCount::kThree || taps == TapCount::kFour) {
    for (int r = 0; r < Rows; ++r) sum[r] = V::multiply(first, reader[r].tap(0, mask));
    add(1);
    add(2);
    if constexpr (taps == TapCount::kFour) add(3);
  } else {
    for (int r = 0; r < Rows; ++r) sum[r] = V::multiply_or_zero(mask, first, reader[r].tap(0, mask));
    if constexpr (taps == TapCount::kUpToFour) {
      add_masked(1);
      add_masked(2);
      add_masked(3);
    } else {
      int32_t t = 1;
      for (; t < block.min_taps; ++t) add(t);
      for (; t < block.max_taps; ++t) add_masked(t);
    }
  }
}

// Row buffers, and the output rows that are made from them.
template <typename Accumulator, typename Out>
struct RowGroup {
  const Accumulator* source;
  int64_t source_stride, origin;
  Out* out;
  int64_t out_stride;
};

// Blocks of one kind, in the rows 0, 1, .. that r enumerates.
template <typename Reader, TapCount taps, typename Accumulator, typename Out, int... r>
void columns_of_kind(const ColumnView<Accumulator>& table, int64_t begin, int64_t end,
                     const RowGroup<Accumulator, Out>& group, std::integer_sequence<int, r...>) {
  using V = Vector<Accumulator>;
  const int64_t stride = table.stride, full = table.elements / V::width;
  Out* out = group.out;
  for (int64_t b = begin; b < end; ++b, out += V::width) {
    const ColumnBlock& block = table.block[b];
    const int32_t* index = table.index + b * V::width;
    const Accumulator* source = group.source + (block.base - group.origin);
    const Reader reader[] = {Reader(source + r * group.source_stride, index, stride)...};
    V sum[sizeof...(r)];
    sum_taps<taps>(block, table.weight + block.weight, table.count + b * V::width, reader, sum);
    if (b < full)
      (sum[r].store(out + r * group.out_stride), ...);
    else
      (sum[r].store_partial(out + r * group.out_stride, int(table.elements - b * V::width)), ...);
  }
}

template <typename Reader, int Rows, typename Accumulator, typename Out>
void columns_read_by(TapCount taps, const ColumnView<Accumulator>& table, int64_t begin, int64_t end,
                     const RowGroup<Accumulator, Out>& group) {
  constexpr std::make_integer_sequence<int, Rows> rows;
  if (taps == TapCount::kThree) return columns_of_kind<Reader, TapCount::kThree>(table, begin, end, group, rows);
  if (taps == TapCount::kFour) return columns_of_kind<Reader, TapCount::kFour>(table, begin, end, group, rows);
  if (taps == TapCount::kUpToFour) return columns_of_kind<Reader, TapCount::kUpToFour>(table, begin, end, group, rows);
  columns_of_kind<Reader, TapCount::kAny>(table, begin, end, group, rows);
}

// The type of reader that a block's `access` names, as an argument of `function`.
template <typename T>
struct Type {
  using type = T;
};
template <typename Accumulator, typename Function>
inline void with_reader(Access access, const Function& function) {
  using V = Vector<Accumulator>;
  if constexpr (V::max_registers >= 2) {
    if (access == Access::kFixed1) return function(Type<FixedWindow<V, 1>>());
    if (access == Access::kFixed2) return function(Type<FixedWindow<V, 2>>());
    if (access == Access::kMoving1) return function(Type<MovingWindow<V, Accumulator, 1>>());
    if (access == Access::kMoving2) return function(Type<MovingWindow<V, Accumulator, 2>>());
  }
  if constexpr (V::max_registers >= 4) {
    if (access == Access::kMoving4) return function(Type<MovingWindow<V, Accumulator, 4>>());
  }
  function(Type<Gather<V, Accumulator>>());
}

template <typename Accumulator, typename Out>
void columns(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, int64_t rows, const Accumulator* source,
             int64_t source_stride, int64_t origin, void* out_rows, int64_t out_stride) {
  constexpr int kRows = Vector<Accumulator>::rows_at_once;
  Out* out = static_cast<Out*>(out_rows);
  while (begin < end) {  // neighbours are mostly of one kind
    const ColumnBlock& first = table.block[begin];
    int64_t stop = begin + 1;
    while (stop < end && table.block[stop].access == first.access && table.block[stop].taps == first.taps) ++stop;
    with_reader<Accumulator>(first.access, [&](auto reader) {
      using Reader = typename decltype(reader)::type;
      const auto rows_from = [&](int64_t row) {
        return RowGroup<Accumulator, Out>{source + row * source_stride, source_stride, origin, out + row * out_stride,
                                          out_stride};
      };
      int64_t row = 0;
      for (; row + kRows <= rows; row += kRows)
        columns_read_by<Reader, kRows>(first.taps, table, begin, stop, rows_from(row));
      for (; row < rows; ++row) columns_read_by<Reader, 1>(first.taps, table, begin, stop, rows_from(row));
    });
    out += (stop - begin) * Vector<Accumulator>::width;
    begin = stop;
  }
}

template <typename Reader, typename Accumulator, typename Grad>
void accumulate_block(const ColumnView<Accumulator>& table, int64_t b, const Accumulator* source,
                      const Grad* grad, Accumulator* sum) {
  using V = Vector<Accumulator>;
  const int32_t* count = table.count + b * V::width;
  const Reader reader(source, table.index + b * V::width, table.stride);
  const int64_t left = table.elements - b * V::width;
  const V scale = left >= V::width ? V::load(grad) : V::load_partial(grad, int(left));
  const int32_t taps = table.block[b].max_taps;
  for (int32_t t = 0; t < taps; ++t) {
    const auto mask = V::greater(count, t);
    const V before = V::load(sum + t * V::width);
    V::multiply_add_where(mask, scale, reader.tap(t, mask), before).store(sum + t * V::width);
  }
}

template <typename Accumulator, typename Grad>
void accumulate_taps(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, int64_t taps,
                     const Accumulator* source, int64_t origin, const void* grad_row, Accumulator* sum) {
  constexpr int kWidth = Vector<Accumulator>::width;
  const Grad* grad = static_cast<const Grad*>(grad_row);
  for (int64_t b = begin; b < end; ++b, grad += kWidth, sum += taps * kWidth)
    with_reader<Accumulator>(table.block[b].access, [&](auto reader) {
      const Accumulator* from = source + (table.block[b].base - origin);
      accumulate_block<typename decltype(reader)::type>(table, b, from, grad, sum);
    });
}

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
