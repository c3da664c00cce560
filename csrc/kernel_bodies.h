// The kernels, written once over Vector<Accumulator>; kernels_<isa>.cpp compiles them for one instruction set.
//
// Every sum runs in tap order, acc = w0 * v0, acc = fma(w1, v1, acc), ..., in vectors and in tails alike: the
// bits of a result depend neither on the instruction set nor on where an element falls in a vector. Lanes
// with fewer taps than their block are masked out, not multiplied by zero: 0 * inf would be NaN.
#pragma once

#include "kernels.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

// Unroll vectors of one output row: acc = sum_i weight[i] * source[i * stride]. A count known to the compiler
// (FixedCount > 0) unrolls the sum.
template <int Unroll, int FixedCount, typename Accumulator, typename Source, typename Out>
inline void combine(const Accumulator* weight, int32_t count, const Source* source, int64_t stride, Out* out) {
  using V = Vector<Accumulator>;
  const int32_t taps = FixedCount > 0 ? FixedCount : count;
  V sum[Unroll];
  const V first = V::broadcast(weight[0]);
  for (int u = 0; u < Unroll; ++u) sum[u] = V::multiply(first, V::load(source + u * V::width));
  for (int32_t i = 1; i < taps; ++i) {
    source += stride;
    const V next = V::broadcast(weight[i]);
    for (int u = 0; u < Unroll; ++u) sum[u] = V::multiply_add(next, V::load(source + u * V::width), sum[u]);
  }
  for (int u = 0; u < Unroll; ++u) sum[u].store(out + u * V::width);
}

template <int FixedCount, typename Accumulator, typename Source, typename Out>
inline void combine_partial(const Accumulator* weight, int32_t count, const Source* source, int64_t stride, int n,
                            Out* out) {
  using V = Vector<Accumulator>;
  const int32_t taps = FixedCount > 0 ? FixedCount : count;
  V sum = V::multiply(V::broadcast(weight[0]), V::load_partial(source, n));
  for (int32_t i = 1; i < taps; ++i) {
    source += stride;
    sum = V::multiply_add(V::broadcast(weight[i]), V::load_partial(source, n), sum);
  }
  sum.store_partial(out, n);
}

template <int FixedCount, typename Accumulator, typename Source, typename Out>
inline void combine_run(const Accumulator* weight, int32_t count, const Source* source, int64_t stride, int64_t n,
                        Out* out) {
  constexpr int kWidth = Vector<Accumulator>::width, kUnroll = 4;
  int64_t j = 0;
  for (; j + kUnroll * kWidth <= n; j += kUnroll * kWidth)
    combine<kUnroll, FixedCount>(weight, count, source + j, stride, out + j);
  for (; j + kWidth <= n; j += kWidth) combine<1, FixedCount>(weight, count, source + j, stride, out + j);
  if (j < n) combine_partial<FixedCount>(weight, count, source + j, stride, int(n - j), out + j);
}

template <typename Accumulator, typename Source, typename Out>
void runs(const BandView<Accumulator>& band, int64_t begin, int64_t end, const void* source_rows,
          int64_t source_stride, int64_t origin, int64_t n, void* out_rows, int64_t out_stride) {
  using V = Vector<Accumulator>;
  Out* out = static_cast<Out*>(out_rows);
  for (int64_t o = begin; o < end; ++o, out += out_stride) {
    const int32_t count = band.count[o];
    if (count == 0) {
      int64_t j = 0;
      for (; j + V::width <= n; j += V::width) V::zero().store(out + j);
      if (j < n) V::zero().store_partial(out + j, int(n - j));
      continue;
    }
    const Accumulator* weight = band.weight + band.offset[o];
    const Source* source = static_cast<const Source*>(source_rows) + (band.first[o] - origin) * source_stride;
    if (count == 4)
      combine_run<4>(weight, count, source, source_stride, n, out);
    else
      combine_run<0>(weight, count, source, source_stride, n, out);
  }
}

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

// sum_t weight[t] * (what tap t reads), for the lanes of one block.
template <TapCount taps, typename V, typename Accumulator, typename Reader>
inline V sum_taps(const ColumnBlock& block, const Accumulator* weight, const int32_t* count, const Reader& reader) {
  typename V::Mask mask = V::greater(count, 0);
  if constexpr (taps == TapCount::kFour) {
    V sum = V::multiply(V::load(weight), reader.tap(0, mask));
    sum = V::multiply_add(V::load(weight + V::width), reader.tap(1, mask), sum);
    sum = V::multiply_add(V::load(weight + 2 * V::width), reader.tap(2, mask), sum);
    return V::multiply_add(V::load(weight + 3 * V::width), reader.tap(3, mask), sum);
  } else {
    V sum = V::multiply_or_zero(mask, V::load(weight), reader.tap(0, mask));
    const auto add = [&](int32_t t) {
      mask = V::greater(count, t);
      sum = V::multiply_add_where(mask, V::load(weight + t * V::width), reader.tap(t, mask), sum);
    };
    if constexpr (taps == TapCount::kUpToFour) {
      add(1);
      add(2);
      add(3);
    } else {
      int32_t t = 1;
      for (; t < block.min_taps; ++t)
        sum = V::multiply_add(V::load(weight + t * V::width), reader.tap(t, mask), sum);
      for (; t < block.max_taps; ++t) add(t);
    }
    return sum;
  }
}

