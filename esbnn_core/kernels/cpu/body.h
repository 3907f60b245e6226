// The part of a kernel that is the same on every instruction set: loops over pixels and border classes, packing signs.
// A source that includes it must define in namespace esbnn::ISA, words.h for those that count words as they are stored:
//   Unit, Weight, Seen         what its tiles read: UNITS units make a word of the activations; Seen is an image's
//                              activations from padded row `row0` and column `column0`, rows of `width` pixels
//   TILE_BLOCKS, PIXEL_STEP    blocks of filters of a tile; pixels of a tile are a multiple, but for a row's last
//   template <int P, int R> void differing(const Unit *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count,
//                                          int64_t units, int64_t skipped, const Weight *weights,
//                                          int64_t block_step, int32_t (*out)[LANES]);
//     out[p*R + r][l] = number of differing bits between pixel p and filter l of block r over all taps; the weights of
//     `skipped` units after those of each tap are left out
//   int64_t needed_units(const Conv &);                        units of a tap that have channels, or all of them
//   const Weight *weights_of(const Conv &, int64_t block);     where a tile that begins with this block reads
//   int64_t block_step(const Conv &);                          from there to the next blocks
//   constexpr int64_t WEIGHT_STEP                              and how far that is for each unit of a filter
//   template <typename Use> bool each_part(const Conv &, const Task &, const Use &use);
//     calls use(part, Seen{...}) for every part of the task, with the activations as tiles read them; false where memory
//     is short
//   unsigned not_negative(const Floats &y);                    bit l = (y[l] >= 0)
// Built with -ffp-contract=off: every step of the epilogue is rounded on its own, because a sign follows and a
// different rounding flips it at ties.
#include <algorithm>
#include <cstring>
#include <vector>

#include "half.h"

