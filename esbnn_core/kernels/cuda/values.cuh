// Eight values side by side, to and from memory of any floating type, and how each type rounds.
#pragma once
#include "conv.cuh"

// The value as it comes back from memory of this type.
__device__ __forceinline__ float widened(u32 bits, int type) {
  return type == FLOAT16 ? from_half(bits & 0xFFFFu) : __uint_as_float(bits << 16);
}

// Values at to at + count - 1 as in memory, then zeros; wide: count is 0 or 8 and the address is aligned. Widening is
// another function, so that many loads can be in flight.
__device__ __forceinline__ void fetch8(u32 (&raw)[8], const void *from, int type, i64 at, int count, bool wide) {
  if (wide && count == 0) at = 0; // read, and not used
  if (type == FLOAT32) {
    const u32 *x = static_cast<const u32 *>(from) + at;
    if (wide) {
      const uint4 low = __ldg(reinterpret_cast<const uint4 *>(x)), high = __ldg(reinterpret_cast<const uint4 *>(x) + 1);
      raw[0] = low.x, raw[1] = low.y, raw[2] = low.z, raw[3] = low.w;
      raw[4] = high.x, raw[5] = high.y, raw[6] = high.z, raw[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) raw[i] = i < count ? __ldg(x + i) : 0u;
    }
    return;
  }
  const u16 *x = static_cast<const u16 *>(from) + at;
  if (wide) {
    const uint4 all = __ldg(reinterpret_cast<const uint4 *>(x));
    raw[0] = all.x, raw[1] = all.y, raw[2] = all.z, raw[3] = all.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      raw[i] = (2 * i < count ? __ldg(x + 2 * i) : 0u) | (2 * i + 1 < count ? u32(__ldg(x + 2 * i + 1)) : 0u) << 16;
  }
}

__device__ __forceinline__ void widen8(float (&v)[8], const u32 (&raw)[8], int type) {
#pragma unroll
  for (int i = 0; i < 8; i++)
    v[i] = type == FLOAT32 ? __uint_as_float(raw[i]) : widened(raw[i / 2] >> 16 * (i % 2), type);
}

__device__ __forceinline__ void load8(float (&v)[8], const void *from, int type, i64 at, int count, bool wide) {
  u32 raw[8];
  fetch8(raw, from, type, at, count, wide);
  widen8(v, raw, type);
}

// Rounds v to the type, stores `count` of it, and leaves in v what was stored.
__device__ __forceinline__ void store8(float (&v)[8], void *to, int type, i64 at, int count, bool wide) {
  if (type == FLOAT32 || type == INT32) { // an integer's bits stay as they are
    float *y = static_cast<float *>(to) + at;
    if (wide) {
      if (count == 0) return;
      *reinterpret_cast<float4 *>(y) = make_float4(v[0], v[1], v[2], v[3]);
      *reinterpret_cast<float4 *>(y + 4) = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++)
        if (i < count) y[i] = v[i];
    }
    return;
  }
  u32 pairs[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    pairs[i] = type == FLOAT16 ? to_halves(v[2 * i], v[2 * i + 1]) : to_bfloats(v[2 * i], v[2 * i + 1]);
    v[2 * i] = widened(pairs[i], type), v[2 * i + 1] = widened(pairs[i] >> 16, type);
  }
  u16 *y = static_cast<u16 *>(to) + at;
  if (wide) {
    if (count) *reinterpret_cast<uint4 *>(y) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < count) y[i] = u16(pairs[i / 2] >> 16 * (i % 2));
  }
}

__device__ __forceinline__ u32 signs8(const float (&v)[8]) {
  u32 byte = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) byte |= u32(v[i] >= 0.0f) << i;
  return byte;
}

// The word of which four neighbouring threads have a byte each, the first the lowest; the whole warp takes part.
__device__ __forceinline__ u32 quad_word(u32 byte, int thread) {
  u32 word = byte << 8 * (thread % 4);
  word |= __shfl_xor_sync(~0u, word, 1);
  word |= __shfl_xor_sync(~0u, word, 2);
  return word;
}
