// The part of a kernel that is the same on every instruction set: loops over pixels and border classes, packing signs.
// A source that includes it must define in namespace esbnn::ISA:
//   template <int P, int R> void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps,
//                int64_t tap_count, int64_t words, const uint32_t *lanes, int64_t block_step, int32_t (*out)[LANES]);
//     out[p*R + r][l] = number of differing bits between pixel p and filter l of block r over all taps
//   unsigned not_negative(const Floats &y);   bit l = (y[l] >= 0)
// Built with -ffp-contract=off: every step of the epilogue is rounded on its own, because a sign follows and a
// different rounding flips it at ties.
#include <cstring>
#include <vector>

#include "half.h"

namespace esbnn {
namespace ISA {
// the sum that a border class has without differing bits, minus twice their number
static inline Ints exact(const int32_t *bases, const int *kind, const int32_t *count, int64_t i) {
  return load_ints(bases + (kind ? kind[i] * LANES : 0)) - 2 * load_ints(count);
}
#include "epilogue.h"

using Tile = void (*)(const uint32_t *, int64_t, const int64_t *, int64_t, int64_t, const uint32_t *, int64_t,
                      int32_t (*)[LANES]);
#define TILES(R) {nullptr, differing<1, R>, differing<2, R>, differing<3, R>, differing<4, R>, \
                  differing<5, R>, differing<6, R>, differing<7, R>, differing<8, R>}
static const Tile tiles[MAX_BLOCKS][MAX_PIXELS + 1] = {TILES(1), TILES(2)};
#undef TILES

// base[l] - 2 * differing is the sum: the values inside the image, with the ring's part undone where it is skipped.
static void border(const Conv &c, const int32_t *ones, uint64_t rows, uint64_t columns, int32_t *base) {
  Ints total{};
  for (int64_t i = 0; i < c.kernel_h; i++)
    for (int64_t j = 0; j < c.kernel_w; j++, ones += LANES)
      if (!c.skip_ring || ((rows >> i & 1) && (columns >> j & 1)))
        total += int32_t(c.per_tap);
      else
        total += 2 * load_ints(ones);
  std::memcpy(base, &total, sizeof(total));
}

// Offsets of runs of words from a pixel's first word; taps next to each other in memory are one run.
struct Runs {
  std::vector<int64_t> offsets;
  int64_t words;
  explicit Runs(const Conv &c) {
    const int64_t pixel_words = c.groups * c.words;
    const bool joined = c.groups == 1 && c.dilation_w == 1;
    words = joined ? c.kernel_w * c.words : c.words;
    for (int64_t i = 0; i < c.kernel_h; i++)
      for (int64_t j = 0; j < (joined ? 1 : c.kernel_w); j++)
        offsets.push_back((i * c.dilation_h * c.padded_w + j * c.dilation_w) * pixel_words);
  }
};

static void spin(const uint32_t *activations, const uint32_t *lanes, int64_t words, int64_t times) {
  const int64_t start = 0;
  const Tile volatile tile = tiles[MAX_BLOCKS - 1][MAX_PIXELS]; // volatile: calls without a used result stay
  alignas(64) int32_t count[MAX_PIXELS * MAX_BLOCKS][LANES];
  while (times-- > 0) tile(activations, words, &start, 1, words, lanes, words * LANES, count);
}

// Pixels in the outer loop, blocks in the inner: the activations of a tile stay in the first cache while the weights
// stream, and the outputs of a pixel are written side by side.
static void conv(const Conv &c, const Epilogue &e, const Task &t) {
  const int64_t channels = e.copies * c.filters, pixel_words = c.groups * c.words;
  const int64_t block_words = c.taps() * c.words * LANES;
  const Finish whole = finisher(e, LANES), partial = finisher(e, 1);
  const Runs runs(c);
  const int64_t blocks = t.block1 - t.block0, width = t.column1 - t.column0;
  std::vector<int32_t> bases(blocks * c.kinds * LANES);
  uint64_t rows_before = 0;
  const int64_t parts = (width + MAX_PIXELS - 1) / MAX_PIXELS; // of nearly equal width: 14 pixels are 7 + 7
  alignas(64) int32_t count[MAX_PIXELS * MAX_BLOCKS][LANES];

  for (int64_t y = t.row0; y < t.row1; y++) {
    const uint64_t rows = inside(y, c.stride_h, c.dilation_h, c.pad_h, c.in_h, c.kernel_h);
    if (y == t.row0 || rows != rows_before)
      for (int64_t b = 0; b < blocks; b++)
        for (int k = 0; k < c.kinds; k++)
          border(c, c.tap_ones + (t.block0 + b) * c.taps() * LANES, rows, c.column_masks[k],
                 &bases[(b * c.kinds + k) * LANES]);
    rows_before = rows;
    const uint32_t *row = c.activations + ((t.image * c.padded_h + y * c.stride_h) * c.padded_w) * pixel_words;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t x0 = t.column0 + part * width / parts, x1 = t.column0 + (part + 1) * width / parts;
      const int64_t step = c.stride_w * pixel_words, pixel = (t.image * c.out_h + y) * c.out_w + x0;
      for (int64_t b = t.block0, together; b < t.block1; b += together) {
        const int64_t group = b / c.blocks, in_group = b % c.blocks;
        // two blocks at once, if both belong to this group
        together = b + 1 < t.block1 && in_group + 1 < c.blocks ? 2 : 1;
        tiles[together - 1][x1 - x0](row + x0 * step + group * c.words, step, runs.offsets.data(),
                                     int64_t(runs.offsets.size()), runs.words, c.lanes + b * block_words, block_words,
                                     count);
        for (int64_t r = 0; r < together; r++) {
          const int64_t left = c.group_filters() - (in_group + r) * LANES;
          const Place at{channels, c.filters, group * c.group_filters() + (in_group + r) * LANES,
                         left < LANES ? int(left) : LANES,
                         &bases[(b + r - t.block0) * c.kinds * LANES], c.column_kind ? c.column_kind + x0 : nullptr};
          (left < LANES ? partial : whole)(e, at, count + r, together, pixel, x1 - x0);
        }
      }
    }
  }
}

