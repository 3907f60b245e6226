// AVX2: 16 filters in two vectors, Harley-Seal counting: a tree of carry-save adders, one popcount for eight words.
#include <immintrin.h>

#include "conv.h"

#define ISA avx2
namespace esbnn {
namespace ISA {

// (high, low) of the sum of three bits a lane
static inline void add(__m256i &high, __m256i &low, __m256i a, __m256i b, __m256i c) {
  const __m256i u = _mm256_xor_si256(a, b);
  high = _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(u, c));
  low = _mm256_xor_si256(u, c);
}

static inline __m256i popcount(__m256i v) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(v, 4), low)));
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}

// one pixel, eight filters: the words of all taps go through one adder tree, so that short taps fill it too
struct Counter {
  __m256i ones = _mm256_setzero_si256(), twos = ones, fours = ones, eights = ones, kept[7];
  int have = 0;

  inline void take(__m256i x) {
    if (have < 7) {
      kept[have++] = x;
      return;
    }
    __m256i two_a, two_b, two_c, two_d, four_a, four_b, eight;
    add(two_a, ones, ones, kept[0], kept[1]), add(two_b, ones, ones, kept[2], kept[3]);
    add(four_a, twos, twos, two_a, two_b);
    add(two_c, ones, ones, kept[4], kept[5]), add(two_d, ones, ones, kept[6], x);
    add(four_b, twos, twos, two_c, two_d);
    add(eight, fours, fours, four_a, four_b);
    eights = _mm256_add_epi32(eights, popcount(eight));
    have = 0;
  }

  inline __m256i total() const {
    __m256i sum = _mm256_slli_epi32(eights, 3);
    sum = _mm256_add_epi32(sum, _mm256_slli_epi32(popcount(fours), 2));
    sum = _mm256_add_epi32(sum, _mm256_slli_epi32(popcount(twos), 1));
    sum = _mm256_add_epi32(sum, popcount(ones));
    for (int i = 0; i < have; i++) sum = _mm256_add_epi32(sum, popcount(kept[i]));
    return sum;
  }
};

template <int P>
static void one_block(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      const uint32_t *lanes, int32_t (*out)[LANES], int64_t out_step) {
  for (int p = 0; p < P; p++)
    for (int half = 0; half < LANES; half += 8) {
      const uint32_t *w = lanes + half;
      Counter counter;
      for (int64_t tap = 0; tap < tap_count; tap++) {
        const uint32_t *at = a + taps[tap] + p * pixel_step;
        for (int64_t i = 0; i < words; i++, w += LANES)
          counter.take(_mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w)),
                                        _mm256_set1_epi32(int(at[i]))));
      }
      _mm256_store_si256(reinterpret_cast<__m256i *>(out[p * out_step] + half), counter.total());
    }
}

template <int P, int R>
static void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t words,
                      const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]) {
  for (int r = 0; r < R; r++)
    one_block<P>(a, pixel_step, taps, tap_count, words, lanes + r * block_step, out + r, R);
}

static inline unsigned not_negative(const Floats &y) {
  __m256 half[2];
  __builtin_memcpy(half, &y, sizeof(half));
  const __m256 zero = _mm256_setzero_ps();
  const unsigned low = _mm256_movemask_ps(_mm256_cmp_ps(half[0], zero, _CMP_GE_OQ));
  const unsigned high = _mm256_movemask_ps(_mm256_cmp_ps(half[1], zero, _CMP_GE_OQ));
  return low | high << 8;
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::avx2_kernels = {
    "avx2-harley-seal", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin};
