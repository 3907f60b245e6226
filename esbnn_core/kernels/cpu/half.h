// LANES values between memory (float32, bfloat16 or float16) and float32; narrowing rounds to nearest even, as torch
// does. Plain vector arithmetic gives the same bits on every instruction set.
#pragma once
#include <cstring>

#include "vectors.h"

namespace esbnn {
namespace ISA {

static inline Floats widen(const Halves &from, Kind kind) {
  const Words bits = convert<uint32_t>(from);
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
    const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return convert<uint16_t>((rounded & ~nan) | (nan & 0x7FC0u));
  }
  const Words size = bits & 0x7FFFFFFFu, sign = (bits >> 16) & 0x8000u;
  const Words normal = (size - 0x38000000u + 0xFFFu + ((size >> 13) & 1u)) >> 13;
  // below 2^-14 the last digit is 2^-24, which is also the last digit of 0.5: adding it rounds
  const Words tiny = as<Words>(as<Floats>(size) + 0.5f) - 0x3F000000u;
  const Words is_tiny = as<Words>(size < 0x38800000u), is_huge = as<Words>(size >= 0x47800000u);
  const Words finite = (tiny & is_tiny) | (normal & ~is_tiny);
  const Words infinite = (nan & 0x7E00u) | (~nan & 0x7C00u);
  return convert<uint16_t>(sign | (finite & ~is_huge) | (infinite & is_huge));
}

// The first `lanes` numbers; the others are 0.
template <typename Number> static inline Vector<Number> load_some(const Number *from, int lanes) {
  Vector<Number> to{};
  std::memcpy(&to, from, lanes * sizeof(Number));
  return to;
}

// Values at[index], at[index + 1], ...; those past `lanes` are 0.
static inline Floats load(const void *at, int64_t index, Kind kind, int lanes) {
  if (kind == FLOAT32) {
    const float *from = static_cast<const float *>(at) + index;
    return lanes == LANES ? load_vector<float>(from) : load_some<float>(from, lanes);
  }
  const uint16_t *from = static_cast<const uint16_t *>(at) + index;
  return widen(lanes == LANES ? load_vector<uint16_t>(from) : load_some<uint16_t>(from, lanes), kind);
}

// Stores y and returns what was stored, widened again.
static inline Floats store(void *at, int64_t index, Kind kind, int lanes, const Floats &y) {
  if (kind == FLOAT32) {
    float *to = static_cast<float *>(at) + index;
    lanes == LANES ? store_vector(to, y) : void(std::memcpy(to, &y, lanes * sizeof(float)));
    return y;
  }
  const Halves rounded = narrow(y, kind);
  uint16_t *to = static_cast<uint16_t *>(at) + index;
  lanes == LANES ? store_vector(to, rounded) : void(std::memcpy(to, &rounded, lanes * sizeof(uint16_t)));
  return widen(rounded, kind);
}

} // namespace ISA
} // namespace esbnn