// Blocks of one kind.
template <typename Reader, TapCount taps, typename Accumulator, typename Out>
void columns_of_kind(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, const Accumulator* source,
                     int64_t origin, Out* out) {
  using V = Vector<Accumulator>;
  const int64_t stride = table.stride, full = table.elements / V::width;
  const ColumnBlock* block = table.block;
  const int32_t* index = table.index;
  const int32_t* count = table.count;
  const Accumulator* weight = table.weight;
  for (int64_t b = begin; b < end; ++b, out += V::width) {
    const Reader reader(source + (block[b].base - origin), index + b * V::width, stride);
    const V sum = sum_taps<taps, V>(block[b], weight + block[b].weight, count + b * V::width, reader);
    if (b < full)
      sum.store(out);
    else
      sum.store_partial(out, int(table.elements - b * V::width));
  }
}

template <typename Reader, typename Accumulator, typename Out>
void columns_read_by(TapCount taps, const ColumnView<Accumulator>& table, int64_t begin, int64_t end,
                     const Accumulator* source, int64_t origin, Out* out) {
  if (taps == TapCount::kFour) return columns_of_kind<Reader, TapCount::kFour>(table, begin, end, source, origin, out);
  if (taps == TapCount::kUpToFour)
    return columns_of_kind<Reader, TapCount::kUpToFour>(table, begin, end, source, origin, out);
  columns_of_kind<Reader, TapCount::kAny>(table, begin, end, source, origin, out);
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
void columns(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, const Accumulator* source,
             int64_t origin, void* out_row) {
  Out* out = static_cast<Out*>(out_row);
  while (begin < end) {  // neighbours are mostly of one kind
    const ColumnBlock& first = table.block[begin];
    int64_t stop = begin + 1;
    while (stop < end && table.block[stop].access == first.access && table.block[stop].taps == first.taps) ++stop;
    with_reader<Accumulator>(first.access, [&](auto reader) {
      columns_read_by<typename decltype(reader)::type>(first.taps, table, begin, stop, source, origin, out);
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
void accumulate_taps(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, const Accumulator* source,
                     int64_t origin, const void* grad_row, Accumulator* sum) {
  constexpr int kWidth = Vector<Accumulator>::width;
  const Grad* grad = static_cast<const Grad*>(grad_row);
  for (int64_t b = begin; b < end; ++b, grad += kWidth, sum += 4 * kWidth)
    with_reader<Accumulator>(table.block[b].access, [&](auto reader) {
      const Accumulator* from = source + (table.block[b].base - origin);
      accumulate_block<typename decltype(reader)::type>(table, b, from, grad, sum);
    });
}

template <typename Accumulator, typename Row>
void dot_taps(const Accumulator* vector, const void* row_pointer, int64_t row_stride, int taps, int64_t n,
              Accumulator* lanes) {
  using V = Vector<Accumulator>;
  constexpr int kParts = kDotLanes / V::width;
  const Row* rows = static_cast<const Row*>(row_pointer);
  for (int p = 0; p < kParts; ++p) {
    const int shift = p * V::width;
    V sum[4];
    for (int t = 0; t < 4; ++t) sum[t] = V::load(lanes + t * kDotLanes + shift);
    int64_t i = 0;
    if (taps == 4) {
      for (; i + kDotLanes <= n; i += kDotLanes) {
        const V value = V::load(vector + i + shift);
        for (int t = 0; t < 4; ++t)
          sum[t] = V::multiply_add(value, V::load(rows + t * row_stride + i + shift), sum[t]);
      }
    } else {
      for (; i + kDotLanes <= n; i += kDotLanes) {
        const V value = V::load(vector + i + shift);
        for (int t = 0; t < taps; ++t)
          sum[t] = V::multiply_add(value, V::load(rows + t * row_stride + i + shift), sum[t]);
      }
    }
    if (i < n) {
      const int64_t left = n - i - shift;
      const int m = left <= 0 ? 0 : left < V::width ? int(left) : V::width;
      if (m > 0) {
        const V value = V::load_partial(vector + i + shift, m);
        for (int t = 0; t < taps; ++t)
          sum[t] = V::multiply_add(value, V::load_partial(rows + t * row_stride + i + shift, m), sum[t]);
      } else {  // a wider vector adds zeros here: do the same, it may turn -0 into +0
        for (int t = 0; t < taps; ++t) sum[t] = V::multiply_add(V::zero(), V::zero(), sum[t]);
      }
    }
    for (int t = 0; t < taps; ++t) sum[t].store(lanes + t * kDotLanes + shift);
  }
}

#define INN_RUNS(Source) {runs<float, Source, float>, runs<float, Source, bfloat16>, runs<float, Source, float16>, nullptr}
#define INN_BY_STORAGE(kernel) {kernel<float, float>, kernel<float, bfloat16>, kernel<float, float16>, nullptr}
#define INN_DOUBLE_ONLY(kernel) {nullptr, nullptr, nullptr, kernel<double, double>}

extern const InstructionSet instruction_set = {
    INN_ISA_NAME,
    {Vector<float>::width, Vector<float>::max_registers,
     {INN_RUNS(float), INN_RUNS(bfloat16), INN_RUNS(float16), {}},
     INN_BY_STORAGE(columns), INN_BY_STORAGE(accumulate_taps), INN_BY_STORAGE(dot_taps)},
    {Vector<double>::width, Vector<double>::max_registers,
     {{}, {}, {}, {nullptr, nullptr, nullptr, runs<double, double, double>}},
     INN_DOUBLE_ONLY(columns), INN_DOUBLE_ONLY(accumulate_taps), INN_DOUBLE_ONLY(dot_taps)},
};

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
