// float16 and bfloat16 by integer arithmetic: any compiler, any target, and plain loops over them are vectorised. Only
// loading a float16 is left to the instruction that GPUs have for it.
#pragma once

#include <stdint.h>
#include <string.h>

#include "number.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace {
namespace icr {

ICR_INLINE float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}
ICR_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ICR_INLINE float bfloat16_to_float(uint16_t x) { return float_from_bits(uint32_t(x) << 16); }

#if defined(__CUDA_ARCH__)
ICR_INLINE float half_to_float(uint16_t x) { return __half2float(__ushort_as_half(x)); }
#else
ICR_INLINE float half_to_float(uint16_t x) {
  // The exponent moves from bias 15 to 127 by a multiplication, which also makes subnormals normal.
  const uint32_t magnitude = uint32_t(x & 0x7fffu) << 13;
  const float scaled = float_from_bits(magnitude) * float_from_bits(0x77800000u);  // 2^112
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;            // infinity, NaN
  return float_from_bits(bits_of(scaled) | special | uint32_t(x & 0x8000u) << 16);
}
#endif

// Rounded to nearest even, beyond the range to infinity, as PyTorch casts: a GradScaler has to see it. NaN stays NaN.
ICR_INLINE uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rounded = (magnitude + 0x7fffu + ((magnitude >> 16) & 1u)) >> 16;
  return uint16_t((magnitude > 0x7f800000u ? 0x7fc0u : rounded) | (bits >> 16 & 0x8000u));
}

ICR_INLINE uint16_t float_to_half(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t all = bits & 0x7fffffffu;
  const uint32_t magnitude = all < 0x47800000u ? all : 0x47800000u;  // 2^16, which rounds to infinity
  // A subnormal half is a multiple of 2^-24: adding 1/2 rounds to one, found in the low bits.
  const uint32_t subnormal = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t rounded = magnitude < 0x38800000u ? subnormal : normal;
  return uint16_t((all > 0x7f800000u ? 0x7e00u : rounded) | (bits >> 16 & 0x8000u));
}

}  // namespace icr
}  // namespace
