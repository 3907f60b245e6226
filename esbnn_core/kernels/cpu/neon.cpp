// NEON, the vectors that every 64-bit Arm processor has: 16 filters in four vectors. `cnt` counts the bits of each byte,
// and bytes are added up for 31 words before they are widened. A word costs three operations: xor, count, add. Carry-save
// adders would cost more: three operations each, where a count is one; so would tables as in avx2.cpp.
#include <arm_neon.h>

#define ISA neon
#include "vectors.h"

namespace esbnn {
namespace ISA {
#include "words.h"

constexpr int VECTORS = LANES / 4; // of a block's filters
constexpr int FULL = 31;           // words whose counts fit a byte: 31 * 8 < 256
constexpr int TOGETHER = 4;        // pixels: 16 vectors of counts, 4 of weights and the steps between fit 32 registers

// P pixels of one block: weights are loaded once for all pixels, a pixel's word once for all filters
template <int P>
static void few(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                const uint32_t *lanes, int32_t (*out)[LANES], int64_t out_step) {
  uint8x16_t bytes[P][VECTORS];
  uint32x4_t total[P][VECTORS];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) bytes[p][v] = vdupq_n_u8(0), total[p][v] = vdupq_n_u32(0);
  const auto widen = [&] {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        total[p][v] = vpadalq_u16(total[p][v], vpaddlq_u8(bytes[p][v]));
        bytes[p][v] = vdupq_n_u8(0);
      }
  };
  int added = 0;
  for (int64_t tap = 0; tap < tap_count; tap++) {
    const uint32_t *at = a + taps[tap];
    for (int64_t w = 0; w < words; w++, lanes += LANES) {
      uint32x4_t weight[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) weight[v] = vld1q_u32(lanes + 4 * v);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        const uint32x4_t x = vld1q_dup_u32(at + p * pixel_step + w);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
          bytes[p][v] = vaddq_u8(bytes[p][v], vcntq_u8(vreinterpretq_u8_u32(veorq_u32(weight[v], x))));
      }
      if (++added == FULL) widen(), added = 0;
    }
  }
  widen();
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) vst1q_s32(out[p * out_step] + 4 * v, vreinterpretq_s32_u32(total[p][v]));
}

template <int P, int R>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      int64_t, const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]) {
  static_assert(P <= 2 * TOGETHER, "two halves");
  for (int r = 0; r < R; r++, lanes += block_step)
    if constexpr (P > TOGETHER) {
      constexpr int half = (P + 1) / 2;
      few<half>(a, pixel_step, taps, tap_count, words, lanes, out + r, R);
      few<P - half>(a + half * pixel_step, pixel_step, taps, tap_count, words, lanes, out + half * R + r, R);
    } else {
      few<P>(a, pixel_step, taps, tap_count, words, lanes, out + r, R);
    }
}

static inline unsigned not_negative(const Floats &y) {
  static_assert(PARTS == 4, "the vectors of NEON");
  const uint32x4_t first = {1, 2, 4, 8}; // the bits of a vector's lanes
  const auto bits = [&](int v, uint32x4_t places) { return vandq_u32(vcgezq_f32(float32x4_t(y.of[v])), places); };
  const uint32x4_t low = vorrq_u32(bits(0, first), bits(1, vshlq_n_u32(first, 4)));
  const uint32x4_t high = vorrq_u32(bits(2, vshlq_n_u32(first, 8)), bits(3, vshlq_n_u32(first, 12)));
  return vaddvq_u32(vorrq_u32(low, high));
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::neon_kernels = {"neon", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin};
