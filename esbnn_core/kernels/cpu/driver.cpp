// Behind the C interface (interface.h): choice of the path by processor, the padded copy of the activations, the
// weights in lanes, and the division of the work among threads. The caller has checked the arguments.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "amx.h"
#include "conv.h"
#include "interface.h"
#include "scratch.h"
#include "workers.h"

namespace {

using namespace esbnn;

// Every path, best first. Which of the two AVX-512 paths is better depends on the maker's popcount.
struct Known {
  const Kernels *of[8];
  int count = 0;
  Known() {
#ifdef ESBNN_X86
    __builtin_cpu_init();
    const bool amd = __builtin_cpu_is("amd");
    of[count++] = &amx_kernels;
    of[count++] = amd ? &avx512_popcnt_kernels : &avx512_carry_kernels;
    of[count++] = amd ? &avx512_carry_kernels : &avx512_popcnt_kernels;
    of[count++] = &avx2_kernels;
#endif
#ifdef ESBNN_NEON
    of[count++] = &neon_kernels;
#endif
    of[count++] = &portable_kernels;
  }
};

const Known &known() {
  static const Known all;
  return all;
}

bool serves(const Kernels *k) {
#ifdef ESBNN_X86
  static const bool amx = amx_kernels.conv && amx_allowed();
  if (k == &amx_kernels && !amx) return false;
  if (k == &amx_kernels || k == &avx512_popcnt_kernels || k == &avx512_carry_kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vpopcntdq");
  if (k == &avx2_kernels) return __builtin_cpu_supports("avx2");
#endif
#ifdef ESBNN_NEON
  if (k == &neon_kernels) return true; // part of every 64-bit Arm processor
#endif
  return k == &portable_kernels;
}

thread_local Scratch scratch; // the padded activations

int64_t even(int64_t words) { return words + words % 2; }

// Calls line(n, y, to) for every row of the images inside the ring; `to` is the place of its first pixel, set to 0.
template <typename Line> void ringed(uint32_t *to, const Conv &c, const Workers &workers, const Line &line) {
  const int64_t pixel = c.groups * c.words, row = c.padded_w * pixel;
  spread(workers, c.images * c.padded_h, [&](int64_t i) {
    uint32_t *start = to + i * row;
    const int64_t inner = i % c.padded_h - c.pad_h;
    if (inner < 0 || inner >= c.in_h) {
      std::memset(start, 0, row * sizeof(uint32_t));
      return;
    }
    std::memset(start, 0, c.pad_w * pixel * sizeof(uint32_t));
    std::memset(start + (c.pad_w + c.in_w) * pixel, 0, c.pad_w * pixel * sizeof(uint32_t));
    line(i / c.padded_h, inner, start + c.pad_w * pixel);
  });
}

// One row of packed pixels, the words of a group padded from `words` to c.words.
void copy_row(const uint32_t *from, uint32_t *to, const Conv &c, int64_t words) {
  if (words == c.words) {
    std::memcpy(to, from, c.in_w * c.groups * words * sizeof(uint32_t));
    return;
  }
  for (int64_t i = 0; i < c.in_w * c.groups; i++, to += c.words, from += words) {
    std::memcpy(to, from, words * sizeof(uint32_t));
    to[words] = 0;
  }
}

const float *floats(void *p) { return static_cast<const float *>(p); }

} // namespace

API const char *esbnn_path(int i, int *usable) {
  if (i < 0 || i >= known().count) return nullptr;
  *usable = serves(known().of[i]);
  return known().of[i]->name;
}

API int esbnn_has_threads() {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}

API int esbnn_lengths(int which) { return which ? int(POINTER_LENGTH) : int(SHAPE_LENGTH); }

API int64_t esbnn_lane_words(int path, int64_t groups, int64_t filters, int64_t taps, int64_t words) {
  const int64_t blocks = (filters / groups + LANES - 1) / LANES, nibbles = known().of[path]->nibbles ? 4 * LANES : 0;
  return groups * taps * (blocks * LANES * (even(words) + 1) + (blocks + 1) / 2 * even(words) * nibbles);
}

API void esbnn_lanes(int path, const uint32_t *weight, int64_t groups, int64_t filters, int64_t taps, int64_t words,
                     uint32_t *out) {
  const int64_t own = filters / groups, blocks = (own + LANES - 1) / LANES, wide = even(words);
  const uint32_t *const lanes = out;
  int32_t *ones = reinterpret_cast<int32_t *>(out + groups * blocks * taps * wide * LANES);
  for (int64_t b = 0; b < groups * blocks; b++)
    for (int64_t t = 0; t < taps; t++) {
      int32_t count[LANES] = {};
      for (int64_t w = 0; w < wide; w++)
        for (int64_t l = 0; l < LANES; l++) {
          const int64_t in_group = b % blocks * LANES + l, filter = b / blocks * own + in_group;
          const bool real = in_group < own && w < words;
          const uint32_t word = real ? weight[(filter * taps + t) * words + w] : 0;
          count[l] += __builtin_popcount(word);
          *out++ = word;
        }
      for (int64_t l = 0; l < LANES; l++) *ones++ = count[l];
    }
  if (!known().of[path]->nibbles) return;
  uint8_t *to = reinterpret_cast<uint8_t *>(ones);
  for (int64_t g = 0; g < groups; g++)
    for (int64_t b = 0; b < blocks; b += 2)
      for (int64_t w = 0; w < taps * wide; w++)
        for (int shift = 0; shift < 32; shift += 4)
          for (int64_t l = 0; l < LANES; l++)
            for (int64_t both = b; both < b + 2; both++)
              *to++ = both < blocks ? lanes[((g * blocks + both) * taps * wide + w) * LANES + l] >> shift & 15 : 0;
}

API int esbnn_conv_in(int path, const int64_t *s, void *const *p, esbnn_run run, void *pool) {
  Conv c;
  c.images = s[IMAGES], c.in_h = s[IN_H], c.in_w = s[IN_W], c.out_h = s[OUT_H], c.out_w = s[OUT_W];
  c.kernel_h = s[KERNEL_H], c.kernel_w = s[KERNEL_W], c.stride_h = s[STRIDE_H], c.stride_w = s[STRIDE_W];
  c.pad_h = s[PAD_H], c.pad_w = s[PAD_W], c.dilation_h = s[DILATION_H], c.dilation_w = s[DILATION_W];
  c.groups = s[GROUPS], c.words = even(s[WORDS]), c.filters = s[FILTERS];
  c.blocks = (c.group_filters() + LANES - 1) / LANES;
  c.per_tap = s[PER_TAP], c.skip_ring = s[SKIP_RING] != 0;
  const Kernels *kernels = known().of[path];
  const bool real = s[X_REAL] != 0;
  const bool pointwise = c.taps() == 1 && c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
  if (pointwise) { // the pixels are one long row, or one an image while x is real
    c.out_w *= c.out_h * (real ? 1 : c.images), c.in_w = c.out_w;
    c.images = real ? c.images : 1;
    c.in_h = c.out_h = 1;
  }
  c.padded_h = c.in_h + 2 * c.pad_h, c.padded_w = c.in_w + 2 * c.pad_w;
  c.lanes = static_cast<const uint32_t *>(p[LANES_OF]);
  c.tap_ones = reinterpret_cast<const int32_t *>(c.lanes + c.groups * c.blocks * c.taps() * c.words * LANES);
  c.nibbles = kernels->nibbles ? reinterpret_cast<const uint8_t *>(c.tap_ones + c.groups * c.blocks * c.taps() * LANES)
                               : nullptr;
  const int threads = int(s[THREADS]);
  const Workers workers{threads, run, pool};
  const uint32_t *x = static_cast<const uint32_t *>(p[X]);
  if (real || c.pad_h || c.pad_w || c.words != s[WORDS]) {
    uint32_t *to = scratch.need<uint32_t>(c.images * c.padded_h * c.padded_w * c.groups * c.words);
    if (!to) return 1;
    if (real) {
      const Pack pack{p[X], Kind(s[X_KIND]), floats(p[SHIFT]), c.per_tap * c.groups, c.groups, c.words,
                      s[X_PIXEL_STEP], s[X_CHANNEL_STEP]};
      const size_t bytes = pack.kind == FLOAT32 ? 4 : 2;
      ringed(to, c, workers, [&](int64_t n, int64_t y, uint32_t *line) {
        Pack image = pack;
        image.x = static_cast<const char *>(p[X]) + n * s[X_IMAGE_STEP] * bytes;
        kernels->pack(image, y * c.in_w, (y + 1) * c.in_w, line);
      });
    } else {
      ringed(to, c, workers, [&](int64_t n, int64_t y, uint32_t *line) {
        copy_row(x + (n * c.in_h + y) * c.in_w * c.groups * s[WORDS], line, c, s[WORDS]);
      });
    }
    x = to;
    if (pointwise) c.out_w *= c.images, c.in_w = c.padded_w = c.out_w, c.images = 1;
  }
  c.activations = x;
  std::vector<uint64_t> masks;
  std::vector<int> kind;
  if (c.skip_ring && c.pad_w)
    for (int64_t place = 0; place < c.out_w; place++) {
      const uint64_t mask = inside(place, c.stride_w, c.dilation_w, c.pad_w, c.in_w, c.kernel_w);
      size_t k = 0;
      while (k < masks.size() && masks[k] != mask) k++;
      if (k == masks.size()) masks.push_back(mask);
      kind.push_back(int(k));
    }
  else
    masks.push_back(~uint64_t(0));
  c.column_masks = masks.data(), c.kinds = int(masks.size()), c.column_kind = kind.empty() ? nullptr : kind.data();

  Epilogue e;
  e.copies = s[COPIES], e.sign_groups = s[SIGN_GROUPS], e.sign_words = s[SIGN_WORDS];
  e.scale = floats(p[SCALE]), e.bias = floats(p[BIAS]), e.prelu = floats(p[PRELU]);
  e.rprelu = floats(p[RPRELU]), e.sign_shift = floats(p[SIGN_SHIFT]);
  e.residual = p[RESIDUAL], e.residual_kind = Kind(s[RESIDUAL_KIND]), e.y_kind = Kind(s[Y_KIND]);
  e.y = p[Y], e.sums = static_cast<int32_t *>(p[SUMS]), e.bits = static_cast<uint32_t *>(p[BITS]);

  // The weights of a share's blocks stay in the second cache. Rows (or pieces of one long row) are split first, until
  // every thread has a few shares, then blocks, as many at once as the path's tiles take.
  const int64_t together = kernels->together, in_group = (c.blocks + together - 1) / together;
  const int64_t units = c.groups * in_group; // of blocks
  const int64_t unit_bytes = together * c.taps() * c.words * LANES * 4 * (kernels->nibbles ? 2 : 1), cache = 512 << 10;
  const auto start = [&](int64_t unit) { // its first block
    return unit / in_group * c.blocks + std::min(unit % in_group * together, c.blocks);
  };
  const bool by_column = c.out_h == 1;
  const int64_t extent = by_column ? (c.out_w + MAX_PIXELS - 1) / MAX_PIXELS : c.out_h;
  int64_t ranges = (units * unit_bytes + cache - 1) / cache, shares = 1;
  const int64_t most = together == 1 ? (units + 1) / 2 : units;
  if (threads > 1) {
    if (kernels->few_blocks) ranges = std::min(most, std::max(ranges, (4 * threads + c.images - 1) / c.images));
    shares = std::min(extent, (4 * threads + c.images * ranges - 1) / (c.images * ranges));
    if (c.images * ranges * shares < threads) ranges = (threads + c.images * shares - 1) / (c.images * shares);
  }
  ranges = std::max<int64_t>(1, std::min(ranges, most));
  std::atomic<int> failed{0};
  spread(workers, ranges * c.images * shares, [&](int64_t i) {
    const int64_t share = i % shares, n = i / shares % c.images, range = i / shares / c.images;
    const int64_t from = share * extent / shares, to = (share + 1) * extent / shares;
    Task t{n, start(range * units / ranges), start((range + 1) * units / ranges), 0, c.out_h, 0, c.out_w};
    if (by_column)
      t.column0 = from * MAX_PIXELS, t.column1 = std::min(to * MAX_PIXELS, c.out_w);
    else
      t.row0 = from, t.row1 = to;
    if (!kernels->conv(c, e, t)) failed = 1;
  });
  return failed;
}

API int esbnn_conv(int path, const int64_t *s, void *const *p) { return esbnn_conv_in(path, s, p, nullptr, nullptr); }

API void esbnn_pack(int path, const void *x, int kind, const float *shift, int64_t images, int64_t pixels,
                    int64_t channels, int64_t groups, int64_t image_step, int64_t pixel_step, int64_t channel_step,
                    uint32_t *bits, int threads) {
  const int64_t words = (channels / groups + 31) / 32, share = 256, shares = (pixels + share - 1) / share;
  const size_t bytes = kind == FLOAT32 ? 4 : 2;
  const Kernels *kernels = known().of[path];
  spread({threads}, images * shares, [&](int64_t i) {
    const int64_t n = i / shares, from = i % shares * share, to = std::min(from + share, pixels);
    const Pack p{static_cast<const char *>(x) + n * image_step * bytes, Kind(kind), shift, channels, groups, words,
                 pixel_step, channel_step};
    kernels->pack(p, from, to, bits + (n * pixels + from) * groups * words);
  });
}

API int64_t esbnn_spin(int path, int64_t words, int64_t times) {
  const Kernels *kernels = known().of[path];
  return kernels->spin ? kernels->spin(words, times) : 0;
}
