// The C interface that esbnn_core.kernels.native calls: dispatch by processor, the padded copy of the activations, the
// weights laid out by lanes, and the division of the work among threads. Arguments are checked on the Python side.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "conv.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

using namespace esbnn;

const Kernels *const known[] = {
#ifdef ESBNN_X86
    &avx512_kernels, &avx2_kernels,
#endif
    &portable_kernels};
constexpr int KNOWN = sizeof(known) / sizeof(known[0]);

bool serves(const Kernels *k) {
#ifdef ESBNN_X86
  __builtin_cpu_init();
  if (k == &avx512_kernels)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vpopcntdq");
  if (k == &avx2_kernels) return __builtin_cpu_supports("avx2");
#endif
  return k == &portable_kernels;
}

// One buffer a calling thread, kept between calls: the padded activations of a layer are small and come every call.
struct Scratch {
  void *data = nullptr;
  size_t bytes = 0;
  ~Scratch() { std::free(data); }
  uint32_t *need(size_t words) {
    if (words * 4 > bytes) {
      std::free(data);
      bytes = (words * 4 + 4095) & ~size_t(4095);
      data = std::aligned_alloc(64, bytes);
      if (!data) bytes = 0;
    }
    return static_cast<uint32_t *>(data);
  }
};
thread_local Scratch scratch;

int64_t even(int64_t words) { return words + words % 2; }

// (N, H, W, groups, words) -> (N, Hp, Wp, groups, even words), zeros around and behind
void pad_copy(const uint32_t *from, uint32_t *to, const Conv &c, int64_t words, int threads) {
  const int64_t pixel = c.groups * c.words, row = c.padded_w * pixel;
#pragma omp parallel for collapse(2) num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < c.images; n++)
    for (int64_t y = 0; y < c.padded_h; y++) {
      uint32_t *line = to + (n * c.padded_h + y) * row;
      const int64_t inner = y - c.pad_h;
      if (inner < 0 || inner >= c.in_h) {
        std::memset(line, 0, row * sizeof(uint32_t));
        continue;
      }
      const uint32_t *source = from + (n * c.in_h + inner) * c.in_w * c.groups * words;
      std::memset(line, 0, c.pad_w * pixel * sizeof(uint32_t));
      std::memset(line + (c.pad_w + c.in_w) * pixel, 0, c.pad_w * pixel * sizeof(uint32_t));
      if (words == c.words)
        std::memcpy(line + c.pad_w * pixel, source, c.in_w * pixel * sizeof(uint32_t));
      else
        for (int64_t i = 0; i < c.in_w * c.groups; i++) {
          uint32_t *at = line + c.pad_w * pixel + i * c.words;
          std::memcpy(at, source + i * words, words * sizeof(uint32_t));
          at[words] = 0;
        }
    }
}

// The operator as given: what a kernel's Conv is made from.
enum Shape {
  IMAGES, IN_H, IN_W, OUT_H, OUT_W, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
  GROUPS, WORDS, FILTERS, PER_TAP, SKIP_RING, COPIES, SIGN_GROUPS, SIGN_WORDS, THREADS, SHAPE_LENGTH
};
enum Pointer { X, LANES_OF, SCALE, BIAS, PRELU, RESIDUAL, RPRELU, SIGN_SHIFT, Y, SUMS, BITS, POINTER_LENGTH };

} // namespace

// Name of path i in the order of preference, or null past the last; *usable says whether this processor has it.
API const char *esbnn_path(int i, int *usable) {
  if (i < 0 || i >= KNOWN) return nullptr;
  *usable = serves(known[i]);
  return known[i]->name;
}

API int esbnn_lengths(int which) { return which ? int(POINTER_LENGTH) : int(SHAPE_LENGTH); }

// int32 words of the lane layout of a weight (O, taps, words): the lanes, then the 1-bits of every tap.
API int64_t esbnn_lane_words(int64_t groups, int64_t filters, int64_t taps, int64_t words) {
  const int64_t blocks = (filters / groups + LANES - 1) / LANES;
  return groups * blocks * taps * LANES * (even(words) + 1);
}

API void esbnn_lanes(const uint32_t *weight, int64_t groups, int64_t filters, int64_t taps, int64_t words,
                     uint32_t *out) {
  const int64_t own = filters / groups, blocks = (own + LANES - 1) / LANES, wide = even(words);
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
}

