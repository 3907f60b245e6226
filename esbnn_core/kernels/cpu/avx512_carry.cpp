// AVX-512 with VPOPCNTDQ, carry-save: 16 filters a vector, one popcount for two words. Better where popcounts are the
// bottleneck (Intel: one a cycle); see avx512_popcnt.cpp.
#include <immintrin.h>

#define ISA avx512_carry
#include "vectors.h"

namespace esbnn {
namespace ISA {
#include "words.h"
#include "avx512.h"

// A full adder adds the running ones and two new words; only its carry is counted, twice:
//   s0 = ones ^ x0,  s1 = s0 ^ x1  (the new ones),  carry = majority(ones, x0, x1) = s0 ? ~s1 : ones
template <int P>
static void one_block(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      const uint32_t *lanes, int32_t (*out)[LANES], int64_t out_step) {
  __m512i ones[P], twos[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) ones[p] = twos[p] = _mm512_setzero_si512();
  for (int64_t tap = 0; tap < tap_count; tap++) {
    const uint32_t *at = a + taps[tap];
    for (int64_t w = 0; w < words; w += 2, lanes += 2 * LANES) {
      const __m512i w0 = _mm512_loadu_si512(lanes), w1 = _mm512_loadu_si512(lanes + LANES);
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const uint32_t *pixel = at + p * pixel_step + w;
        const __m512i s0 = _mm512_ternarylogic_epi32(w0, ones[p], _mm512_set1_epi32(int(pixel[0])), 0x96);
        const __m512i s1 = _mm512_ternarylogic_epi32(w1, s0, _mm512_set1_epi32(int(pixel[1])), 0x96);
        const __m512i carry = _mm512_ternarylogic_epi32(s0, ones[p], s1, 0x5C);
        ones[p] = s1;
        twos[p] = _mm512_add_epi32(twos[p], _mm512_popcnt_epi32(carry));
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
    const __m512i twice = _mm512_add_epi32(twos[p], twos[p]);
    _mm512_store_si512(out[p * out_step], _mm512_add_epi32(twice, _mm512_popcnt_epi32(ones[p])));
  }
}

template <int P, int R>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      int64_t, const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]) {
  for (int r = 0; r < R; r++)
    one_block<P>(a, pixel_step, taps, tap_count, words, lanes + r * block_step, out + r, R);
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::avx512_carry_kernels = {
    "avx512-carry-save", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin};
