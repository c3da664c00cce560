// AVX2 + FMA + F16C vectors: 8 floats or 4 doubles. The operations are those of vector_baseline.h.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "storage_types.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

template <typename Accumulator>
struct Vector;

// Storage types without a partial load or store in AVX2 go through a small array.
template <typename V, typename Accumulator, typename Storage>
inline V load_partial_by_lane(const Storage* source, int n) {
  Accumulator lane[V::width] = {};
  for (int i = 0; i < n; ++i) lane[i] = to_accumulator(source[i]);
  return V::load(lane);
}
template <typename Accumulator, typename V, typename Storage>
inline void store_partial_by_lane(V vector, Storage* out, int n) {
  Accumulator lane[V::width];
  vector.store(lane);
  for (int i = 0; i < n; ++i) from_accumulator(lane[i], out + i);
}

template <>
struct Vector<float> {
  static constexpr int width = 8;
  static constexpr int rows_at_once = 2;
  using Mask = __m256i;
  using Index = __m256i;

  __m256 v;

  static Vector zero() { return {_mm256_setzero_ps()}; }
  static Vector broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static Vector load(const float* source) { return {_mm256_loadu_ps(source)}; }
  static Vector load(const bfloat16* source) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vector load(const float16* source) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)))};
  }
  static Vector load_partial(const float* source, int n) { return {_mm256_maskload_ps(source, first(n))}; }
  template <typename Storage>
  static Vector load_partial(const Storage* source, int n) {
    return load_partial_by_lane<Vector, float>(source, n);
  }
  void store(float* out) const { _mm256_storeu_ps(out, v); }
  void store(bfloat16* out) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    rounded = _mm256_srli_epi32(rounded, 16);
    const __m256i unordered = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), unordered);
    const __m128i low = _mm256_castsi256_si128(rounded), high = _mm256_extracti128_si256(rounded, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_packus_epi32(low, high));
  }
  void store(float16* out) const {
    const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), half);
  }
  template <typename Storage>
  void store_partial(Storage* out, int n) const {
    store_partial_by_lane<float>(*this, out, n);
  }

  static Vector multiply(Vector a, Vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vector multiply_or_zero(Mask mask, Vector a, Vector b) {
    return {_mm256_and_ps(_mm256_castsi256_ps(mask), _mm256_mul_ps(a.v, b.v))};
  }
  static Vector multiply_add_where(Mask mask, Vector a, Vector b, Vector c) {
    return {_mm256_blendv_ps(c.v, _mm256_fmadd_ps(a.v, b.v, c.v), _mm256_castsi256_ps(mask))};
  }

  static Index load_index(const int32_t* index) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)); }
  static Mask greater(const int32_t* count, int32_t bound) {
    return _mm256_cmpgt_epi32(load_index(count), _mm256_set1_epi32(bound));
  }
  static Mask first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Index shift(Index index, int32_t by) { return _mm256_add_epi32(index, _mm256_set1_epi32(by)); }

  static constexpr int max_registers = 2;
  template <int Registers>
  struct Window {
    __m256 part[Registers];
    INN_INLINE explicit Window(const float* source) {
      for (int r = 0; r < Registers; ++r) part[r] = _mm256_loadu_ps(source + 8 * r);
    }
    INN_INLINE Vector pick(Index index) const {
      const __m256 low = _mm256_permutevar8x32_ps(part[0], index);
      if constexpr (Registers == 1) {
        return {low};
      } else {
        const __m256 high = _mm256_permutevar8x32_ps(part[1], index);
        const __m256i beyond = _mm256_cmpgt_epi32(index, _mm256_set1_epi32(7));
        return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(beyond))};
      }
    }
  };
  static Vector gather(const float* source, Index index, Mask mask) {
    return {_mm256_mask_i32gather_ps(_mm256_setzero_ps(), source, index, _mm256_castsi256_ps(mask), 4)};
  }
};

template <>
struct Vector<double> {
  static constexpr int width = 4;
  static constexpr int rows_at_once = 2;
  using Mask = __m256i;
  using Index = __m128i;

  __m256d v;

  static Vector zero() { return {_mm256_setzero_pd()}; }
  static Vector broadcast(double value) { return {_mm256_set1_pd(value)}; }
  static Vector load(const double* source) { return {_mm256_loadu_pd(source)}; }
  static Vector load_partial(const double* source, int n) {
    const __m256i first = _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
    return {_mm256_maskload_pd(source, first)};
  }
  void store(double* out) const { _mm256_storeu_pd(out, v); }
  void store_partial(double* out, int n) const { store_partial_by_lane<double>(*this, out, n); }

  static Vector multiply(Vector a, Vector b) { return {_mm256_mul_pd(a.v, b.v)}; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vector multiply_or_zero(Mask mask, Vector a, Vector b) {
    return {_mm256_and_pd(_mm256_castsi256_pd(mask), _mm256_mul_pd(a.v, b.v))};
  }
  static Vector multiply_add_where(Mask mask, Vector a, Vector b, Vector c) {
    return {_mm256_blendv_pd(c.v, _mm256_fmadd_pd(a.v, b.v, c.v), _mm256_castsi256_pd(mask))};
  }

  static Index load_index(const int32_t* index) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(index)); }
  static Mask greater(const int32_t* count, int32_t bound) {
    return _mm256_cvtepi32_epi64(_mm_cmpgt_epi32(load_index(count), _mm_set1_epi32(bound)));
  }
  static Index shift(Index index, int32_t by) { return _mm_add_epi32(index, _mm_set1_epi32(by)); }

  static constexpr int max_registers = 0;
  static Vector gather(const double* source, Index index, Mask mask) {
    return {_mm256_mask_i32gather_pd(_mm256_setzero_pd(), source, index, _mm256_castsi256_pd(mask), 8)};
  }
};

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
