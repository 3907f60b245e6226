// AMX: tiles of 16 pixels and of 16 filters, 64 signed bytes of the sum deep, whose products the processor adds up
// exactly. Tensors stay packed in memory; a share of the work spreads the bits that it reads to bytes (amx_spread.h).
#include <immintrin.h>

#include <algorithm>
#include <vector>

#define ISA amx
#include "half.h"
#include "scratch.h"

#if defined(ESBNN_AMX_EMULATED)
#include "amx_emulated.h"
#elif defined(ESBNN_WITHOUT_AMX)
const esbnn::Kernels esbnn::amx_kernels = {"amx-s8", nullptr, nullptr, false, nullptr};
#endif

#if defined(ESBNN_AMX_EMULATED) || !defined(ESBNN_WITHOUT_AMX)
namespace esbnn {
namespace ISA {
#include "avx512.h"

// the epilogue needs the tiles' sums as they are
static inline Ints exact(const int32_t *, const int *, const int32_t *sum, int64_t) { return load_vector<int32_t>(sum); }
#include "amx_spread.h"
#include "epilogue.h"

// FEW_PIXELS: with fewer pixels in a share, spreading its weights does not pay. The others: bytes of weights and of
// activations that are spread at once, so that both stay in the second cache.
#ifdef ESBNN_AMX_EMULATED // small, so that small tests reach all of it
constexpr int64_t FEW_PIXELS = 2, WEIGHT_BYTES = 48 << 10, PART_BYTES = 12 << 10;
#else
constexpr int64_t FEW_PIXELS = 64, WEIGHT_BYTES = 1 << 20, PART_BYTES = 512 << 10;
#endif

// The processor's configuration: eight whole tiles.
struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64, "the format of ldtilecfg");
alignas(64) static const Configuration configuration;

constexpr int MOST_BLOCKS = 2; // of filters in a step

// Output pixels next to each other among the 32 of a step.
struct Row {
  int64_t at, pixel, count;
};
struct Rows {
  Row of[2 * SIDE];
  int64_t count = 0;

  // The used pixels of `tile`, whose sums go to `at`.
  void add(const Conv &c, const Part &part, int64_t image, int64_t tile, int64_t at) {
    const int64_t in_run = parts_of(part.length, SIDE), run = tile / in_run, from = tile % in_run * SIDE;
    for (int64_t p = from, end = std::min(from + SIDE, part.length), live; p < end; p += live) {
      const int64_t y = part.row0 + run + p / part.period, x = p % part.period;
      live = std::min((x < part.columns ? part.columns : part.period) - x, end - p);
      if (x < part.columns)
        of[count++] = {at + p - from, (image * c.out_h + y) * c.out_w + part.column0 + x, live};
    }
  }
};

// Sums of up to 32 pixels and two blocks, and how much of their epilogue is done.
struct Sums {
  alignas(64) int32_t of[2 * SIDE * MOST_BLOCKS][LANES];
  const Rows *rows;
  int64_t block, blocks, done = 0, pieces = 0;
};

struct Layer {
  const Conv &c;
  const Epilogue &e;
  const Finish whole, partial;

  // The epilogue of the next `pieces` pieces: a row of pixels, one block.
  void settle(Sums &s, int64_t pieces) const {
    for (const int64_t end = std::min(s.pieces, s.done + pieces); s.done < end; s.done++) {
      const Row &row = s.rows->of[s.done / s.blocks];
      const int64_t r = s.done % s.blocks, group = (s.block + r) / c.blocks, in_group = (s.block + r) % c.blocks;
      const int64_t left = c.group_filters() - in_group * LANES;
      const Place at{e.copies * c.filters, c.filters, group * c.group_filters() + in_group * LANES,
                     left < LANES ? int(left) : LANES, nullptr, nullptr};
      (left < LANES ? partial : whole)(e, at, s.of + row.at * s.blocks + r, s.blocks, row.pixel, row.count);
    }
  }
};

// What a step multiplies. Steps along the sum: of every tap, `steps` of 64.
struct Operands {
  const int8_t *pixels[2], *weights;
  int64_t pixel_step, block_step, steps;
  const int64_t *taps;
  int64_t tap_count;
};

// P tiles of pixels by R blocks. between() is called once a step: work beside that of the tile unit.
template <int P, int R, typename Between>
static void products(const Operands &o, int32_t (*sums)[LANES], const Between &between) {
  // the compiler does not know that tile loads read memory: earlier stores must be complete
  __asm__ volatile("" ::: "memory");
  const int8_t *weights = o.weights;
  _tile_zero(0);
  if constexpr (R == 2) _tile_zero(1);
  if constexpr (P == 2) _tile_zero(2);
  if constexpr (P == 2 && R == 2) _tile_zero(3);
  for (int64_t tap = 0; tap < o.tap_count; tap++)
    for (int64_t at = o.taps[tap], end = at + o.steps * DEPTH; at < end; at += DEPTH, weights += SIDE * DEPTH) {
      _tile_loadd(4, o.pixels[0] + at, o.pixel_step);
      _tile_loadd(6, weights, DEPTH);
      _tile_dpbssd(0, 4, 6);
      if constexpr (R == 2) {
        _tile_loadd(7, weights + o.block_step, DEPTH);
        _tile_dpbssd(1, 4, 7);
      }
      if constexpr (P == 2) {
        _tile_loadd(5, o.pixels[1] + at, o.pixel_step);
        _tile_dpbssd(2, 5, 6);
        if constexpr (R == 2) _tile_dpbssd(3, 5, 7);
      }
      between();
    }
  const int64_t step = R * LANES * sizeof(int32_t);
  _tile_stored(0, sums, step);
  if constexpr (R == 2) _tile_stored(1, sums + 1, step);
  if constexpr (P == 2) _tile_stored(2, sums + SIDE * R, step);
  if constexpr (P == 2 && R == 2) _tile_stored(3, sums + SIDE * R + 1, step);
}

// Two sets of sums take turns: the epilogue of one runs while the tiles compute the other.
class Walk {
public:
  Walk(const Conv &c, const Epilogue &e) : layer{c, e, finisher(e, LANES), finisher(e, 1)} {}
  ~Walk() { layer.settle(sums[turn ^ 1], sums[turn ^ 1].pieces); }