// Bits of up to LANES values next to each other.
template <Kind KIND, bool SHIFTED>
static inline uint32_t signs(const Pack &p, int64_t at, int64_t channel, int64_t count) {
  const int lanes = count < LANES ? int(count) : LANES;
  Floats y = load(p.x, at, KIND, lanes);
  if (SHIFTED) y = y + load(p.shift, channel, FLOAT32, lanes);
  const unsigned mask = not_negative(y);
  return count < LANES ? mask & ((1u << count) - 1) : mask;
}

// Pixels whose channels are next to each other: a word is two vectors of channels.
template <Kind KIND, bool SHIFTED>
static void pack_inner(const Pack &given, int64_t pixel0, int64_t pixel1, uint32_t *to) {
  const Pack p = given; // a copy, which no store can alias
  const int64_t size = p.channels / p.groups, whole = size / 32;
  for (int64_t pixel = pixel0; pixel < pixel1; pixel++)
    for (int64_t g = 0; g < p.groups; g++) {
      int64_t channel = g * size, at = pixel * p.pixel_step + channel;
      for (int64_t w = 0; w < whole; w++, channel += 32, at += 32)
        *to++ = signs<KIND, SHIFTED>(p, at, channel, LANES) |
                signs<KIND, SHIFTED>(p, at + LANES, channel + LANES, LANES) << LANES;
      for (int64_t w = whole; w < p.words; w++) { // a word that is not full, and words that no channel needs
        const int64_t left = w == whole ? size - 32 * whole : 0;
        uint32_t word = left > 0 ? signs<KIND, SHIFTED>(p, at, channel, left) : 0;
        if (left > LANES) word |= signs<KIND, SHIFTED>(p, at + LANES, channel + LANES, left - LANES) << LANES;
        *to++ = word;
      }
    }
}

// Pixels next to each other: a vector has one channel of LANES pixels, whose words are filled bit by bit.
template <Kind KIND> static void pack_outer(const Pack &p, int64_t pixel0, int64_t pixel1, uint32_t *to) {
  const int64_t size = p.channels / p.groups, pixel_words = p.groups * p.words;
  for (int64_t pixel = pixel0; pixel < pixel1; pixel += LANES) {
    const int here = pixel1 - pixel < LANES ? int(pixel1 - pixel) : LANES;
    for (int64_t g = 0; g < p.groups; g++)
      for (int64_t w = 0; w < p.words; w++) {
        const int64_t c0 = g * size + 32 * w, bits = size - 32 * w < 32 ? size - 32 * w : 32;
        Ints column{};
        for (int64_t b = 0; b < bits; b++) {
          Floats y = load(p.x, pixel + (c0 + b) * p.channel_step, KIND, here);
          if (p.shift) y = y + p.shift[c0 + b];
          column |= (y >= 0) & int32_t(uint32_t(1) << b);
        }
        uint32_t words_of[LANES];
        std::memcpy(words_of, &column, sizeof(words_of));
        for (int64_t l = 0; l < here; l++) to[(pixel - pixel0 + l) * pixel_words + g * p.words + w] = words_of[l];
      }
  }
}

template <Kind KIND> static void pack_kind(const Pack &p, int64_t pixel0, int64_t pixel1, uint32_t *bits) {
  const auto inner = p.shift ? pack_inner<KIND, true> : pack_inner<KIND, false>;
  (p.channel_step == 1 ? inner : pack_outer<KIND>)(p, pixel0, pixel1, bits);
}

static void pack(const Pack &p, int64_t pixel0, int64_t pixel1, uint32_t *bits) {
  const auto of = p.kind == FLOAT32 ? pack_kind<FLOAT32> : p.kind == BFLOAT16 ? pack_kind<BFLOAT16> : pack_kind<FLOAT16>;
  of(p, pixel0, pixel1, bits);
}

} // namespace ISA
} // namespace esbnn
