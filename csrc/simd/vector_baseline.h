// Portable vectors: arrays of eight lanes that any compiler can map to what the machine has.
//
// Every instruction set offers the same few operations (vector_avx2.h, vector_avx512.h). All of them round
// a multiply-add once, so that the same sums give the same bits everywhere.
#pragma once

#include "storage_types.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  // No fused instruction, and the library's emulation is slow. The product is exact in double; the sum is
  // rounded to odd there (the error of the addition says which way), so that rounding to float rounds once.
  const double product = double(a) * double(b);
  const double sum = product + double(c);
  const double back = sum - product;
  const double error = (product - (sum - back)) + (double(c) - back);
  uint64_t bits = bit_cast<uint64_t>(sum);
  if ((error > 0 || error < 0) && (bits & 1u) == 0) bits += ((error > 0) == (sum > 0)) ? 1 : uint64_t(-1);
  return float(bit_cast<double>(bits));
#endif
}

template <typename Accumulator>
struct Vector {
  static constexpr int width = 8;
  static constexpr int rows_at_once = 1;  // as many as registers hold sums and weights of; at most kRowGroup
  using Mask = uint8_t;
  using Index = const int32_t*;  // [width]

  Accumulator lane[width];

  static Vector zero() { return {}; }
  static Vector broadcast(Accumulator value) {
    Vector result;
    for (int i = 0; i < width; ++i) result.lane[i] = value;
    return result;
  }
  template <typename Storage>
  static Vector load(const Storage* source) {
    Vector result;
    for (int i = 0; i < width; ++i) result.lane[i] = to_accumulator(source[i]);
    return result;
  }
  template <typename Storage>
  static Vector load_partial(const Storage* source, int n) {
    Vector result = {};
    for (int i = 0; i < n; ++i) result.lane[i] = to_accumulator(source[i]);
    return result;
  }
  template <typename Storage>
  void store(Storage* out) const {
    for (int i = 0; i < width; ++i) from_accumulator(lane[i], out + i);
  }
  template <typename Storage>
  void store_partial(Storage* out, int n) const {
    for (int i = 0; i < n; ++i) from_accumulator(lane[i], out + i);
  }

  static Vector multiply(Vector a, Vector b) {
    Vector result;
    for (int i = 0; i < width; ++i) result.lane[i] = a.lane[i] * b.lane[i];
    return result;
  }
  static Vector multiply_add(Vector a, Vector b, Vector c) {
    Vector result;
    for (int i = 0; i < width; ++i) result.lane[i] = fused(a.lane[i], b.lane[i], c.lane[i]);
    return result;
  }
  static Vector multiply_or_zero(Mask mask, Vector a, Vector b) {
    Vector result = {};
    for (int i = 0; i < width; ++i)
      if (mask >> i & 1) result.lane[i] = a.lane[i] * b.lane[i];
    return result;
  }
  static Vector multiply_add_where(Mask mask, Vector a, Vector b, Vector c) {
    Vector result = c;
    for (int i = 0; i < width; ++i)
      if (mask >> i & 1) result.lane[i] = fused(a.lane[i], b.lane[i], c.lane[i]);
    return result;
  }

  static Index load_index(const int32_t* index) { return index; }
  static Mask greater(const int32_t* count, int32_t bound) {
    unsigned mask = 0;
    for (int i = 0; i < width; ++i) mask |= unsigned(count[i] > bound) << i;
    return Mask(mask);
  }

  // How lanes are drawn from consecutive elements. Where registers can be permuted, Window<Registers> loads
  // Registers * width elements and pick(index) takes lane i from element index[i] of them (shift adds to an
  // index); max_registers says how many a window may have. gather reads memory, and only for lanes of the mask.
  static constexpr int max_registers = 0;
  static Vector gather(const Accumulator* source, Index index, Mask mask) {
    Vector result = {};
    for (int i = 0; i < width; ++i)
      if (mask >> i & 1) result.lane[i] = source[index[i]];
    return result;
  }
};

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