  // Blocks [block0, block1) of one group over a part; pixels in the outer loop, so that they stay in the first cache.
  void part(const Part &part, int64_t image, int64_t block0, int64_t block1, const int8_t *pixels,
            const int8_t *weights, const int64_t *taps) {
    const Conv &c = layer.c;
    const int64_t pixel = c.words / 2 * DEPTH, block = c.taps() * c.words / 2 * SIDE * DEPTH;
    const int64_t in_run = parts_of(part.length, SIDE), tiles = part.tiles();
    const auto start = [&](int64_t tile) {
      return pixels + (tile / in_run * c.stride_h * part.width + tile % in_run * SIDE * c.stride_w) * pixel;
    };
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const bool two = tile + 1 < tiles;
      Rows &own = rows[row_turn ^= 1];
      own.count = 0;
      for (int64_t t = tile; t <= tile + two; t++) own.add(c, part, image, t, (t - tile) * SIDE);
      for (int64_t b = block0, together; b < block1; b += together, turn ^= 1) {
        together = b + 1 < block1 ? 2 : 1;
        const Operands o{{start(tile), two ? start(tile + 1) : nullptr}, weights + (b - block0) * block,
                         c.stride_w * pixel, block, c.words / 2, taps, c.taps()};
        Sums &now = sums[turn], &before = sums[turn ^ 1];
        const int64_t share = parts_of(before.pieces, o.tap_count * o.steps);
        const auto between = [&] { layer.settle(before, share); };
        const auto of = two ? (together == 2 ? products<2, 2, decltype(between)> : products<2, 1, decltype(between)>)
                            : (together == 2 ? products<1, 2, decltype(between)> : products<1, 1, decltype(between)>);
        of(o, now.of, between);
        now.rows = &own, now.block = b, now.blocks = together, now.done = 0, now.pieces = own.count * together;
      }
    }
  }

private:
  const Layer layer;
  Sums sums[2];
  Rows rows[2];
  int turn = 0, row_turn = 0;
};

// False if there is too little memory; what has been written until then is right.
static bool walk(const Conv &c, const Epilogue &e, const Task &t) {
  const int64_t pixel = c.words / 2 * DEPTH, block_size = c.taps() * pixel * SIDE;
  const int64_t one = 1, rows = t.row1 - t.row0, columns = t.column1 - t.column0;
  const int64_t reach_h = (c.kernel_h - 1) * c.dilation_h + 1, reach_w = (c.kernel_w - 1) * c.dilation_w + 1;
  // the largest parts that fit: whole rows, or pieces of one
  const int64_t wide = (PART_BYTES / (pixel * reach_h) - reach_w) / c.stride_w + 1;
  const int64_t part_columns = wide >= columns ? columns : std::max(2 * SIDE, wide / (2 * SIDE) * 2 * SIDE);
  const int64_t line = pixel * ((columns - 1) * c.stride_w + reach_w);
  const int64_t part_rows = wide >= columns ? std::clamp((PART_BYTES / line - reach_h) / c.stride_h + 1, one, rows) : 1;
  const int64_t part_blocks = std::max<int64_t>(2, WEIGHT_BYTES / block_size / 2 * 2);

  Walk walk(c, e);
  std::vector<int64_t> taps(c.taps());
  const int8_t *pixels = nullptr;
  int64_t pixels_group = -1; // of `pixels`, where the share is one part
  for (int64_t b0 = t.block0, b1; b0 < t.block1; b0 = b1) {
    const int64_t group = b0 / c.blocks;
    b1 = std::min({t.block1, (group + 1) * c.blocks, b0 + part_blocks});
    const int8_t *weights = spread_weights(c, b0, b1);
    if (!weights) return false;
    for (int64_t y = 0; y < rows; y += part_rows)
      for (int64_t x = 0; x < columns; x += part_columns) {
        const Part part(c, t.row0 + y, std::min(part_rows, rows - y), t.column0 + x,
                        std::min(part_columns, columns - x));
        if (part_rows < rows || part_columns < columns || group != pixels_group) {
          pixels = spread_pixels(c, part, t.image, group);
          if (!pixels) return false;
          pixels_group = group;
        }
        for (int64_t tap = 0; tap < c.taps(); tap++)
          taps[tap] = (tap / c.kernel_w * c.dilation_h * part.width + tap % c.kernel_w * c.dilation_w) * pixel;
        walk.part(part, t.image, b0, b1, pixels, weights, taps.data());
      }
  }
  return true;
}

static bool conv(const Conv &c, const Epilogue &e, const Task &t) {
  if ((t.row1 - t.row0) * (t.column1 - t.column0) >= FEW_PIXELS) {
    _tile_loadconfig(&configuration);
    const bool done = walk(c, e, t);
    _tile_release();
    if (done) return true;
  }
  return avx512_carry_kernels.conv(c, e, t);
}

static void pack(const Pack &p, int64_t pixel0, int64_t pixel1, uint32_t *bits) {
  avx512_carry_kernels.pack(p, pixel0, pixel1, bits);
}

} // namespace ISA
} // namespace esbnn

const esbnn::Kernels esbnn::amx_kernels = {"amx-s8", esbnn::ISA::conv, esbnn::ISA::pack, true, nullptr};
#endif
