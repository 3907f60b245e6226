// AVX2: counts looked up, not added bit by bit. A byte shuffle reads a 16-entry table at 32 places at once: the places are
// four weights of each of 32 filters, the table says how many of them differ from four activations. An entry has two
// counts, of two output pixels side by side, so that one shuffle makes 256 products (a tree of carry-save adders makes 40
// with each instruction, this loop 96).
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define ISA avx2
#include "vectors.h"
#include "scratch.h"

namespace esbnn {
namespace ISA {

using Unit = uint16_t;  // where a row of TABLE begins, in bytes
using Weight = uint8_t; // a nibble
constexpr int UNITS = 8, TILE_BLOCKS = 4, PIXEL_STEP = 2;
constexpr int64_t WEIGHT_STEP = 2 * LANES;

struct Seen {
  const Unit *units;
  int64_t row0, column0, width;
};

#include "avx2_pairs.h"

static int64_t block_step(const Conv &c) { return c.taps() * c.words * UNITS * WEIGHT_STEP; }

static int64_t needed_units(const Conv &c) { return (c.per_tap + 3) / 4; }

static const Weight *weights_of(const Conv &c, int64_t block) {
  const int64_t pairs = (c.blocks + 1) / 2;
  return c.nibbles + (block / c.blocks * pairs + block % c.blocks / 2) * block_step(c);
}

// Counts of P pairs of pixels and V pairs of blocks. A byte holds 16 filters' counts of one block or of the other in
// turns, in its low half for the first pixel (a), in its high half for the second (b).
template <int P, int V> struct Counter {
  __m256i sum[P][V], high[P][V]; // sums of bytes, and of 16-bit words shifted right by four: modulo 256
  __m256i wide[P][V][4];         // 16 bits: a and b of the even block, a and b of the odd one

  Counter() { // number by number: GCC makes a memset of this size a string instruction, which takes as long as a small layer
    const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        sum[p][v] = high[p][v] = zero;
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) wide[p][v][i] = zero;
      }
  }

  // N nibbles, at most three, so that no half of a byte overflows.
  template <int N>
  static inline void add(const Unit *units, int64_t pair_step, const Weight *weights, int64_t step, __m256i (&s)[P][V],
                         __m256i (&h)[P][V]) {
    __m256i three[P][V];
#pragma GCC unroll 3
    for (int i = 0; i < N; i++) {
      __m256i weight[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++)
        weight[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights + i * WEIGHT_STEP + v * step));
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const uint8_t *const row = TABLE.of[0] + units[p * pair_step + i];
        const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(row)));
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
          const __m256i found = _mm256_shuffle_epi8(table, weight[v]);
          three[p][v] = i ? _mm256_add_epi8(three[p][v], found) : found;
        }
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        s[p][v] = _mm256_add_epi8(s[p][v], three[p][v]);
        h[p][v] = _mm256_add_epi8(h[p][v], _mm256_srli_epi16(three[p][v], 4));
      }
  }

  // `units` nibbles next to each other
  inline void run(const Unit *at, int64_t units, int64_t pair_step, const Weight *weights, int64_t step) {
    __m256i s[P][V], h[P][V]; // in registers
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) s[p][v] = sum[p][v], h[p][v] = high[p][v];
    const Unit *const end = at + units;
    for (; at + 3 <= end; at += 3, weights += 3 * WEIGHT_STEP) add<3>(at, pair_step, weights, step, s, h);
    if (end - at == 2) add<2>(at, pair_step, weights, step, s, h);
    if (end - at == 1) add<1>(at, pair_step, weights, step, s, h);
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) sum[p][v] = s[p][v], high[p][v] = h[p][v];
  }

  // The shift of `high` carries the low half of an odd byte into the even byte before it, which costs no mask in the
  // loop and is undone here. With counts a and b of an even and of an odd byte, all modulo 256:
  //   sum:  even a + 16 b, odd a + 16 b          high:  even b + 16 (a of the odd), odd b
  inline void widen() {
    const __m256i byte = _mm256_set1_epi16(255);
    const auto without = [&](__m256i x, __m256i y) { // x - 16 y in the low byte
      return _mm256_and_si256(_mm256_sub_epi16(x, _mm256_slli_epi16(y, 4)), byte);
    };
#pragma GCC unroll 8
    for (int p = 0; p < P; p++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        const __m256i s = sum[p][v], h = high[p][v];
        const __m256i b_odd = _mm256_srli_epi16(h, 8), a_odd = without(_mm256_srli_epi16(s, 8), b_odd);
        const __m256i b_even = without(h, a_odd), a_even = without(s, b_even);
        __m256i *const w = wide[p][v];
        w[0] = _mm256_add_epi16(w[0], a_even), w[1] = _mm256_add_epi16(w[1], b_even);
        w[2] = _mm256_add_epi16(w[2], a_odd), w[3] = _mm256_add_epi16(w[3], b_odd);
        sum[p][v] = high[p][v] = _mm256_setzero_si256();
      }
  }

  // Writes the counts to out[pixel * blocks + block], or adds them, for as many pixels and blocks as there are.
  inline void flush(int32_t (*out)[LANES], int pixels, int blocks, bool adds) {
    for (int p = 0; p < P; p++)
      for (int v = 0; v < V; v++)
        for (int i = 0; i < 4; i++) {
          const int pixel = 2 * p + i % 2, block = 2 * v + i / 2;
          const __m256i w = wide[p][v][i];
          wide[p][v][i] = _mm256_setzero_si256();
          if (pixel >= pixels || block >= blocks) continue;
          __m256i *const to = reinterpret_cast<__m256i *>(out[pixel * blocks + block]);
          __m256i first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(w));
          __m256i second = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(w, 1));
          if (adds) first = _mm256_add_epi32(first, to[0]), second = _mm256_add_epi32(second, to[1]);
          _mm256_store_si256(to, first), _mm256_store_si256(to + 1, second);
        }
  }
};

