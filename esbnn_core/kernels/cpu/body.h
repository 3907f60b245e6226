// The part of a kernel that is the same on every instruction set: walking pixels, border classes, the epilogue.
// A source that includes it has defined in namespace esbnn::ISA:
//   template <int P> void differing(const uint32_t *a, int64_t pixel_step, const int64_t *taps, int64_t tap_count,
//                                   int64_t words, const uint32_t *lanes, int32_t (*out)[LANES]);
//     out[p][l] = number of differing bits between pixel p and filter l over all taps
//   unsigned not_negative(const Floats &y);   bit l = (y[l] >= 0)
// Built with -ffp-contract=off: every step of the epilogue is rounded on its own, because a sign follows and another
// rounding turns it at ties.
#include <cstring>
#include <vector>

namespace esbnn {
namespace ISA {

using Tile = void (*)(const uint32_t *, int64_t, const int64_t *, int64_t, int64_t, const uint32_t *,
                      int32_t (*)[LANES]);
static const Tile tiles[MAX_PIXELS + 1] = {nullptr,      differing<1>, differing<2>, differing<3>, differing<4>,
                                           differing<5>, differing<6>, differing<7>, differing<8>};

// Per-channel parameters of one block in one copy, tails filled with 0.
struct Channels {
  Floats scale, bias, prelu, in, slope, out, sign;
};

static void take(Floats &to, const float *from, int64_t first, int lanes) {
  to = Floats{};
  if (from) std::memcpy(&to, from + first, lanes * sizeof(float));
}

// Bitmask of the taps k for which place*stride + k*dilation - pad lies inside [0, size).
static uint64_t inside(int64_t place, int64_t stride, int64_t dilation, int64_t pad, int64_t size, int64_t kernel) {
  uint64_t mask = 0;
  for (int64_t k = 0; k < kernel; k++) {
    const int64_t at = place * stride + k * dilation - pad;
    mask |= uint64_t(at >= 0 && at < size) << k;
  }
  return mask;
}

// base[l] - 2 * differing is the sum: values inside the image, and the ring's own 1-bits undone where it is skipped.
static void border(const Conv &c, const int32_t *ones, uint64_t rows, uint64_t columns, int32_t *base) {
  for (int l = 0; l < LANES; l++) base[l] = 0;
  for (int64_t i = 0; i < c.kernel_h; i++)
    for (int64_t j = 0; j < c.kernel_w; j++, ones += LANES) {
      if (!c.skip_ring || ((rows >> i & 1) && (columns >> j & 1)))
        for (int l = 0; l < LANES; l++) base[l] += int32_t(c.per_tap);
      else
        for (int l = 0; l < LANES; l++) base[l] += 2 * ones[l];
    }
}

// Sets bits [first, first + lanes) of a pixel's packed channels from `mask`; slow places share words between threads.
static void put_signs(uint32_t *pixel, const Epilogue &e, int64_t channels, int64_t first, int lanes, unsigned mask) {
  const int64_t size = channels / e.sign_groups, within = first % size;
  if (lanes == LANES && within % LANES == 0 && within + LANES <= size) {
    reinterpret_cast<uint16_t *>(pixel + first / size * e.sign_words)[within / LANES] = uint16_t(mask);
    return;
  }
  for (int l = 0; l < lanes; l++)
    if (mask >> l & 1) {
      const int64_t at = (first + l) % size;
      uint32_t *word = pixel + (first + l) / size * e.sign_words + at / 32;
      __atomic_fetch_or(word, uint32_t(1) << at % 32, __ATOMIC_RELAXED);
    }
}

// All copies of one pixel's block: sums exact, y and bits at the pixel's first channel.
template <bool WHOLE>
static inline void finish(const Epilogue &e, const Channels *parameters, const int32_t *sums, int64_t pixel,
                          int64_t channels, int64_t filters, int64_t first, int lanes) {
  Ints exact;
  std::memcpy(&exact, sums, sizeof(exact));
  const Floats total = __builtin_convertvector(exact, Floats);
  const size_t bytes = WHOLE ? sizeof(Floats) : lanes * sizeof(float);
  for (int64_t copy = 0; copy < e.copies; copy++) {
    const int64_t channel = copy * filters + first, at = pixel * channels + channel;
    if (e.sums) {
      std::memcpy(e.sums + at, sums, bytes);
      continue;
    }
    const Channels &p = parameters[copy];
    Floats y = total * p.scale;
    y = y + p.bias;
    if (e.prelu) y = y > 0 ? y : p.prelu * y;
    if (e.residual) {
      Floats residual{};
      std::memcpy(&residual, e.residual + at, bytes);
      y = y + residual;
    }
    if (e.rprelu) {
      y = y + p.in;
      y = y > 0 ? y : p.slope * y;
      y = y + p.out;
    }
    std::memcpy(e.y + at, &y, bytes);
    if (e.bits) {
      if (e.sign_shift) y = y + p.sign;
      put_signs(e.bits + pixel * e.sign_groups * e.sign_words, e, channels, channel, lanes, not_negative(y));
    }
  }
}

static void conv(const Conv &c, const Epilogue &e, const Task &t) {
  const int64_t channels = e.copies * c.filters;
  const int64_t first = t.group * c.group_filters() + t.block * LANES;
  const int64_t left = c.group_filters() - t.block * LANES;
  const int lanes = left < LANES ? int(left) : LANES;
  std::vector<Channels> parameters(e.sums ? 0 : e.copies);
  for (size_t copy = 0; copy < parameters.size(); copy++) {
    const int64_t channel = int64_t(copy) * c.filters + first;
    Channels &p = parameters[copy];
    take(p.scale, e.scale, channel, lanes), take(p.bias, e.bias, channel, lanes);
    take(p.prelu, e.prelu, channel, lanes), take(p.sign, e.sign_shift, channel, lanes);
    take(p.in, e.rprelu, channel, lanes);
    take(p.slope, e.rprelu ? e.rprelu + channels : nullptr, channel, lanes);
    take(p.out, e.rprelu ? e.rprelu + 2 * channels : nullptr, channel, lanes);
  }

  const int64_t pixel_words = c.groups * c.words, taps = c.taps();
  std::vector<int64_t> offsets(taps);
  for (int64_t i = 0; i < c.kernel_h; i++)
    for (int64_t j = 0; j < c.kernel_w; j++)
      offsets[i * c.kernel_w + j] = (i * c.dilation_h * c.padded_w + j * c.dilation_w) * pixel_words;
  const int64_t block = t.group * c.blocks + t.block;
  const uint32_t *lanes_of = c.lanes + block * taps * c.words * LANES;
  const int32_t *ones = c.tap_ones + block * taps * LANES;

  // columns with the same taps inside the image share a base; all of them where the ring counts
  const int64_t width = t.column1 - t.column0;
  std::vector<uint64_t> masks;
  std::vector<int> kind(width);
  for (int64_t x = 0; x < width; x++) {
    const uint64_t mask = inside(t.column0 + x, c.stride_w, c.dilation_w, c.pad_w, c.in_w, c.kernel_w);
    size_t k = 0;
    while (k < masks.size() && masks[k] != mask) k++;
    if (k == masks.size()) masks.push_back(mask);
    kind[x] = int(k);
  }
  std::vector<int32_t> bases(masks.size() * LANES);
  uint64_t rows_before = 0;
  bool filled = false;
  const int64_t parts = (width + MAX_PIXELS - 1) / MAX_PIXELS; // of nearly equal width: 14 pixels are 7 + 7
  alignas(64) int32_t count[MAX_PIXELS][LANES];

  for (int64_t y = t.row0; y < t.row1; y++) {
    const uint64_t rows = inside(y, c.stride_h, c.dilation_h, c.pad_h, c.in_h, c.kernel_h);
    if (!filled || rows != rows_before)
      for (size_t k = 0; k < masks.size(); k++) border(c, ones, rows, masks[k], &bases[k * LANES]);
    filled = true, rows_before = rows;
    const uint32_t *row = c.activations +
                          ((t.image * c.padded_h + y * c.stride_h) * c.padded_w) * pixel_words + t.group * c.words;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t x0 = part * width / parts, x1 = (part + 1) * width / parts;
      const int64_t step = c.stride_w * pixel_words;
      tiles[x1 - x0](row + (t.column0 + x0) * step, step, offsets.data(), taps, c.words, lanes_of, count);
      for (int64_t x = x0; x < x1; x++) {
        int32_t *sums = count[x - x0];
        const int32_t *base = &bases[kind[x] * LANES];
        for (int l = 0; l < LANES; l++) sums[l] = base[l] - 2 * sums[l];
        const int64_t pixel = (t.image * c.out_h + y) * c.out_w + t.column0 + x;
        if (lanes == LANES)
          finish<true>(e, parameters.data(), sums, pixel, channels, c.filters, first, LANES);
        else
          finish<false>(e, parameters.data(), sums, pixel, channels, c.filters, first, lanes);
      }
    }
  }
}

// Bits of up to LANES values next to each other.
static inline uint32_t signs(const float *x, const float *shift, int64_t count) {
  const size_t bytes = (count < LANES ? count : LANES) * sizeof(float);
  Floats y{}, add{};
  std::memcpy(&y, x, bytes);
  if (shift) {
    std::memcpy(&add, shift, bytes);
    y = y + add;
  }
  const unsigned mask = not_negative(y);
  return count < LANES ? mask & ((1u << count) - 1) : mask;
}

// Pixels whose channels are next to each other: a word is two vectors of channels.
static void pack_inner(const Pack &p, int64_t pixel0, int64_t pixel1) {
  const int64_t size = p.channels / p.groups, words = (size + 31) / 32;
  for (int64_t pixel = pixel0; pixel < pixel1; pixel++)
    for (int64_t g = 0; g < p.groups; g++) {
      const float *x = p.x + pixel * p.pixel_step + g * size, *shift = p.shift ? p.shift + g * size : nullptr;
      uint32_t *to = p.bits + (pixel * p.groups + g) * words;
      int64_t c = 0;
      for (; c + 32 <= size; c += 32)
        to[c / 32] = signs(x + c, shift ? shift + c : shift, LANES) |
                     signs(x + c + LANES, shift ? shift + c + LANES : shift, LANES) << LANES;
      if (c < size) {
        uint32_t word = signs(x + c, shift ? shift + c : shift, size - c);
        if (c + LANES < size)
          word |= signs(x + c + LANES, shift ? shift + c + LANES : shift, size - c - LANES) << LANES;
        to[c / 32] = word;
      }
    }
}

// Pixels next to each other: a vector holds one channel of LANES pixels, and the words of these pixels grow bit by bit.
static void pack_outer(const Pack &p, int64_t pixel0, int64_t pixel1) {
  const int64_t size = p.channels / p.groups, words = (size + 31) / 32;
  for (int64_t pixel = pixel0; pixel < pixel1; pixel += LANES) {
    const int64_t here = pixel1 - pixel < LANES ? pixel1 - pixel : LANES;
    for (int64_t g = 0; g < p.groups; g++)
      for (int64_t w = 0; w < words; w++) {
        const int64_t c0 = g * size + 32 * w, bits = size - 32 * w < 32 ? size - 32 * w : 32;
        const float *x = p.x + pixel + c0 * p.channel_step;
        Ints column{};
        for (int64_t b = 0; b < bits; b++) {
          Floats y{};
          if (here == LANES)
            std::memcpy(&y, x + b * p.channel_step, sizeof(y));
          else
            std::memcpy(&y, x + b * p.channel_step, here * sizeof(float));
          if (p.shift) y = y + p.shift[c0 + b];
          column |= (y >= 0) & int32_t(uint32_t(1) << b);
        }
        for (int64_t l = 0; l < here; l++) p.bits[((pixel + l) * p.groups + g) * words + w] = uint32_t(column[l]);
      }
  }
}

static void pack(const Pack &p, int64_t pixel0, int64_t pixel1) {
  p.channel_step == 1 ? pack_inner(p, pixel0, pixel1) : pack_outer(p, pixel0, pixel1);
}

} // namespace ISA
} // namespace esbnn
