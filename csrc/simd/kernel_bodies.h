// The kernels, written once over Vector<Accumulator>; kernels_<isa>.cpp compiles them for one instruction set.
// Here are dot products and the table of all kernels; row_kernels.h and column_kernels.h have the rest.
//
// Every sum runs in tap order, acc = w0 * v0, acc = fma(w1, v1, acc), ..., in vectors and in tails alike: the
// bits of a result depend neither on the instruction set nor on where an element falls in a vector. Lanes
// with fewer taps than their block are masked out, not multiplied by zero: 0 * inf would be NaN.
#pragma once

#include "column_kernels.h"
#include "kernels.h"
#include "row_kernels.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

// Taps of a few rows, at most four: their sums stay in registers.
template <int Taps, typename Accumulator, typename Row>
inline void dot_few_taps(const Accumulator* vector, const Row* rows, int64_t row_stride, int64_t n,
                         Accumulator* lanes) {
  using V = Vector<Accumulator>;
  constexpr int kParts = kDotLanes / V::width;
  for (int p = 0; p < kParts; ++p) {
    const int shift = p * V::width;
    V sum[Taps];
    for (int t = 0; t < Taps; ++t) sum[t] = V::load(lanes + t * kDotLanes + shift);
    int64_t i = 0;
    for (; i + kDotLanes <= n; i += kDotLanes) {
      const V value = V::load(vector + i + shift);
      for (int t = 0; t < Taps; ++t)
        sum[t] = V::multiply_add(value, V::load(rows + t * row_stride + i + shift), sum[t]);
    }
    if (i < n) {
      const int64_t left = n - i - shift;
      const int m = left <= 0 ? 0 : left < V::width ? int(left) : V::width;
      if (m > 0) {
        const V value = V::load_partial(vector + i + shift, m);
        for (int t = 0; t < Taps; ++t)
          sum[t] = V::multiply_add(value, V::load_partial(rows + t * row_stride + i + shift, m), sum[t]);
      } else {  // a wider vector adds zeros here: do the same, it may turn -0 into +0
        for (int t = 0; t < Taps; ++t) sum[t] = V::multiply_add(V::zero(), V::zero(), sum[t]);
      }
    }
    for (int t = 0; t < Taps; ++t) sum[t].store(lanes + t * kDotLanes + shift);
  }
}

template <typename Accumulator, typename Row>
void dot_taps(const Accumulator* vector, const void* row_pointer, int64_t row_stride, int64_t taps, int64_t n,
              Accumulator* lanes) {
  const Row* rows = static_cast<const Row*>(row_pointer);
  for (; taps >= 4; taps -= 4, rows += 4 * row_stride, lanes += 4 * kDotLanes)
    dot_few_taps<4>(vector, rows, row_stride, n, lanes);
  if (taps == 3) dot_few_taps<3>(vector, rows, row_stride, n, lanes);
  if (taps == 2) dot_few_taps<2>(vector, rows, row_stride, n, lanes);
  if (taps == 1) dot_few_taps<1>(vector, rows, row_stride, n, lanes);
}

#define INN_RUNS(Source) {runs<float, Source, float>, runs<float, Source, bfloat16>, runs<float, Source, float16>, nullptr}
#define INN_BY_STORAGE(kernel) {kernel<float, float>, kernel<float, bfloat16>, kernel<float, float16>, nullptr}
#define INN_DOUBLE_ONLY(kernel) {nullptr, nullptr, nullptr, kernel<double, double>}

extern const InstructionSet instruction_set = {
    INN_ISA_NAME,
    {Vector<float>::width, Vector<float>::max_registers,
     {INN_RUNS(float), INN_RUNS(bfloat16), INN_RUNS(float16), {}},
     INN_BY_STORAGE(columns), INN_BY_STORAGE(short_runs), INN_BY_STORAGE(accumulate_taps), INN_BY_STORAGE(dot_taps)},
    {Vector<double>::width, Vector<double>::max_registers,
     {{}, {}, {}, {nullptr, nullptr, nullptr, runs<double, double, double>}},
     INN_DOUBLE_ONLY(columns), INN_DOUBLE_ONLY(short_runs), INN_DOUBLE_ONLY(accumulate_taps),
     INN_DOUBLE_ONLY(dot_taps)},
};

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
