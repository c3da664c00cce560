// Sums of whole runs of elements: a few rows weighted and added, elementwise. Included by kernel_bodies.h.
#pragma once

#include <type_traits>

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

// Rows outputs side by side, of FixedCount taps each. Their windows overlap, so most of what they read is read by
// several of them: every element comes from memory once, and from the nearest cache after that.
template <int Rows, int FixedCount, typename Accumulator, typename Source, typename Out>
inline void combine_group(const BandView<Accumulator>& band, int64_t o, const Source* const (&source)[Rows],
                          int64_t stride, int64_t n, Out* out, int64_t out_stride) {
  using V = Vector<Accumulator>;
  V weight[Rows][FixedCount];
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < FixedCount; ++i) weight[r][i] = V::broadcast(band.weight[band.offset[o + r] + i]);
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width)
    for (int r = 0; r < Rows; ++r) {
      V sum = V::multiply(weight[r][0], V::load(source[r] + j));
      for (int i = 1; i < FixedCount; ++i)
        sum = V::multiply_add(weight[r][i], V::load(source[r] + j + i * stride), sum);
      sum.store(out + r * out_stride + j);
    }
  if (j == n) return;
  for (int r = 0; r < Rows; ++r)
    combine_partial<FixedCount>(band.weight + band.offset[o + r], FixedCount, source[r] + j, stride, int(n - j),
                                out + r * out_stride + j);
}

template <typename Accumulator, typename Out>
inline void zero_run(int64_t n, Out* out) {
  using V = Vector<Accumulator>;
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) V::zero().store(out + j);
  if (j < n) V::zero().store_partial(out + j, int(n - j));
}

template <typename Accumulator, typename Source, typename Out>
void runs(const BandView<Accumulator>& band, int64_t begin, int64_t end, const void* source_rows,
          int64_t source_stride, int64_t origin, int64_t n, void* out_rows, int64_t out_stride) {
  constexpr int kRows = Vector<Accumulator>::rows_at_once;
  Out* out = static_cast<Out*>(out_rows);
  const auto source_of = [&](int64_t o) {
    return static_cast<const Source*>(source_rows) + (band.first[o] - origin) * source_stride;
  };
  for (int64_t o = begin; o < end; ++o, out += out_stride) {
    const int32_t count = band.count[o];
    if constexpr (kRows > 1) {
      bool alike = o + kRows <= end && (count == 3 || count == 4);
      for (int r = 1; alike && r < kRows; ++r) alike = band.count[o + r] == count;
      if (alike) {
        const Source* source[kRows];
        for (int r = 0; r < kRows; ++r) source[r] = source_of(o + r);
        if (count == 4)
          combine_group<kRows, 4>(band, o, source, source_stride, n, out, out_stride);
        else
          combine_group<kRows, 3>(band, o, source, source_stride, n, out, out_stride);
        o += kRows - 1;
        out += (kRows - 1) * out_stride;
        continue;
      }
    }
    const Accumulator* weight = band.weight + band.offset[o];
    if (count == 0)
      zero_run<Accumulator>(n, out);
    else if (count == 4)
      combine_run<4>(weight, count, source_of(o), source_stride, n, out);
    else
      combine_run<0>(weight, count, source_of(o), source_stride, n, out);
  }
}

// One output of short_runs in every row: the weights are spread over vectors once. Where another output follows that
// overwrites it, the last vector is stored whole: a masked store costs several. A length known to the compiler
// (FixedInner > 0) unrolls the run.
template <int FixedCount, int FixedInner, typename Accumulator, typename Out>
INN_INLINE void combine_short(const Accumulator* weight, int64_t rows, int64_t inner, const Accumulator* source,
                              int64_t source_stride, bool overwritten, Out* out, int64_t out_stride) {
  using V = Vector<Accumulator>;
  if constexpr (FixedInner > 0) inner = FixedInner;
  V spread[FixedCount];
  for (int i = 0; i < FixedCount; ++i) spread[i] = V::broadcast(weight[i]);
  for (int64_t row = 0; row < rows; ++row, source += source_stride, out += out_stride) {
    const auto sum_at = [&](int64_t j) {  // reads past the run: row buffers are padded
      V sum = V::multiply(spread[0], V::load(source + j));
      for (int i = 1; i < FixedCount; ++i) sum = V::multiply_add(spread[i], V::load(source + j + i * inner), sum);
      return sum;
    };
    int64_t j = 0;
    for (; j + V::width <= inner; j += V::width) sum_at(j).store(out + j);
    if (j == inner) continue;
    if (overwritten)
      sum_at(j).store(out + j);
    else
      sum_at(j).store_partial(out + j, int(inner - j));
  }
}

template <int count>
using Count = std::integral_constant<int, count>;

template <int FixedInner, typename Accumulator, typename Out>
void short_runs_of(const BandView<Accumulator>& band, int64_t begin, int64_t end, int64_t rows, int64_t inner,
                   const Accumulator* source_rows, int64_t source_stride, int64_t origin, void* out_rows,
                   int64_t out_stride) {
  if constexpr (FixedInner > 0) inner = FixedInner;
  constexpr int64_t width = Vector<Accumulator>::width;
  const int64_t stored = (inner + width - 1) / width * width;  // elements, by whole vectors
  Out* out = static_cast<Out*>(out_rows);
  for (int64_t o = begin; o < end; ++o, out += inner) {
    const int32_t count = band.count[o];
    const Accumulator* weight = band.weight + band.offset[o];
    const Accumulator* source = source_rows + (band.first[o] - origin) * inner;
    const bool overwritten = (end - o) * inner >= stored;
    const auto combine_as = [&](auto fixed) {
      combine_short<fixed.value, FixedInner>(weight, rows, inner, source, source_stride, overwritten, out, out_stride);
    };
    switch (count) {
      case 2: combine_as(Count<2>()); break;
      case 3: combine_as(Count<3>()); break;
      case 4: combine_as(Count<4>()); break;
      case 5: combine_as(Count<5>()); break;
      case 6: combine_as(Count<6>()); break;
      case 7: combine_as(Count<7>()); break;
      case 8: combine_as(Count<8>()); break;
      default:
        for (int64_t row = 0; row < rows; ++row) {
          Out* target = out + row * out_stride;
          if (count == 0)
            zero_run<Accumulator>(inner, target);
          else
            combine_run<0>(weight, count, source + row * source_stride, inner, inner, target);
        }
    }
  }
}

template <typename Accumulator, typename Out>
void short_runs(const BandView<Accumulator>& band, int64_t begin, int64_t end, int64_t rows, int64_t inner,
                const Accumulator* source_rows, int64_t source_stride, int64_t origin, void* out_rows,
                int64_t out_stride) {
  const auto run = inner == 9 ? short_runs_of<9, Accumulator, Out> : short_runs_of<0, Accumulator, Out>;
  run(band, begin, end, rows, inner, source_rows, source_stride, origin, out_rows, out_stride);
}

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
