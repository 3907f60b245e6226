// AVX-512 with VPOPCNTDQ: 16 filters a vector, carry-save counting, two words for one popcount.
#include <immintrin.h>

#include "conv.h"

#define ISA avx512
namespace esbnn {
namespace ISA {

// A full adder takes the running ones and two new words; only its carry is counted, twice:
//   s0 = ones ^ x0,  s1 = s0 ^ x1  (the new ones),  carry = majority(ones, x0, x1) = s0 ? ~s1 : ones
template <int P>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      const uint32_t *lanes, int32_t (*out)[LANES]) {
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
    _mm512_store_si512(out[p], _mm512_add_epi32(twice, _mm512_popcnt_epi32(ones[p])));
  }
}

static inline unsigned not_negative(const Floats &y) {
  return _mm512_cmp_ps_mask(__m512(y), _mm512_setzero_ps(), _CMP_GE_OQ);
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::avx512_kernels = {"avx512-vpopcntdq", esbnn::avx512::conv, esbnn::avx512::pack};
