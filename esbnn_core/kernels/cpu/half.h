// LANES values between memory (float32, bfloat16 or float16) and float32; narrowing rounds to nearest even, as torch
// does. Plain vector arithmetic gives the same bits on every instruction set.
#pragma once
#include <cstring>

#include "conv.h"

namespace esbnn {

template <typename To, typename From> static inline To as(const From &from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits in another type");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

static inline Ints load_ints(const int32_t *from) {
  Ints to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

static inline Floats widen(const Halves &from, Kind kind) {
  const Words bits = __builtin_convertvector(from, Words);
  if (kind == BFLOAT16) return as<Floats>(bits << 16);
  // the exponent is too small by 112: the product also corrects numbers below the normal range
  const Words sign = (bits & 0x8000u) << 16, size = (bits & 0x7FFFu) << 13;
  const Words finite = as<Words>(as<Floats>(size) * 0x1p112f), infinite = size | 0x7F800000u;
  const Words is_finite = as<Words>((bits & 0x7FFFu) < 0x7C00u);
  return as<Floats>(sign | (finite & is_finite) | (infinite & ~is_finite));
}

static inline Halves narrow(const Floats &from, Kind kind) {
  const Words bits = as<Words>(from), nan = as<Words>(from != from);
  if (kind == BFLOAT16) {
    const Words rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
    return __builtin_convertvector((rounded & ~nan) | (0x7FC0u & nan), Halves);
  }
  const Words size = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
  const Words normal = (size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13;
  // below 2^-14 the last digit is 2^-24, which is also the last digit of 0.5: adding it rounds
  const Words tiny = as<Words>(as<Floats>(size) + 0.5f) - 0x3F000000u;
  const Words is_tiny = as<Words>(size < 0x38800000u), is_huge = as<Words>(size >= 0x47800000u);
  const Words finite = (tiny & is_tiny) | (normal & ~is_tiny);
  const Words infinite = (0x7E00u & nan) | (0x7C00u & ~nan);
  return __builtin_convertvector(sign | (finite & ~is_huge) | (infinite & is_huge), Halves);
}

// Values at[index], at[index + 1], ...; those past `lanes` are 0.
static inline Floats load(const void *at, int64_t index, Kind kind, int lanes) {
  if (kind == FLOAT32) {
    Floats to{};
    const float *from = static_cast<const float *>(at) + index;
    lanes == LANES ? std::memcpy(&to, from, sizeof(to)) : std::memcpy(&to, from, lanes * sizeof(float));
    return to;
  }
  Halves to{};
  const uint16_t *from = static_cast<const uint16_t *>(at) + index;
  lanes == LANES ? std::memcpy(&to, from, sizeof(to)) : std::memcpy(&to, from, lanes * sizeof(uint16_t));
  return widen(to, kind);
}

// Stores y and returns what was stored, widened again.
static inline Floats store(void *at, int64_t index, Kind kind, int lanes, const Floats &y) {
  if (kind == FLOAT32) {
    float *to = static_cast<float *>(at) + index;
    lanes == LANES ? std::memcpy(to, &y, sizeof(y)) : std::memcpy(to, &y, lanes * sizeof(float));
    return y;
  }
  const Halves rounded = narrow(y, kind);
  uint16_t *to = static_cast<uint16_t *>(at) + index;
  lanes == LANES ? std::memcpy(to, &rounded, sizeof(rounded)) : std::memcpy(to, &rounded, lanes * sizeof(uint16_t));
  return widen(rounded, kind);
}

} // namespace esbnn
