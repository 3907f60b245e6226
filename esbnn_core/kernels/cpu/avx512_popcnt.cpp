// AVX-512 with VPOPCNTDQ, every word counted: 16 filters a vector. Better where a popcount costs no more than other
// steps (AMD: two a cycle beside four of the others); see avx512_carry.cpp.
#include <immintrin.h>

#define ISA avx512_popcnt
#include "vectors.h"

namespace esbnn {
namespace ISA {
#include "words.h"
#include "avx512.h"

template <int P, int R>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      int64_t, const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]) {
  __m512i count[P][R];
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) count[p][r] = _mm512_setzero_si512();
  for (int64_t tap = 0; tap < tap_count; tap++) {
    const uint32_t *at = a + taps[tap];
    for (int64_t w = 0; w < words; w++, lanes += LANES) {
      __m512i weight[R];
#pragma GCC unroll 2
      for (int r = 0; r < R; r++) weight[r] = _mm512_loadu_si512(lanes + r * block_step);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const __m512i x = _mm512_set1_epi32(int(at[p * pixel_step + w]));
#pragma GCC unroll 2
        for (int r = 0; r < R; r++)
          count[p][r] = _mm512_add_epi32(count[p][r], _mm512_popcnt_epi32(_mm512_xor_si512(weight[r], x)));
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) _mm512_store_si512(out[p * R + r], count[p][r]);
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::avx512_popcnt_kernels = {
    "avx512-vpopcntdq", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin};