// 0, or 1 where memory is short.
API int esbnn_conv(int path, const int64_t *s, void *const *p) {
  Conv c;
  c.images = s[IMAGES], c.in_h = s[IN_H], c.in_w = s[IN_W], c.out_h = s[OUT_H], c.out_w = s[OUT_W];
  c.kernel_h = s[KERNEL_H], c.kernel_w = s[KERNEL_W], c.stride_h = s[STRIDE_H], c.stride_w = s[STRIDE_W];
  c.pad_h = s[PAD_H], c.pad_w = s[PAD_W], c.dilation_h = s[DILATION_H], c.dilation_w = s[DILATION_W];
  c.groups = s[GROUPS], c.words = even(s[WORDS]), c.filters = s[FILTERS];
  c.blocks = (c.group_filters() + LANES - 1) / LANES;
  c.per_tap = s[PER_TAP], c.skip_ring = s[SKIP_RING] != 0;
  const bool pointwise = c.taps() == 1 && c.stride_h == 1 && c.stride_w == 1 && c.pad_h == 0 && c.pad_w == 0;
  if (pointwise) { // positions of one long row
    c.out_w *= c.images * c.out_h, c.in_w = c.out_w;
    c.images = c.in_h = c.out_h = 1;
  }
  c.padded_h = c.in_h + 2 * c.pad_h, c.padded_w = c.in_w + 2 * c.pad_w;
  c.lanes = static_cast<const uint32_t *>(p[LANES_OF]);
  c.tap_ones = reinterpret_cast<const int32_t *>(c.lanes + c.groups * c.blocks * c.taps() * c.words * LANES);
  const int threads = int(s[THREADS]);
  const uint32_t *x = static_cast<const uint32_t *>(p[X]);
  if (c.pad_h || c.pad_w || c.words != s[WORDS]) {
    uint32_t *to = scratch.need(size_t(c.images * c.padded_h * c.padded_w * c.groups * c.words));
    if (!to) return 1;
    pad_copy(x, to, c, s[WORDS], threads);
    x = to;
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
  e.scale = static_cast<const float *>(p[SCALE]), e.bias = static_cast<const float *>(p[BIAS]);
  e.prelu = static_cast<const float *>(p[PRELU]), e.residual = static_cast<const float *>(p[RESIDUAL]);
  e.rprelu = static_cast<const float *>(p[RPRELU]), e.sign_shift = static_cast<const float *>(p[SIGN_SHIFT]);
  e.y = static_cast<float *>(p[Y]), e.sums = static_cast<int32_t *>(p[SUMS]);
  e.bits = static_cast<uint32_t *>(p[BITS]);

  // shares of about 64 positions, so that threads even out and a block's weights stay in the first cache
  const bool by_column = c.out_h == 1;
  const int64_t extent = by_column ? c.out_w : c.out_h, across = by_column ? 1 : c.out_w;
  int64_t share = (256 + across - 1) / across;
  if (by_column) share = (share + MAX_PIXELS - 1) / MAX_PIXELS * MAX_PIXELS;
  const int64_t shares = (extent + share - 1) / share;
  const Kernels *kernels = known[path];
#pragma omp parallel for collapse(3) schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < c.images; n++)
    for (int64_t part = 0; part < shares; part++)
      for (int64_t b = 0; b < c.groups * c.blocks; b++) {
        const int64_t from = part * share, to = from + share < extent ? from + share : extent;
        Task t{n, b / c.blocks, b % c.blocks, 0, c.out_h, 0, c.out_w};
        if (by_column)
          t.column0 = from, t.column1 = to;
        else
          t.row0 = from, t.row1 = to;
        kernels->conv(c, e, t);
      }
  return 0;
}

// Images of `pixels` pixels each; steps in values.
API void esbnn_pack(int path, const float *x, const float *shift, int64_t images, int64_t pixels, int64_t channels,
                    int64_t groups, int64_t image_step, int64_t pixel_step, int64_t channel_step, uint32_t *bits,
                    int threads) {
  const int64_t words = groups * ((channels / groups + 31) / 32), share = 256, shares = (pixels + share - 1) / share;
  const Kernels *kernels = known[path];
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < images; n++)
    for (int64_t part = 0; part < shares; part++) {
      const Pack p{x + n * image_step, shift, channels, groups, pixel_step, channel_step, bits + n * pixels * words};
      const int64_t from = part * share, to = from + share < pixels ? from + share : pixels;
      kernels->pack(p, from, to);
    }
}
