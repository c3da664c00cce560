// AVX-512 (F, BW, DQ, VL) vectors: 16 floats or 8 doubles. The operations are those of vector_baseline.h.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "storage_types.h"

namespace inn {
namespace INN_ISA_NAMESPACE {

template <typename Accumulator>
struct Vector;

template <>
struct Vector<float> {
  static constexpr int width = 16;
  static constexpr int rows_at_once = 4;
  using Mask = __mmask16;
  using Index = __m512i;

  __m512 v;

  static Mask first(int n) { return Mask((1u << n) - 1u); }

  static Vector zero() { return {_mm512_setzero_ps()}; }
  static Vector broadcast(float value) { return {_mm512_set1_ps(value)}; }

  static Vector widen(const bfloat16*, __m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Vector widen(const float16*, __m256i bits) { return {_mm512_cvtph_ps(bits)}; }
  static Vector load(const float* source) { return {_mm512_loadu_ps(source)}; }
  static Vector load_partial(const float* source, int n) { return {_mm512_maskz_loadu_ps(first(n), source)}; }
  template <typename Storage>
  static Vector load(const Storage* source) {
    return widen(source, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
  }
  template <typename Storage>
  static Vector load_partial(const Storage* source, int n) {
    return widen(source, _mm256_maskz_loadu_epi16(first(n), source));
  }

  __m256i narrow(const bfloat16*) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_srli_epi32(rounded, 16);
    const Mask unordered = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, unordered, _mm512_set1_epi32(0x7fc0));
    return _mm512_cvtepi32_epi16(rounded);
  }
  __m256i narrow(const float16*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  void store(float* out) const { _mm512_storeu_ps(out, v); }
  void store_partial(float* out, int n) const { _mm512_mask_storeu_ps(out, first(n), v); }
  template <typename Storage>
  void store(Storage* out) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), narrow(out));
  }
  template <typename Storage>
  void store_partial(Storage* out, int n) const {
    _mm256_mask_storeu_epi16(out, first(n), narrow(out));
  }

  static Vector multiply(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vector multiply_or_zero(Mask mask, Vector a, Vector b) { return {_mm512_maskz_mul_ps(mask, a.v, b.v)}; }
  static Vector multiply_add_where(Mask mask, Vector a, Vector b, Vector c) {
    return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, mask)};
  }

  static Index load_index(const int32_t* index) { return _mm512_loadu_si512(index); }
  static Mask greater(const int32_t* count, int32_t bound) {
    return _mm512_cmpgt_epi32_mask(load_index(count), _mm512_set1_epi32(bound));
  }
  static Index shift(Index index, int32_t by) { return _mm512_add_epi32(index, _mm512_set1_epi32(by)); }

  static constexpr int max_registers = 4;
  template <int Registers>
  struct Window {
    __m512 part[Registers];
    INN_INLINE explicit Window(const float* source) {
      for (int r = 0; r < Registers; ++r) part[r] = _mm512_loadu_ps(source + 16 * r);
    }
    INN_INLINE Vector pick(Index index) const {
      if constexpr (Registers == 1) {
        return {_mm512_permutexvar_ps(index, part[0])};
      } else if constexpr (Registers == 2) {
        return {_mm512_permutex2var_ps(part[0], index, part[1])};
      } else {
        const __m512 low = _mm512_permutex2var_ps(part[0], index, part[1]);
        const __m512 high = _mm512_permutex2var_ps(part[2], index, part[3]);
        return {_mm512_mask_mov_ps(low, _mm512_cmpgt_epi32_mask(index, _mm512_set1_epi32(31)), high)};
      }
    }
  };
  static Vector gather(const float* source, Index index, Mask mask) {
    return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, source, 4)};
  }
};

template <>
struct Vector<double> {
  static constexpr int width = 8;
  static constexpr int rows_at_once = 4;
  using Mask = __mmask8;
  using Index = __m256i;

  __m512d v;

  static Mask first(int n) { return Mask((1u << n) - 1u); }

  static Vector zero() { return {_mm512_setzero_pd()}; }
  static Vector broadcast(double value) { return {_mm512_set1_pd(value)}; }
  static Vector load(const double* source) { return {_mm512_loadu_pd(source)}; }
  static Vector load_partial(const double* source, int n) { return {_mm512_maskz_loadu_pd(first(n), source)}; }
  void store(double* out) const { _mm512_storeu_pd(out, v); }
  void store_partial(double* out, int n) const { _mm512_mask_storeu_pd(out, first(n), v); }

  static Vector multiply(Vector a, Vector b) { return {_mm512_mul_pd(a.v, b.v)}; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vector multiply_or_zero(Mask mask, Vector a, Vector b) { return {_mm512_maskz_mul_pd(mask, a.v, b.v)}; }
  static Vector multiply_add_where(Mask mask, Vector a, Vector b, Vector c) {
    return {_mm512_mask3_fmadd_pd(a.v, b.v, c.v, mask)};
  }

  static Index load_index(const int32_t* index) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)); }
  static Mask greater(const int32_t* count, int32_t bound) {
    return _mm256_cmpgt_epi32_mask(load_index(count), _mm256_set1_epi32(bound));
  }
  static Index shift(Index index, int32_t by) { return _mm256_add_epi32(index, _mm256_set1_epi32(by)); }

  static constexpr int max_registers = 2;
  template <int Registers>
  struct Window {
    __m512d part[Registers];
    INN_INLINE explicit Window(const double* source) {
      for (int r = 0; r < Registers; ++r) part[r] = _mm512_loadu_pd(source + 8 * r);
    }
    INN_INLINE Vector pick(Index index) const {
      const __m512i wide = _mm512_cvtepi32_epi64(index);
      if constexpr (Registers == 1)
        return {_mm512_permutexvar_pd(wide, part[0])};
      else
        return {_mm512_permutex2var_pd(part[0], wide, part[1])};
    }
  };
  static Vector gather(const double* source, Index index, Mask mask) {
    return {_mm512_mask_i32gather_pd(_mm512_setzero_pd(), mask, index, source, 8)};
  }
};

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
