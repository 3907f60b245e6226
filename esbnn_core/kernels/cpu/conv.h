// What driver.cpp passes to the kernels, and what a kernel for one instruction set provides.
//
// Layouts, all contiguous, 32-bit words:
//   activations  (N, Hp, Wp, groups, words)        words per group rounded up to even, a ring of 0-bits around the image
//   lanes        (groups, blocks, taps, words, 16)  weights of 16 filters side by side, so that one vector holds a word
//                                                   of each; filters and words past the end are 0-bits
//   tap_ones     (groups, blocks, taps, 16)         1-bits of every filter in every tap
//   nibbles      (groups, pairs of blocks, taps, words, 8, 16, 2)   bytes, for paths that want them: four bits of each
//                                                   filter of two blocks, the blocks in turns
#pragma once
#include <cstddef>
#include <cstdint>

namespace esbnn {

constexpr int LANES = 16;     // filters of a block: one 512-bit vector of 32-bit words
constexpr int MAX_PIXELS = 8; // output pixels of a register tile

// How a tensor of real values is stored; the arithmetic is always in float32.
enum Kind { FLOAT32, BFLOAT16, FLOAT16 };

struct Conv {
  int64_t images, out_h, out_w;
  int64_t padded_h, padded_w; // of the activations
  int64_t in_h, in_w;         // of the image inside the ring
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t groups, words, filters, blocks; // words and blocks of one group, filters of all groups
  int64_t per_tap;                        // +-1 values of one tap of one filter
  bool skip_ring;                         // a tap outside the image counts 0 and not -w
  const uint32_t *activations, *lanes;
  const int32_t *tap_ones;
  const uint8_t *nibbles; // or null
  // columns with the same taps inside the image are of one kind; null where all are of the first
  const uint64_t *column_masks; // of every kind
  const int *column_kind;
  int kinds;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t group_filters() const { return filters / groups; }
};

// Bitmask of the taps k for which place*stride + k*dilation - pad is in [0, size).
inline uint64_t inside(int64_t place, int64_t stride, int64_t dilation, int64_t pad, int64_t size, int64_t kernel) {
  uint64_t mask = 0;
  for (int64_t k = 0; k < kernel; k++) {
    const int64_t at = place * stride + k * dilation - pad;
    mask |= uint64_t(at >= 0 && at < size) << k;
  }
  return mask;
}

// The steps after the sum, in the order of esbnn_core.kernels; a null pointer leaves a step out. Channels are
// copies * filters; y, residual and sums are (N, out_h, out_w, channels).
struct Epilogue {
  int64_t copies;
  const float *scale, *bias, *prelu, *rprelu, *sign_shift;
  const void *residual;
  void *y;
  Kind residual_kind, y_kind;
  int32_t *sums;  // the bare tiled sums, instead of all other steps
  uint32_t *bits; // (N, out_h, out_w, sign_groups * sign_words)
  int64_t sign_groups, sign_words;
};

// One share of the work: blocks [block0, block1), numbered through all groups, over rows [row0, row1) and columns
// [column0, column1) of one image.
struct Task {
  int64_t image, block0, block1, row0, row1, column0, column1;
};

// Bits of sign(x + shift) for a run of pixels of `channels` values. Value c of pixel p is x[p*pixel_step +
// c*channel_step]; one of the steps is 1. Output: groups * words words a pixel, starting at `bits`; a group may have
// more words than its channels need.
struct Pack {
  const void *x;
  Kind kind;
  const float *shift;
  int64_t channels, groups, words, pixel_step, channel_step;
};

struct Kernels {
  const char *name;
  bool (*conv)(const Conv &, const Epilogue &, const Task &); // false where memory is short
  void (*pack)(const Pack &, int64_t pixel0, int64_t pixel1, uint32_t *bits);
  bool few_blocks; // a share converts its weights first, so it should rather have few blocks than few pixels
  // the largest register tile, `times` over `words` words that stay in the first cache, and the +-1 products that it
  // made: the inner loop's best speed
  int64_t (*spin)(int64_t words, int64_t times);
  int together = 1;     // blocks that a tile always takes together, if their group has as many
  bool nibbles = false; // whether it reads the weights' nibbles
};

extern const Kernels portable_kernels;
#ifdef ESBNN_X86
extern const Kernels amx_kernels; // conv is null where the compiler does not support AMX
extern const Kernels avx2_kernels;
extern const Kernels avx512_popcnt_kernels, avx512_carry_kernels;
#endif
#ifdef ESBNN_NEON
extern const Kernels neon_kernels;
#endif

} // namespace esbnn
