// Storage types and their scalar conversions.
//
// Included by the per-instruction-set files, so it may only define things in the namespace those files
// open (INN_ISA_NAMESPACE): a function shared by name between files compiled with different flags would be
// merged by the linker, and a plain CPU could then run the AVX-512 copy.
#pragma once

#include <cstdint>
#include <cstring>

namespace inn {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

namespace INN_ISA_NAMESPACE {

template <typename To, typename From>
inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline float to_accumulator(float value) { return value; }
inline double to_accumulator(double value) { return value; }
inline float to_accumulator(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

inline float to_accumulator(float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u)  // infinity; NaN is made quiet, as the hardware does
    return bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13 | (magnitude > 0x7c00u ? 0x400000u : 0u));
  if (magnitude < 0x400u) {  // zero and subnormals: an integer times 2^-24, exact
    const float scaled = float(magnitude) * 0x1p-24f;
    return bit_cast<float>(sign | bit_cast<uint32_t>(scaled));
  }
  return bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
}

inline void from_accumulator(float value, float* out) { *out = value; }
inline void from_accumulator(double value, double* out) { *out = value; }

inline void from_accumulator(float value, bfloat16* out) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    out->bits = 0x7fc0u;
  else
    out->bits = uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);  // to nearest, ties to even
}

inline void from_accumulator(float value, float16* out) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    out->bits = uint16_t(sign | 0x7c00u);
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal in the low bits, rounded
    out->bits = uint16_t(sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  } else {
    out->bits = uint16_t(sign | ((magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
  }
}

}  // namespace INN_ISA_NAMESPACE
}  // namespace inn
