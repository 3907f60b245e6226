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

// The steps of an epilogue as template flags: a branch for each in the innermost loop costs more than the steps.
enum Step { PRELU = 1, RESIDUAL = 2, RPRELU = 4, SIGNS = 8, PARTIAL = 16, STEPS = 32 };

struct Place {
  int64_t channels, filters, first; // of the output, of one copy, of this block
  int lanes;                        // filters of this block
};

// All copies of one block of `pixels` neighbours, from their exact sums.
template <int FLAGS>
static void finish(const Epilogue &e, const Channels *parameters, const Place &at, const int32_t (*sums)[LANES],
                   int64_t pixel, int64_t pixels) {
  const int lanes = FLAGS & PARTIAL ? at.lanes : LANES;
  const size_t bytes = lanes * sizeof(float);
  for (int64_t copy = 0; copy < e.copies; copy++) {
    const int64_t channel = copy * at.filters + at.first;
    const Channels p = parameters[copy];
    for (int64_t i = 0; i < pixels; i++) {
      const int64_t place = (pixel + i) * at.channels + channel;
      Ints exact;
      std::memcpy(&exact, sums[i], sizeof(exact));
      Floats y = __builtin_convertvector(exact, Floats) * p.scale;
      y = y + p.bias;
      if (FLAGS & PRELU) y = y > 0 ? y : p.prelu * y;
      if (FLAGS & RESIDUAL) {
        Floats residual{};
        std::memcpy(&residual, e.residual + place, bytes);
        y = y + residual;
      }
      if (FLAGS & RPRELU) {
        y = y + p.in;
        y = y > 0 ? y : p.slope * y;
        y = y + p.out;
      }
      std::memcpy(e.y + place, &y, bytes);
      if (FLAGS & SIGNS) {
        if (e.sign_shift) y = y + p.sign;
        uint32_t *bits = e.bits + (pixel + i) * e.sign_groups * e.sign_words;
        put_signs(bits, e, at.channels, channel, lanes, not_negative(y));
      }
    }
  }
}

// The bare sums in place of all steps.
static void copy_sums(const Epilogue &e, const Channels *, const Place &at, const int32_t (*sums)[LANES], int64_t pixel,
                      int64_t pixels) {
  for (int64_t copy = 0; copy < e.copies; copy++)
    for (int64_t i = 0; i < pixels; i++)
      std::memcpy(e.sums + (pixel + i) * at.channels + copy * at.filters + at.first, sums[i],
                  at.lanes * sizeof(int32_t));
}

using Finish = void (*)(const Epilogue &, const Channels *, const Place &, const int32_t (*)[LANES], int64_t, int64_t);

template <int FLAGS> struct Finishers {
  static void fill(Finish *table) {
    table[FLAGS] = finish<FLAGS>;
    Finishers<FLAGS - 1>::fill(table);
  }
};
template <> struct Finishers<-1> {
  static void fill(Finish *) {}
};

static Finish finisher(const Epilogue &e, int lanes) {
  static const struct Table {
    Finish of[STEPS];
    Table() { Finishers<STEPS - 1>::fill(of); }
  } table;
  if (e.sums) return copy_sums;
  return table.of[(e.prelu ? PRELU : 0) | (e.residual ? RESIDUAL : 0) | (e.rprelu ? RPRELU : 0) |
                  (e.bits ? SIGNS : 0) | (lanes < LANES ? PARTIAL : 0)];
}

static void conv(const Conv &c, const Epilogue &e, const Task &t) {
  const int64_t channels = e.copies * c.filters;
  const int64_t first = t.group * c.group_filters() + t.block * LANES;
  const int64_t left = c.group_filters() - t.block * LANES;
  const int lanes = left < LANES ? int(left) : LANES;
  const Place at{channels, c.filters, first, lanes};
  const Finish finish_with = finisher(e, lanes);
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

  // taps side by side in memory are one run of words
  const int64_t pixel_words = c.groups * c.words, taps = c.taps();
  const bool joined = c.groups == 1 && c.dilation_w == 1;
  const int64_t runs = joined ? c.kernel_h : taps, run_words = joined ? c.kernel_w * c.words : c.words;
  std::vector<int64_t> offsets(runs);
  for (int64_t run = 0; run < runs; run++) {
    const int64_t i = joined ? run : run / c.kernel_w, j = joined ? 0 : run % c.kernel_w;
    offsets[run] = (i * c.dilation_h * c.padded_w + j * c.dilation_w) * pixel_words;
  }
  const int64_t block = t.group * c.blocks + t.block;
  const uint32_t *lanes_of = c.lanes + block * taps * c.words * LANES;
  const int32_t *ones = c.tap_ones + block * taps * LANES;

  const int64_t width = t.column1 - t.column0;
  std::vector<int32_t> bases(c.kinds * LANES);
  uint64_t rows_before = 0;
  bool filled = false;
  const int64_t parts = (width + MAX_PIXELS - 1) / MAX_PIXELS; // of nearly equal width: 14 pixels are 7 + 7
  alignas(64) int32_t count[MAX_PIXELS][LANES];

  for (int64_t y = t.row0; y < t.row1; y++) {
    const uint64_t rows = inside(y, c.stride_h, c.dilation_h, c.pad_h, c.in_h, c.kernel_h);
    if (!filled || rows != rows_before)
      for (int k = 0; k < c.kinds; k++) border(c, ones, rows, c.column_masks[k], &bases[k * LANES]);
    filled = true, rows_before = rows;
    const uint32_t *row = c.activations +
                          ((t.image * c.padded_h + y * c.stride_h) * c.padded_w) * pixel_words + t.group * c.words;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t x0 = part * width / parts, x1 = (part + 1) * width / parts;
      const int64_t step = c.stride_w * pixel_words;
      tiles[x1 - x0](row + (t.column0 + x0) * step, step, offsets.data(), runs, run_words, lanes_of, count);
      for (int64_t x = x0; x < x1; x++) {
        const int32_t *base = &bases[c.column_kind ? c.column_kind[t.column0 + x] * LANES : 0];
        for (int l = 0; l < LANES; l++) count[x - x0][l] = base[l] - 2 * count[x - x0][l];
      }
      const int64_t pixel = (t.image * c.out_h + y) * c.out_w + t.column0 + x0;
      finish_with(e, parameters.data(), at, count, pixel, x1 - x0);
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
        uint32_t words_of[LANES];
        std::memcpy(words_of, &column, sizeof(words_of));
        for (int64_t l = 0; l < here; l++) p.bits[((pixel + l) * p.groups + g) * words + w] = words_of[l];
      }
  }
}

static void pack(const Pack &p, int64_t pixel0, int64_t pixel1) {
  p.channel_step == 1 ? pack_inner(p, pixel0, pixel1) : pack_outer(p, pixel0, pixel1);
}

} // namespace ISA
} // namespace esbnn