namespace esbnn {
namespace ISA {
// the sum that a border class has without differing bits, minus twice their number
static inline Ints exact(const int32_t *bases, const int *kind, const int32_t *count, int64_t i) {
  const Ints differing = load_vector<int32_t>(count);
  return load_vector<int32_t>(bases + (kind ? kind[i] * LANES : 0)) - (differing + differing);
}
#include "epilogue.h"

using Tile = void (*)(const Unit *, int64_t, const int64_t *, int64_t, int64_t, int64_t, const Weight *, int64_t,
                      int32_t (*)[LANES]);
struct Tiles {
  Tile of[TILE_BLOCKS + 1][MAX_PIXELS + 1];
  Tiles() { fill<TILE_BLOCKS>(); }

private:
  template <int R> void fill() {
    if constexpr (R > 0) {
      const Tile row[] = {nullptr,         differing<1, R>, differing<2, R>, differing<3, R>, differing<4, R>,
                          differing<5, R>, differing<6, R>, differing<7, R>, differing<8, R>};
      std::memcpy(of[R], row, sizeof(row));
      fill<R - 1>();
    }
  }
};
static const Tiles &tiles() {
  static const Tiles all;
  return all;
}

// base[l] - 2 * differing is the sum: the values inside the image, with the ring's part undone where it is skipped.
static void border(const Conv &c, const int32_t *ones, uint64_t rows, uint64_t columns, int32_t *base) {
  Ints total{};
  for (int64_t i = 0; i < c.kernel_h; i++)
    for (int64_t j = 0; j < c.kernel_w; j++, ones += LANES)
      if (!c.skip_ring || ((rows >> i & 1) && (columns >> j & 1)))
        total = total + int32_t(c.per_tap);
      else
        total = total + (load_vector<int32_t>(ones) << 1);
  std::memcpy(base, &total, sizeof(total));
}

// Offsets of runs of units from a pixel's first; taps next to each other in memory are one run, unless some of their
// units are skipped.
struct Runs {
  std::vector<int64_t> offsets;
  int64_t units, skipped;
  Runs(const Conv &c, int64_t width) {
    const int64_t pixel_units = c.groups * c.words * UNITS;
    skipped = c.words * UNITS - needed_units(c);
    const bool joined = c.groups == 1 && c.dilation_w == 1 && skipped == 0;
    units = joined ? c.kernel_w * c.words * UNITS : needed_units(c);
    for (int64_t i = 0; i < c.kernel_h; i++)
      for (int64_t j = 0; j < (joined ? 1 : c.kernel_w); j++)
        offsets.push_back((i * c.dilation_h * width + j * c.dilation_w) * pixel_units);
  }
};

// The largest tile over `words` words a pixel, `times` times; the +-1 products that it made.
static int64_t spin(int64_t words, int64_t times) {
  const int64_t start = 0, units = words * UNITS, step = units * WEIGHT_STEP;
  const std::vector<Unit> activations(MAX_PIXELS * units, Unit(0x50));
  const std::vector<Weight> weights(TILE_BLOCKS * step, Weight(0x0C));
  const Tile volatile tile = tiles().of[TILE_BLOCKS][MAX_PIXELS]; // volatile: calls without a used result stay
  alignas(64) int32_t count[MAX_PIXELS * TILE_BLOCKS][LANES];
  for (int64_t i = 0; i < times; i++) tile(activations.data(), units, &start, 1, units, 0, weights.data(), step, count);
  return times * MAX_PIXELS * TILE_BLOCKS * LANES * words * 32;
}

// How many copies side by side fill a vector: 1, unless the filters of a single block are a part of one.
static int64_t copies_side_by_side(const Conv &c, const Epilogue &e) {
  if (c.groups > 1 || c.filters >= LANES || LANES % c.filters) return 1;
  const int64_t side = LANES / c.filters;
  return e.copies % side ? 1 : side;
}

// The first `filters` lanes again, in the lanes after them.
static inline void repeat_lanes(int32_t *lanes, int64_t filters) {
  for (int64_t l = filters; l < LANES; l++) lanes[l] = lanes[l - filters];
}

// Pixels in the outer loop, blocks in the inner: the activations of a tile stay in the first cache while the weights
// stream, and the outputs of a pixel are written side by side.
static void convolve(const Conv &c, const Epilogue &given, const Task &t, const Seen &seen) {
  const int64_t side = copies_side_by_side(c, given), filters = side * c.filters;
  Epilogue e = given;
  e.copies = given.copies / side;
  const int64_t channels = e.copies * filters, pixel_units = c.groups * c.words * UNITS;
  const Finish whole = finisher(e, LANES), partial = finisher(e, 1);
  const Runs runs(c, seen.width);
  const int64_t blocks = t.block1 - t.block0, width = t.column1 - t.column0;
  std::vector<int32_t> bases(blocks * c.kinds * LANES);
  uint64_t rows_before = 0;
  // parts of nearly equal width: 14 pixels are 7 + 7, or 6 + 8 where tiles take two
  const int64_t parts = (width + MAX_PIXELS - 1) / MAX_PIXELS, steps = (width + PIXEL_STEP - 1) / PIXEL_STEP;
  alignas(64) int32_t count[MAX_PIXELS * TILE_BLOCKS][LANES];

  for (int64_t y = t.row0; y < t.row1; y++) {
    const uint64_t rows = inside(y, c.stride_h, c.dilation_h, c.pad_h, c.in_h, c.kernel_h);
    if (y == t.row0 || rows != rows_before)
      for (int64_t b = 0; b < blocks; b++)
        for (int k = 0; k < c.kinds; k++) {
          int32_t *const base = &bases[(b * c.kinds + k) * LANES];
          border(c, c.tap_ones + (t.block0 + b) * c.taps() * LANES, rows, c.column_masks[k], base);
          if (side > 1) repeat_lanes(base, c.filters);
        }
    rows_before = rows;
    const Unit *row = seen.units + ((y * c.stride_h - seen.row0) * seen.width - seen.column0) * pixel_units;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t x0 = t.column0 + part * steps / parts * PIXEL_STEP;
      const int64_t x1 = std::min(t.column1, t.column0 + (part + 1) * steps / parts * PIXEL_STEP);
      const int64_t step = c.stride_w * pixel_units, pixel = (t.image * c.out_h + y) * c.out_w + x0;
      for (int64_t b = t.block0, together; b < t.block1; b += together) {
        const int64_t group = b / c.blocks, in_group = b % c.blocks;
        // as many blocks at once as belong to this group
        together = std::min({int64_t(TILE_BLOCKS), t.block1 - b, c.blocks - in_group});
        tiles().of[together][x1 - x0](row + x0 * step + group * c.words * UNITS, step, runs.offsets.data(),
                                      int64_t(runs.offsets.size()), runs.units, runs.skipped, weights_of(c, b),
                                      block_step(c), count);
        if (side > 1)
          for (int64_t i = 0; i < x1 - x0; i++) repeat_lanes(count[i], c.filters);
        for (int64_t r = 0; r < together; r++) {
          const int64_t left = side > 1 ? LANES : c.group_filters() - (in_group + r) * LANES;
          const Place at{channels, filters, group * c.group_filters() + (in_group + r) * LANES,
                         left < LANES ? int(left) : LANES,
                         &bases[(b + r - t.block0) * c.kinds * LANES], c.column_kind ? c.column_kind + x0 : nullptr};
          (left < LANES ? partial : whole)(e, at, count + r, together, pixel, x1 - x0);
        }
      }
    }
  }
}

static bool conv(const Conv &c, const Epilogue &e, const Task &t) {
  return each_part(c, t, [&](const Task &part, const Seen &seen) { convolve(c, e, part, seen); });
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
          column = column | ((y >= 0.0f) & int32_t(uint32_t(1) << b));
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
