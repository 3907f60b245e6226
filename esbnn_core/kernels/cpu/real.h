// Real convolutions and max-pooling of float32 maps with their channels last, for one instruction set: a source defines
// ISA and includes this. Products may be fused with the addition, so sums depend on the instruction set in their last
// bits; a maximum does not.
#pragma once
#include <algorithm>

#include "half.h"
#include "real_kernels.h"

namespace esbnn {
namespace ISA {

// Pixels and blocks of a register tile: as many sums as registers hold beside the weights.
#if defined(__AVX512F__)
constexpr int TILE_PIXELS = 5, TILE_BLOCKS = 4;
#elif defined(__AVX2__) || defined(__ARM_NEON)
constexpr int TILE_PIXELS = 6, TILE_BLOCKS = 1;
#else
constexpr int TILE_PIXELS = 2, TILE_BLOCKS = 1;
#endif

// P pixels times R blocks; `lanes` filters of the last block are there, weights of a tap are `step` values apart.
template <int P, int R>
static void tile(const RealConv &c, const float *x, const float *weights, int64_t step, const float *bias, int lanes,
                 float *y) {
  Floats sum[P][R];
  for (int p = 0; p < P; p++)
    for (int r = 0; r < R; r++) sum[p][r] = load_vector<float>(bias + r * LANES);
  for (int64_t k = 0; k < c.taps; k++, weights += step) {
    const float *at = x + c.places[k];
    Floats w[R];
    for (int r = 0; r < R; r++) w[r] = load_vector<float>(weights + r * LANES);
    for (int p = 0; p < P; p++) {
      const float value = at[p * c.pixel_step];
      for (int r = 0; r < R; r++)
        for (int i = 0; i < PARTS; i++) sum[p][r].of[i] += w[r].of[i] * value;
    }
  }
  for (int p = 0; p < P; p++)
    for (int r = 0; r < R; r++)
      store(y, p * c.filters + r * LANES, FLOAT32, r == R - 1 ? lanes : LANES, sum[p][r]);
}

using Tile = void (*)(const RealConv &, const float *, const float *, int64_t, const float *, int, float *);
struct Tiles {
  Tile of[TILE_BLOCKS + 1][TILE_PIXELS + 1];
  Tiles() { blocks<TILE_BLOCKS>(); }

private:
  template <int R> void blocks() {
    if constexpr (R > 0) pixels<R, TILE_PIXELS>(), blocks<R - 1>();
  }
  template <int R, int P> void pixels() {
    if constexpr (P > 0) of[R][P] = tile<P, R>, pixels<R, P - 1>();
  }
};

// `lines` rows of `pixels` output pixels: inputs `line_step` values apart, outputs next to each other.
static void conv(const RealConv &c, const float *x, int64_t line_step, int64_t lines, int64_t pixels, float *y) {
  static const Tiles tiles;
  const int64_t blocks = (c.filters + LANES - 1) / LANES, parts = (pixels + TILE_PIXELS - 1) / TILE_PIXELS;
  for (int64_t b = 0; b < blocks; b += TILE_BLOCKS) {
    const int64_t row = b / ROW_BLOCKS * ROW_BLOCKS, wide = blocks - row < ROW_BLOCKS ? blocks - row : ROW_BLOCKS;
    const int64_t count = row + wide - b < TILE_BLOCKS ? row + wide - b : TILE_BLOCKS;
    const int64_t left = c.filters - (b + count - 1) * LANES;
    const int lanes = left < LANES ? int(left) : LANES;
    const float *weights = c.weights + (row * c.taps + b - row) * LANES;
    for (int64_t line = 0; line < lines; line++)
      for (int64_t part = 0; part < parts; part++) { // of nearly equal width
        const int64_t first = part * pixels / parts, next = (part + 1) * pixels / parts;
        tiles.of[count][next - first](c, x + line * line_step + first * c.pixel_step, weights, wide * LANES,
                                      c.bias + b * LANES, lanes, y + (line * pixels + first) * c.filters + b * LANES);
      }
  }
}

// The largest values of R blocks of channels in a window; as torch: the first of equals, and NaN once there is one.
template <int R>
static void most(const RealPool &c, const float *x, int64_t rows, int64_t pixels, int64_t channel, int lanes, float *y) {
  Floats best[R];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < PARTS; i++) best[r].of[i] = Floats{}.of[i] - __builtin_inff();
  for (int64_t row = 0; row < rows; row++, x += c.in_w * c.channels)
    for (int64_t pixel = 0; pixel < pixels; pixel++)
      for (int r = 0; r < R; r++) {
        const float *at = x + pixel * c.channels + channel + r * LANES;
        const Floats value = R > 1 || lanes == LANES ? load_vector<float>(at) : load_some<float>(at, lanes);
        for (int i = 0; i < PARTS; i++) {
          best[r].of[i] = value.of[i] > best[r].of[i] ? value.of[i] : best[r].of[i];
          best[r].of[i] = value.of[i] != value.of[i] ? value.of[i] : best[r].of[i];
        }
      }
  for (int r = 0; r < R; r++, channel += LANES)
    for (int64_t copy = 0; copy < c.copies; copy++) {
      const int64_t at = copy * c.channels + channel;
      Floats out = best[r];
      if (c.scale) out = out * load(c.scale, at, FLOAT32, lanes) + load(c.offset, at, FLOAT32, lanes);
      store(y, at, FLOAT32, lanes, out);
    }
}

// One row of output pixels; x begins with row `base` of the image.
static void pool(const RealPool &c, const float *x, int64_t base, int64_t out_row, float *y) {
  constexpr int together = 4;
  const int64_t top = out_row * c.stride_h - c.pad_h, from_h = top < 0 ? 0 : top;
  const int64_t rows = (top + c.kernel_h < c.in_h ? top + c.kernel_h : c.in_h) - from_h;
  for (int64_t column = 0; column < c.out_w; column++, y += c.copies * c.channels) {
    const int64_t left = column * c.stride_w - c.pad_w, from_w = left < 0 ? 0 : left;
    const int64_t pixels = (left + c.kernel_w < c.in_w ? left + c.kernel_w : c.in_w) - from_w;
    const float *at = x + ((from_h - base) * c.in_w + from_w) * c.channels;
    int64_t channel = 0;
    for (; channel + together * LANES <= c.channels; channel += together * LANES)
      most<together>(c, at, rows, pixels, channel, LANES, y);
    for (; channel < c.channels; channel += LANES)
      most<1>(c, at, rows, pixels, channel, c.channels - channel < LANES ? int(c.channels - channel) : LANES, y);
  }
}

// One row of windows' largest values, or their smallest for copies of a channel with a negative sign; channels are whole
// blocks. False where the size of one is below `least`, and for values that are not finite.
template <bool BOTH>
static bool extremes_of(const RealPool &c, const float *sign, const float *least, const float *x, int64_t out_row, float *y) {
  const int64_t top = out_row * c.stride_h - c.pad_h, from_h = top < 0 ? 0 : top;
  const int64_t to_h = top + c.kernel_h < c.in_h ? top + c.kernel_h : c.in_h;
  Floats odd{}; // not 0 as soon as something is wrong
  for (int64_t column = 0; column < c.out_w; column++, y += c.copies * c.channels) {
    const int64_t left = column * c.stride_w - c.pad_w, from_w = left < 0 ? 0 : left;
    const int64_t to_w = left + c.kernel_w < c.in_w ? left + c.kernel_w : c.in_w;
    for (int64_t channel = 0; channel < c.channels; channel += LANES) {
      Floats high = load_vector<float>(x + (from_h * c.in_w + from_w) * c.channels + channel), low = high;
      for (int64_t row = from_h; row < to_h; row++)
        for (int64_t place = from_w; place < to_w; place++) {
          const Floats v = load_vector<float>(x + (row * c.in_w + place) * c.channels + channel);
          for (int i = 0; i < PARTS; i++) {
            high.of[i] = v.of[i] > high.of[i] ? v.of[i] : high.of[i];
            if (BOTH) low.of[i] = v.of[i] < low.of[i] ? v.of[i] : low.of[i];
            odd.of[i] += v.of[i] * 0.0f;
          }
        }
      for (int64_t at = channel; at < c.copies * c.channels; at += c.channels) {
        const Floats s = load_vector<float>(sign + at), few = load_vector<float>(least + at);
        Floats out = high;
        for (int i = 0; i < PARTS; i++) {
          if (BOTH) out.of[i] = s.of[i] < 0.0f ? low.of[i] : high.of[i];
          const auto size = out.of[i] < 0.0f ? -out.of[i] : out.of[i];
          odd.of[i] = size < few.of[i] ? s.of[i] : odd.of[i];
        }
        store_vector(y + at, out);
      }
    }
  }
  float found[LANES];
  store_vector(found, odd);
  for (const float f : found)
    if (!(f == 0)) return false;
  return true;
}

static bool extremes(const RealPool &c, const float *sign, const float *least, const float *x, int64_t out_row, float *y) {
  bool both = false;
  for (int64_t at = 0; at < c.copies * c.channels; at++) both |= sign[at] < 0;
  return (both ? extremes_of<true> : extremes_of<false>)(c, sign, least, x, out_row, y);
}

// One row of means over windows, of the pixels of the image alone.
static void average(const RealPool &c, const float *x, int64_t out_row, float *y) {
  const int64_t top = out_row * c.stride_h - c.pad_h, from_h = top < 0 ? 0 : top;
  const int64_t to_h = top + c.kernel_h < c.in_h ? top + c.kernel_h : c.in_h;
  for (int64_t column = 0; column < c.out_w; column++, y += c.channels) {
    const int64_t left = column * c.stride_w - c.pad_w, from_w = left < 0 ? 0 : left;
    const int64_t to_w = left + c.kernel_w < c.in_w ? left + c.kernel_w : c.in_w;
    const float count = float((to_h - from_h) * (to_w - from_w));
    for (int64_t channel = 0; channel < c.channels; channel += LANES) {
      const int lanes = c.channels - channel < LANES ? int(c.channels - channel) : LANES;
      Floats total{};
      for (int64_t row = from_h; row < to_h; row++)
        for (int64_t place = from_w; place < to_w; place++)
          total = total + load(x, (row * c.in_w + place) * c.channels + channel, FLOAT32, lanes);
      for (int i = 0; i < PARTS; i++) total.of[i] = total.of[i] / count;
      store(y, channel, FLOAT32, lanes, total);
    }
  }
}

static void tail(const RealTail &c, const float *x, const float *gate, const float *factor, const float *residual,
                 int64_t pixels, float *y) {
  const int64_t all = c.copies * c.channels;
  for (int64_t pixel = 0; pixel < pixels; pixel++, x += c.channels)
    for (int64_t copy = 0; copy < c.copies; copy++)
      for (int64_t channel = 0; channel < c.channels; channel += LANES) {
        const int lanes = c.channels - channel < LANES ? int(c.channels - channel) : LANES;
        const int64_t j = copy * c.channels + channel, at = pixel * all + j;
        const auto of = [&](const float *from, int64_t place) { return load(from, place, FLOAT32, lanes); };
        Floats v = of(x, channel);
        if (gate) v = v * of(gate, j);
        if (factor) v = v * of(factor, at);
        if (c.scale) v = v * of(c.scale, j) + of(c.bias, j);
        if (c.slope) v = positive_or(v, v * of(c.slope, j));
        if (residual) v = v + of(residual, at);
        store(y, at, FLOAT32, lanes, v);
      }
}

// Up to four blocks of channels at once, so that additions do not wait for each other.
static void sum(const float *x, int64_t pixels, int64_t channels, float *to) {
  for (int64_t first = 0; first < channels; first += 4 * LANES) {
    Floats total[4]{};
    const int64_t blocks = (std::min<int64_t>(channels - first, 4 * LANES) + LANES - 1) / LANES;
    const int left = int(std::min<int64_t>(channels - first - (blocks - 1) * LANES, LANES));
    for (int64_t pixel = 0; pixel < pixels; pixel++)
      for (int64_t b = 0; b < blocks; b++) {
        const int lanes = b == blocks - 1 ? left : LANES;
        total[b] = total[b] + load(x, pixel * channels + first + b * LANES, FLOAT32, lanes);
      }
    for (int64_t b = 0; b < blocks; b++) store(to, first + b * LANES, FLOAT32, b == blocks - 1 ? left : LANES, total[b]);
  }
}

} // namespace ISA
} // namespace esbnn