// As many pairs as their counts fit into the registers take turns, so that weights come from the first cache.
template <int P, int R>
static void differing(const Unit *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count, int64_t units,
                      int64_t skipped, const Weight *weights, int64_t step, int32_t (*out)[LANES]) {
  constexpr int V = (R + 1) / 2, PAIRS = (P + 1) / 2, MOST = 4 / V < PAIRS ? 4 / V : PAIRS;
  constexpr int WHOLE = PAIRS / MOST, REST = PAIRS % MOST;
  constexpr int64_t STEPS = 21; // of three nibbles: 252 fits into a byte
  constexpr int ROUNDS = 256;   // of that many: 64,512 fits into 16 bits
  Counter<MOST, V> whole[WHOLE];
  Counter<REST ? REST : 1, V> rest;
  const int64_t pair_step = 2 * pixel_step;
  int64_t steps = 0;
  int rounds = 0;
  bool adds = false;
  const auto all = [&](const auto &use) {
    for (int i = 0; i < WHOLE; i++) use(whole[i], i * MOST);
    if constexpr (REST > 0) use(rest, WHOLE * MOST);
  };
  const auto flush = [&] {
    all([&](auto &counter, int pair) { counter.flush(out + 2 * pair * R, P - 2 * pair, R, adds); });
    adds = true, rounds = 0;
  };
  const auto widen = [&] {
    all([&](auto &counter, int) { counter.widen(); });
    steps = 0;
    if (++rounds == ROUNDS) flush();
  };
  for (int64_t tap = 0; tap < tap_count; tap++, weights += skipped * WEIGHT_STEP)
    for (int64_t from = 0, here; from < units; from += here, weights += here * WEIGHT_STEP) {
      if (steps == STEPS) widen();
      here = std::min(3 * (STEPS - steps), units - from);
      steps += (here + 2) / 3;
      all([&](auto &counter, int pair) {
        counter.run(a + taps[tap] + from + pair * pair_step, here, pair_step, weights, step);
      });
    }
  widen();
  if (rounds) flush();
}

static inline unsigned not_negative(const Floats &y) {
  const __m256 zero = _mm256_setzero_ps();
  const unsigned low = _mm256_movemask_ps(_mm256_cmp_ps(__m256(y.of[0]), zero, _CMP_GE_OQ));
  const unsigned high = _mm256_movemask_ps(_mm256_cmp_ps(__m256(y.of[1]), zero, _CMP_GE_OQ));
  return low | high << 8;
}

} // namespace ISA
} // namespace esbnn

#include "body.h"

const esbnn::Kernels esbnn::avx2_kernels = {
    "avx2-tables", esbnn::ISA::conv, esbnn::ISA::pack, false, esbnn::ISA::spin, 4, true};
