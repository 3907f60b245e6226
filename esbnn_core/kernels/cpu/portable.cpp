// Plain C++, for processors without the other instruction sets and for comparison with them.
#define ISA portable
#include "vectors.h"

namespace esbnn {
namespace ISA {
#include "words.h"

template <int P>
static void one_block(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      const uint32_t *lanes, int32_t (*out)[LANES], int64_t out_step) {
  for (int p = 0; p < P; p++)
    for (int l = 0; l < LANES; l++) out[p * out_step][l] = 0;
  for (int64_t tap = 0; tap < tap_count; tap++)
    for (int64_t w = 0; w < words; w++, lanes += LANES)
      for (int p = 0; p < P; p++) {
        const uint32_t x = a[taps[tap] + p * pixel_step + w];
        for (int l = 0; l < LANES; l++) out[p * out_step][l] += __builtin_popcount(lanes[l] ^ x);
      }
}

template <int P, int R>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      int64_t, const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]) {
  for (int r = 0; r < R; r++)
    one_block<P>(a, pixel_step, taps, tap_count, words, lanes + r * block_step, out + r, R);
}

static inline unsigned not_negative(const Floats &y) {
  float values[LANES]; // g++ with UndefinedBehaviorSanitizer reads y[l] as y[0]
  __builtin_memcpy(values, &y, sizeof(values));
  unsigned mask = 0;
  for (int l = 0; l < LANES; l++) mask |= unsigned(values[l] >= 0) << l;
  return mask;
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::portable_kernels = {
    "portable", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin};
