// What the portable drivers and the per-instruction-set kernels agree on: plain tables and function pointers.
//
// Kernels work on one row, or on a piece of one, of a few kilobytes; drivers (discretize.cpp and the rest) cut
// the work into pieces, choose threads and own all memory.
#pragma once

#include <cstdint>

#if defined(_MSC_VER)
#define INN_INLINE __forceinline
#else
#define INN_INLINE inline __attribute__((always_inline))
#endif

namespace inn {

// Storage types, in the order that the tables of kernels below use.
enum Storage : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3, kStorages = 4 };

// A banded matrix, row by row: output o = sum over i < count[o] of weight[offset[o] + i] * input[first[o] + i].
template <typename Accumulator>
struct BandView {
  const int32_t* first;       // [outputs]
  const int32_t* count;       // [outputs], may be 0: such an output is zero
  const int64_t* offset;      // [outputs]
  const Accumulator* weight;  // all coefficients
};

// The same matrix cut for vectors: `width` consecutive elements of an output row make a block. An element is
// (output o, offset tau) at o * stride + tau, and tap i of it reads the input element
// (first[o] + i) * stride + tau, so a block needs one set of lane indices for all its taps.
enum class TapCount : uint8_t { kThree, kFour, kUpToFour, kAny };  // in every lane of a block
// How the lanes of a block are drawn from a row buffer: from registers that are loaded once and hold what all taps
// read, from registers loaded for each tap, or from memory lane by lane.
enum class Access : uint8_t { kFixed1, kFixed2, kMoving1, kMoving2, kMoving4, kGather };

struct ColumnBlock {
  int64_t base;       // smallest input element that a first tap of the block reads, or would if there were taps
  int64_t weight;     // where the block's coefficients begin, [max(4, max_taps), width]
  int32_t min_taps;   // every lane has at least so many
  int32_t max_taps;   // and at most so many
  TapCount taps;
  Access access;
};

template <typename Accumulator>
struct ColumnView {
  int64_t elements;           // outputs * stride; the last block may be partial
  int64_t stride;             // kernel offsets that ride along
  const ColumnBlock* block;   // [blocks]
  const int32_t* index;       // [blocks, width]: the lane's first tap, from base
  const int32_t* count;       // [blocks, width]: the lane's taps
  const Accumulator* weight;  // zero beyond a lane's taps, and never multiplied there
};

constexpr int kRowGroup = 4;       // output rows that go through a tile together
constexpr int kDotLanes = 16;      // partial sums of a dot product, whatever the vector width
// Elements past the last one that kernels may load (never use) of a row buffer: at most 31 in the last window of four
// vectors, and three strides of less than kRunLength where a block has one tap and kernels load four.
constexpr int kSourcePadding = 80;

// `source` and `row` pointers are void because tables of kernels are indexed by storage type.
template <typename Accumulator>
struct Kernels {
  int width;          // lanes of a vector
  int max_registers;  // of a window whose elements can be permuted into lanes

  // out[o, :n] = sum_i weight * source[first + i - origin, :n] for o in [begin, end); rows of source and out are
  // `source_stride` and `out_stride` elements apart. Indexed [source storage][out storage].
  void (*runs[kStorages][kStorages])(const BandView<Accumulator>& band, int64_t begin, int64_t end,
                                     const void* source, int64_t source_stride, int64_t origin, int64_t n,
                                     void* out, int64_t out_stride);

  // Blocks [begin, end) of `rows` output rows, each from a row buffer whose first element is input element `origin`;
  // buffers and output rows are `source_stride` and `out_stride` elements apart. Indexed [out storage].
  void (*columns[kStorages])(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, int64_t rows,
                             const Accumulator* source, int64_t source_stride, int64_t origin, void* out,
                             int64_t out_stride);

  // The same for rows [outputs, inner]: outputs [begin, end), run by run of `inner` elements. Indexed [out storage].
  void (*short_runs[kStorages])(const BandView<Accumulator>& band, int64_t begin, int64_t end, int64_t rows,
                                int64_t inner, const Accumulator* source, int64_t source_stride, int64_t origin,
                                void* out, int64_t out_stride);

  // sum[block, t, lane] += grad[element] * (what tap t of the element reads), for t < taps. Indexed [grad storage].
  void (*accumulate_taps[kStorages])(const ColumnView<Accumulator>& table, int64_t begin, int64_t end, int64_t taps,
                                     const Accumulator* source, int64_t origin, const void* grad,
                                     Accumulator* sum);

  // lanes[t, i % 16] += vector[i] * rows[t, i] for i < n and t < taps. Indexed [row storage].
  void (*dot_taps[kStorages])(const Accumulator* vector, const void* rows, int64_t row_stride, int64_t taps, int64_t n,
                              Accumulator* lanes);
};

struct InstructionSet {
  const char* name;
  Kernels<float> single;
  Kernels<double> dual;

  template <typename Accumulator>
  const Kernels<Accumulator>& kernels() const;
};

template <>
inline const Kernels<float>& InstructionSet::kernels<float>() const { return single; }
template <>
inline const Kernels<double>& InstructionSet::kernels<double>() const { return dual; }

namespace baseline { extern const InstructionSet instruction_set; }
namespace avx2 { extern const InstructionSet instruction_set; }
namespace avx512 { extern const InstructionSet instruction_set; }

}  // namespace inn
